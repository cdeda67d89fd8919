"""What a model answered to each test row, as it stands in a predictions artifact."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from inhouse.core.artifact import Frozen
from inhouse.core.errors import UserError
from inhouse.core.thoughts import split_thought
from inhouse.core.tool_words import Call, before_calls, read_calls

PREDICTIONS = "predictions.jsonl"
SCORES = "scores.json"
SPEED = "measured/speed.json"


class Prediction(Frozen):
    """One row's answers. Absent parts were not asked for, or the engine cannot give them."""

    id: str
    question: str  # the last user turn, so that a person can read the file without the dataset
    gold: str
    label: str | None = None
    tools: bool | None = None  # true where tools are offered, or a call is wanted
    text: str | None = None
    finish: str | None = None
    predicted: str | None = None  # label that `text` names, by the rule of `read_label`
    choices: dict[str, float] | None = None  # label -> natural-log probability, to 1e-4
    chosen: str | None = None  # label with the highest of them
    gold_logprob: float | None = None
    gold_tokens: int | None = None


@dataclass(frozen=True)
class Predictions:
    """All predictions of one model, and the labels of its dataset (empty when it has none)."""

    rows: tuple[Prediction, ...]
    labels: tuple[str, ...]

    @property
    def gold(self) -> list[str]:
        """The wanted label of every row, else its wanted answer."""
        return [row.label if row.label is not None else row.gold for row in self.rows]


def without_thought(text: str) -> str:
    """An answer without the thought before it, and without spaces around it."""
    return split_thought(text)[1]


def same_calls(wanted: Sequence[Call], made: Sequence[Call]) -> bool:
    """Whether calls have the same names and arguments, compared as JSON values, in whatever order."""
    return sorted(map(_canonical, wanted)) == sorted(map(_canonical, made))


def _canonical(call: Call) -> str:
    return json.dumps(call, sort_keys=True)


def same_answer(wanted: str, said: str) -> bool:
    """Whether an answer is the wanted one: character for character but for spaces at both ends, calls as values.

    Spaces and the order of keys inside of a call's arguments change nothing, nor does a thought before the answer.
    """
    wanted, said = without_thought(wanted), without_thought(said)
    calls = read_calls(wanted)
    if not calls:
        return said == wanted
    return before_calls(said) == before_calls(wanted) and same_calls(calls, read_calls(said))


def read_label(text: str, labels: Iterable[str]) -> str | None:
    """The label that an answer names, or None when the answer is not valid.

    A thought before it (`<think>…</think>`), which some templates write into every answer, is no part of it. Strict:
    the first line of the answer, without the spaces around it and whatever its case, must be a label and
    nothing else. `Earn` and ` earn\\nbecause…` name `earn`; `earn.` and `The desk is earn` do not.
    """
    lines = without_thought(text).splitlines()
    said = lines[0].strip().casefold() if lines else ""
    return next((label for label in labels if label.casefold() == said), None)


def likeliest(choices: dict[str, float]) -> str:
    """The label with the highest log probability; the first in the dataset's order when several are equal."""
    return max(choices, key=lambda label: choices[label])


def write_predictions(path: Path, rows: Iterable[Prediction]) -> None:
    """Write predictions as JSON lines, absent parts left out."""
    with path.open("w", encoding="utf-8", newline="\n") as f:
        for row in rows:
            f.write(json.dumps(row.model_dump(exclude_none=True), ensure_ascii=False, allow_nan=False) + "\n")


def read_predictions(path: Path) -> tuple[Prediction, ...]:
    """The predictions of a file that `write_predictions` wrote."""
    try:
        with path.open(encoding="utf-8") as f:
            return tuple(Prediction.model_validate_json(line) for line in f)
    except FileNotFoundError:
        raise UserError("evaluate.no_predictions", path=path) from None
