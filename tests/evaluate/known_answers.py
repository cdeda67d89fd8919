"""An engine with known answers, and the records and contexts around it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from inhouse.core.artifact import Artifact
from inhouse.core.protocols import Context, Generation, Input, Prompt, Scored, Tick
from inhouse.core.rows import Message, Row
from inhouse.core.run import Events

LABELS = ["crude", "earn", "grain"]


def record(identity: str = "a" * 24, **fields: object) -> Artifact:
    known = {
        "id": identity,
        "kind": "model",
        "stage": "test",
        "node": "test",
        "stage_version": "1",
        "recipe": "r" * 24,
        "params": {},
        "created": "2026-01-01T00:00:00Z",
    }
    return Artifact.model_validate(known | fields)


def make_rows(count: int, labelled: bool = True) -> list[Row]:
    """Questions whose wanted label is their number modulo 3."""
    rows = []
    for at in range(count):
        label = LABELS[at % 3]
        messages = [
            Message(role="user", content=f"Which desk?\nnews item {at}"),
            Message(role="assistant", content=label),
        ]
        rows.append(
            Row(
                id=f"{at * 7919 % 65521:016x}",
                messages=messages,
                label=label if labelled else None,
                source="s",
                offset=at,
            )
        )
    return rows


class KnownAnswers:
    """An engine whose answers and likelihoods are functions of the question's number and wanted label."""

    def __init__(
        self,
        rows: Sequence[Row],
        answer: Callable[[int, str], str],
        logprob: Callable[[int, str, str], float] | None = None,
    ) -> None:
        self.name = "known answers"
        self.wanted = {row.prompt[-1].content: (at, row.answer) for at, row in enumerate(rows)}
        self.answer = answer
        self.logprob = logprob or (lambda at, wanted, choice: -1.0 if choice == wanted else -3.0)
        self.generated = 0
        self.closed = False

    def token_ids(self, prompt: Prompt) -> list[int]:
        return list((prompt[-1].content or "").encode())

    def generate(
        self, prompts: Sequence[Prompt], max_tokens: int, tick: Tick, ignore_end: bool = False
    ) -> list[Generation]:
        made = []
        for prompt in prompts:
            text = self.answer(*self.wanted[prompt[-1].content])
            made.append(Generation(text, max_tokens if ignore_end else 2, "stop", 0.25, 0.5))
            self.generated += 1
            tick(1)
        return made

    def score(self, prompts: Sequence[Prompt], choices: Sequence[Sequence[str]], tick: Tick) -> list[list[Scored]]:
        made = []
        for prompt, own in zip(prompts, choices, strict=True):
            at, wanted = self.wanted[prompt[-1].content]
            made.append([Scored(self.logprob(at, wanted, choice), 2) for choice in own])
            tick(1)
        return made

    def next_logprobs(self, prompts: Sequence[Prompt], top: int) -> list[dict[int, float]]:
        raise NotImplementedError

    def memory_bytes(self) -> int:
        return 1000

    def close(self) -> None:
        self.closed = True


def context(tmp_path: Path, name: str, **inputs: Input) -> Context:
    """A stage's context with fresh folders below `tmp_path`; events go to events.jsonl there."""
    out, scratch = tmp_path / name / "out", tmp_path / name / "scratch"
    out.mkdir(parents=True)
    scratch.mkdir(exist_ok=True)
    return Context(
        inputs=inputs,
        out=out,
        scratch=scratch,
        sources=tmp_path,
        project_dir=tmp_path,
        events=Events(tmp_path / name / "events.jsonl"),
        seed=0,
        offline=True,
    )


def notes(made: Context) -> list[str]:
    """Codes of the notes a stage gave."""
    path = made.events.path
    assert path is not None
    if not path.exists():
        return []
    events = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [event["code"] for event in events if event["event"] == "note"]
