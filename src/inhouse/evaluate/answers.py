"""Ask a model the test rows, in pieces that survive a crash."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from inhouse.core.errors import UserError
from inhouse.core.protocols import Engine, Scored, Tick, prompt_of
from inhouse.core.rows import Row
from inhouse.evaluate.predictions import Prediction, likeliest, read_label, read_predictions, write_predictions
from inhouse.evaluate.questions import question_of

CHUNK = 64  # rows asked before they are written down: at most this much work is lost by a crash
LOGPROB_DIGITS = 4


@dataclass(frozen=True)
class Asking:
    """What every row is asked: a free answer, the likelihood of each label, that of the wanted answer."""

    labels: tuple[str, ...]
    max_tokens: int
    generate: bool
    constrained: bool
    score: bool

    @property
    def modes(self) -> list[str]:
        """The modes of the settings that are really asked."""
        asked = {"generate": self.generate, "constrained": self.constrained}
        return [mode for mode, wanted in asked.items() if wanted]

    @property
    def passes(self) -> int:
        """How many times each row is ticked off."""
        return int(self.generate) + int(self.score)


def ask_all(engine: Engine, rows: Sequence[Row], asking: Asking, scratch: Path, tick: Tick) -> Iterator[Prediction]:
    """The prediction of every row, in order. Chunks found in `scratch` are not asked again.

    The chunks are the same on every run, so that a resumed one feeds the engine the same batches.
    """
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        path = scratch / f"rows-{start:07d}.jsonl"
        if path.exists():
            tick(len(part) * asking.passes)
        else:
            unfinished = path.with_suffix(".part")
            write_predictions(unfinished, ask(engine, part, asking, tick))
            unfinished.replace(path)
        yield from read_predictions(path)


def ask(engine: Engine, rows: Sequence[Row], asking: Asking, tick: Tick) -> list[Prediction]:
    """The predictions of some rows; raises evaluate.not_finite when the model's likelihoods are no numbers."""
    prompts = [prompt_of(row) for row in rows]
    texts = engine.generate(prompts, asking.max_tokens, tick) if asking.generate else [None] * len(rows)
    choices = [choices_of(row, asking) for row in rows]
    scores = engine.score(prompts, choices, tick) if asking.score else [[] for _ in rows]
    made = []
    for row, answer, names, scored in zip(rows, texts, choices, scores, strict=True):
        made.append(
            Prediction(
                id=row.id,
                question=question_of(row),
                gold=row.answer,
                label=row.label,
                tools=bool(row.tools or row.messages[-1].tool_calls) or None,
                text=answer.text if answer else None,
                finish=answer.finish if answer else None,
                predicted=read_label(answer.text, asking.labels) if answer else None,
            ).model_copy(update=likelihoods(row, asking, names, scored))
        )
    return made


def choices_of(row: Row, asking: Asking) -> list[str]:
    """What the model's likelihood is asked for: the labels, and the wanted answer where it is none of them."""
    labels = list(asking.labels) if asking.constrained else []
    return labels if row.answer in labels else [*labels, row.answer]


def likelihoods(row: Row, asking: Asking, names: Sequence[str], scored: Sequence[Scored]) -> dict[str, object]:
    """The likeliest label and the wanted answer's log probability, checked to be numbers.

    A label's score is the log probability of the whole answer, end of turn included, so a label that begins another
    one has no advantage; it is not divided by the length, since these are probabilities of complete answers.
    """
    if not asking.score:
        return {}
    known = dict(zip(names, scored, strict=True))
    for name, value in known.items():
        if not math.isfinite(value.logprob):
            # NaN compares false with everything: without this check the first label would win every row.
            raise UserError("evaluate.not_finite", row=row.id, choice=name, value=value.logprob)
    gold = known[row.answer]
    found: dict[str, object] = {
        "gold_logprob": round(gold.logprob, LOGPROB_DIGITS),
        "gold_tokens": gold.tokens,
    }
    if asking.constrained:
        choices = {label: round(known[label].logprob, LOGPROB_DIGITS) for label in asking.labels}
        found |= {"choices": choices, "chosen": likeliest(choices)}
    return found
