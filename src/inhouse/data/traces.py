"""What each step noted of one row, and which of its limits were judged for this row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field, ValidationError

from inhouse.core.artifact import Frozen
from inhouse.core.plugins import Operator, operators
from inhouse.data.beside import FIGURES, NOTES

if TYPE_CHECKING:
    import polars as pl


class Trace(Frozen):
    """What one step noted of a row. `limits` are those that were judged for this row, by the figure's name."""

    step: str
    figures: dict[str, Any] = Field(default_factory=dict)
    limits: dict[str, str] = Field(default_factory=dict)
    broken: tuple[str, ...] = Field((), description="figures that are outside a limit that was judged")
    settings: dict[str, Any] = Field(default_factory=dict, description="other settings that differ from the defaults")
    notes: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Limit:
    """One setting `min_…` or `max_…` of a figure."""

    figure: str
    bound: float
    least: bool

    @property
    def said(self) -> str:
        """As a person writes it."""
        return f"{'≥' if self.least else '≤'} {self.bound}"

    def breaks(self, value: float) -> bool:
        """Whether a value is outside."""
        return value < self.bound if self.least else value > self.bound


def traces(folder: Path, facts: Mapping[str, Any], row: str) -> Iterator[Trace]:
    """The figures and notes that each step left of a row, in the order of the steps."""
    for number, settings in enumerate(facts["steps"], 1):
        label = f"{number:02d}-{settings['use']}"
        figures = _of_row(folder / FIGURES / f"{label}.parquet", row)
        notes = _of_row(folder / NOTES / f"{label}.parquet", row)
        if figures.height or notes.height:
            yield _trace(label, settings, figures, notes)


def _of_row(path: Path, row: str) -> pl.DataFrame:
    import polars as pl

    if not path.exists():
        return pl.DataFrame()
    return pl.scan_parquet(path).filter(pl.col("id") == row).collect().drop("id")


def _trace(label: str, settings: dict[str, Any], figures: pl.DataFrame, notes: pl.DataFrame) -> Trace:
    operator, params = _operator(settings)
    limits = _judged(figures, settings, operator, params)
    shown = figures.to_dicts()[0] if figures.height else {}
    said: dict[str, list[str]] = {}
    for limit in limits:
        said.setdefault(limit.figure, []).append(limit.said)
    return Trace(
        step=label,
        figures=shown,
        limits={name: ", ".join(words) for name, words in said.items()},
        broken=tuple(dict.fromkeys(limit.figure for limit in limits if limit.breaks(shown[limit.figure]))),
        settings=_others(settings, shown, params),
        notes=tuple(notes.to_dicts()),
    )


def _operator(settings: dict[str, Any]) -> tuple[Operator | None, BaseModel | None]:
    """The step's operator with its settings; None where this version has it no more, or takes other settings."""
    operator = operators("cleaner").get(settings["use"])
    if operator is None:
        return None, None
    try:
        return operator, operator.params.model_validate(settings)
    except ValidationError:
        return operator, None


def _others(settings: dict[str, Any], figures: Mapping[str, Any], params: BaseModel | None) -> dict[str, Any]:
    """Settings that are no limit of a figure; those left at their defaults say nothing."""
    stated = settings if params is None else params.model_dump(mode="json", exclude_defaults=True)
    limits = {f"{side}_{name}" for name in figures for side in ("min", "max")}
    return {name: value for name, value in stated.items() if name not in {"use", *limits} and value is not None}


def _judged(
    figures: pl.DataFrame, settings: dict[str, Any], operator: Operator | None, params: BaseModel | None
) -> list[Limit]:
    """The limits that the operator applies to a row like this one: some are for some scripts or lengths only.

    Asked of the operator itself: a limit counts when its figure alone, put outside, makes it drop the row while all
    the others are inside.
    """
    stated = [
        Limit(name, bound, side == "min")
        for name in figures.columns
        for side in ("min", "max")
        if isinstance(bound := settings.get(f"{side}_{name}"), int | float) and figures[name].dtype.is_numeric()
        and figures.height and figures[name][0] is not None
    ]  # fmt: skip
    if operator is None or params is None or "drop_reason" not in vars(operator.module):
        return []
    inside = {limit.figure: float(limit.bound) for limit in stated}

    def dropped(figure: str, value: float) -> bool:
        import polars as pl

        values = {**inside, figure: value}
        row = figures.head(1).with_columns(pl.lit(v).alias(name) for name, v in values.items())
        return operator.function("drop_reason")(row, params)[0] is not None

    return [
        limit
        for limit in stated
        if dropped(limit.figure, limit.bound - 1 if limit.least else limit.bound + 1)
        and not dropped(limit.figure, limit.bound)
    ]
