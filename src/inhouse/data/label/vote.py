"""Let rules vote on every row, decide, and say how each rule does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inhouse.core.agreement import wilson
from inhouse.core.artifact import Frozen
from inhouse.core.errors import UserError
from inhouse.core.plugins import operator_of, require
from inhouse.core.run import Events
from inhouse.data.label.items import Item, columns_of, frame_of
from inhouse.data.label.settings import LabelParams

if TYPE_CHECKING:
    import polars as pl

BATCH = 20_000  # rows
EPSILON = 1e-9  # sums of weights closer than this are a tie


class RuleFigures(Frozen):
    """How one rule does. Shares are of all rows; `correct` of `judged` are rows with a given label that it voted on."""

    name: str
    voted: int
    coverage: float
    overlaps: float  # rows that another rule votes on too
    conflicts: float  # rows that another rule votes on otherwise
    judged: int
    correct: int
    accuracy: float | None = None
    low: float | None = None  # 95 % Wilson interval
    high: float | None = None


@dataclass(frozen=True)
class Voted:
    """`votes[r][i]` is the label that rule r gives to row i, `decided[i]` what came of them.

    `ties` counts the rows without a given label on which no label won.
    """

    votes: tuple[tuple[str | None, ...], ...]
    decided: tuple[str | None, ...]
    ties: int
    figures: tuple[RuleFigures, ...]


def vote(items: Sequence[Item], labels: Sequence[str], params: LabelParams, events: Events) -> Voted:
    """Ask every rule about every row. Raises label.unknown_vote for a label that does not exist."""
    require("data", "polars")
    columns: list[list[str | None]] = [[] for _ in params.rules]
    known = columns_of(items)
    for start in range(0, len(items), BATCH):
        events.progress(start, len(items), "rows")
        rows = frame_of(items[start : start + BATCH], known)
        for column, rule in zip(columns, params.rules, strict=True):
            column += _votes(rule, rows, labels)
    weights = [_weight(rule) for rule in params.rules]
    events.progress(len(items), len(items), "rows")
    cast = list(zip(*columns, strict=True)) if columns else [()] * len(items)
    decided = tuple(_decide(one, weights, params.decide) for one in cast)
    undecided = (one for item, label, one in zip(items, decided, cast, strict=True) if item.label is label is None)
    ties = sum(any(one) for one in undecided)
    votes = tuple(tuple(column) for column in columns)
    return Voted(votes, decided, ties, tuple(_figures(rule_names(params), votes, items)))


def rule_names(params: LabelParams) -> list[str]:
    """What each rule is called: its own name, else its kind and label, numbered where two would be alike."""
    names: list[str] = []
    for rule in params.rules:
        values: dict[str, Any] = rule.model_dump()
        name = values.get("name") or f"{values['use']}:{values.get('label') or values.get('column') or ''}".rstrip(":")
        names.append(name if name not in names else f"{name}#{len(names) + 1}")
    return names


def _votes(rule: Any, rows: pl.DataFrame, labels: Sequence[str]) -> list[str | None]:
    found: list[str | None] = operator_of("rule", rule).function("votes")(rows, rule).to_list()
    if wrong := sorted({label for label in found if label is not None} - set(labels)):
        raise UserError("label.unknown_vote", rule=rule.use, label=wrong[0], labels=", ".join(labels))
    return found


def _weight(rule: Any) -> float:
    return float(rule.weight)


def _decide(cast: Sequence[str | None], weights: Sequence[float], how: str) -> str | None:
    """The label of one row; None without a vote, and for a tie."""
    if how == "first":
        return next((label for label in cast if label is not None), None)
    sums: dict[str, float] = {}
    for label, weight in zip(cast, weights, strict=True):
        if label is not None:
            sums[label] = sums.get(label, 0.0) + (weight if how == "weights" else 1.0)
    best = max(sums.values(), default=0.0)
    winners = [label for label, total in sums.items() if total > best - EPSILON]
    return winners[0] if len(winners) == 1 else None


def _figures(names: Sequence[str], votes: Sequence[Sequence[str | None]], items: Sequence[Item]) -> list[RuleFigures]:
    """Coverage, overlaps, conflicts and accuracy, as labelling functions are commonly judged (Ratner et al. 2017)."""
    found = []
    rows = len(items)
    given = [item.label for item in items]
    kinds = [{label for label in cast if label is not None} for cast in zip(*votes, strict=True)]
    counts = [sum(label is not None for label in cast) for cast in zip(*votes, strict=True)]
    for name, column in zip(names, votes, strict=True):
        mine = [i for i, label in enumerate(column) if label is not None]
        judged = [i for i in mine if given[i] is not None]
        correct = sum(column[i] == given[i] for i in judged)
        low, high = wilson(correct, len(judged)) if judged else (None, None)
        found.append(
            RuleFigures(
                name=name, voted=len(mine), coverage=len(mine) / rows,
                overlaps=sum(counts[i] > 1 for i in mine) / rows, conflicts=sum(len(kinds[i]) > 1 for i in mine) / rows,
                judged=len(judged), correct=correct, accuracy=correct / len(judged) if judged else None,
                low=low, high=high,
            )
        )  # fmt: skip
    return found
