"""Try other thresholds on a dataset that was built, from the figures that its steps left: no text is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from inhouse.core.artifact import Frozen
from inhouse.core.errors import UserError
from inhouse.data.beside import FIGURES
from inhouse.data.segments import Step

SAMPLES = 5


class Retuned(Frozen):
    """What one step drops now and would drop. Rows that an earlier step dropped were not measured by it."""

    step: str
    measured: int
    dropped: int
    would_drop: int
    newly_dropped: int
    newly_kept: int
    reasons: dict[str, int]
    samples: tuple[str, ...]  # ids of rows whose fate changes


def retune(folder: Path, built_with: Sequence[dict[str, Any]], steps: Sequence[BaseModel]) -> list[Retuned]:
    """Each keep step under the settings it was built with and under these. Raises data.retune_* errors.

    `built_with`: the steps as dataset.json holds them. Only thresholds may differ.
    """
    asked = [step.model_dump(mode="json") for step in steps]
    if [step["use"] for step in asked] != [step["use"] for step in built_with]:
        names = ", ".join(step["use"] for step in built_with)
        raise UserError("data.retune_steps", steps=names)
    found = []
    for place, (before, after, params) in enumerate(zip(built_with, asked, steps, strict=True)):
        step = Step(place, params)
        if step.shape != "keep":
            if before != after:
                raise UserError("data.retune_rebuild", step=step.label, setting=_first_difference(before, after))
            continue
        fixed = getattr(step.operator.module, "MEASURED_BY", ())
        if changed := [name for name in fixed if before.get(name) != after.get(name)]:
            raise UserError("data.retune_rebuild", step=step.label, setting=changed[0])
        found.append(_compared(folder, step, before))
    return found


def _compared(folder: Path, step: Step, before: dict[str, Any]) -> Retuned:
    import polars as pl

    path = folder / FIGURES / f"{step.label}.parquet"
    if not path.exists():
        return Retuned(
            step=step.label, measured=0, dropped=0, would_drop=0, newly_dropped=0, newly_kept=0, reasons={}, samples=()
        )
    table = pl.read_parquet(path)
    figures = table.drop("id")
    judge = step.operator.function("drop_reason")
    then: pl.Series = judge(figures, step.operator.params.model_validate(before))
    now: pl.Series = judge(figures, step.params)
    changed = table["id"].filter(then.is_null() != now.is_null())
    counts = dict(now.drop_nulls().value_counts().sort("count", descending=True).iter_rows())
    return Retuned(
        step=step.label,
        measured=table.height,
        dropped=then.len() - then.null_count(),
        would_drop=now.len() - now.null_count(),
        newly_dropped=int((then.is_null() & now.is_not_null()).sum()),
        newly_kept=int((then.is_not_null() & now.is_null()).sum()),
        reasons={str(reason): int(count) for reason, count in counts.items()},
        samples=tuple(changed.head(SAMPLES)),
    )


def _first_difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    return next(name for name in after if before.get(name) != after[name])
