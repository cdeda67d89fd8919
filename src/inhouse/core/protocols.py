"""What rooms agree on: stages, engines, and the value types that pass between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from inhouse.core.artifact import Artifact, Kind, Licence
from inhouse.core.rows import Message, Row
from inhouse.core.run import Events


@dataclass(frozen=True)
class Input:
    """An artifact that a stage reads: its record and its folder."""

    record: Artifact
    path: Path


@dataclass(frozen=True)
class Context:
    """What a stage gets besides its params. It writes its artifact's files below `out` and nothing elsewhere.

    `scratch` survives a crash (checkpoints go there); `sources` is the workspace's download folder.
    """

    inputs: dict[str, Input]
    out: Path
    scratch: Path
    sources: Path
    project_dir: Path
    events: Events
    seed: int
    offline: bool
    use: str = "evaluation"  # the project's declared use: evaluation, internal or commercial


@dataclass(frozen=True)
class Made:
    """What a stage says of the artifact it wrote: facts for the record, and licences it adds to the inherited ones."""

    facts: dict[str, Any] = field(default_factory=dict)
    licences: tuple[Licence, ...] = ()


class Stage(Protocol):
    """A module `stage.py` of a room: makes one artifact from artifacts."""

    VERSION: str
    KIND: Kind

    def run(self, params: Any, context: Context) -> Made: ...

    def external(self, params: Any, project_dir: Path) -> dict[str, str]: ...


@dataclass(frozen=True)
class Generation:
    """One answer of an engine. Times are seconds from the moment the request was made."""

    text: str
    tokens: int
    finish: str  # 'stop' or 'length'
    first_token_s: float
    total_s: float


@dataclass(frozen=True)
class Scored:
    """How likely a fixed answer is: natural-log probability summed over its tokens, end of turn included."""

    logprob: float
    tokens: int


@dataclass(frozen=True)
class Question:
    """What a model is asked: the turns before its answer, and the tools that it may call."""

    turns: Sequence[Message]
    tools: Sequence[dict[str, Any]] | None = None


Prompt = Sequence[Message] | Question


def prompt_of(row: Row) -> Prompt:
    """What a row asks: everything before its answer, with its tools where it has some."""
    return Question(row.prompt, row.tools) if row.tools else row.prompt


def question_of(prompt: Prompt) -> Question:
    """A prompt as its turns and its tools; turns alone are a question without tools."""
    return prompt if isinstance(prompt, Question) else Question(prompt)


Tick = Callable[[int], None]


class Engine(Protocol):
    """A loaded model that answers greedily: evaluation and parity never sample."""

    name: str

    def token_ids(self, prompt: Prompt) -> list[int]:
        """Ids of the conversation through the model's own template, ready for the answer to follow."""
        ...

    def generate(
        self, prompts: Sequence[Prompt], max_tokens: int, tick: Tick, ignore_end: bool = False
    ) -> list[Generation]:
        """Answers in the order of the prompts; `tick(1)` after each one that is finished.

        With `ignore_end` every answer has exactly `max_tokens` tokens (for measuring speed).
        """
        ...

    def score(self, prompts: Sequence[Prompt], choices: Sequence[Sequence[str]], tick: Tick) -> list[list[Scored]]:
        """How likely each of a prompt's choices is as its whole answer; `choices[i]` belongs to `prompts[i]`."""
        ...

    def next_logprobs(self, prompts: Sequence[Prompt], top: int) -> list[dict[int, float]]:
        """Natural-log probabilities of the `top` likeliest next token ids after each prompt."""
        ...

    def memory_bytes(self) -> int:
        """Peak resident memory of the process that holds the model."""
        ...

    def close(self) -> None: ...
