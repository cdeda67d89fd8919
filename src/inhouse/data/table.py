"""The rows of a build in columns, and the steps that change or drop them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from inhouse.core.plugins import Operator, operator_of
from inhouse.core.run import Events

if TYPE_CHECKING:
    import polars as pl

BATCH_ROWS = 8192


@dataclass(frozen=True)
class Table:
    """Rows and their texts, both sorted by row id, so that no result depends on the order of reading.

    `rows`: row u64, source, offset, part, label. `pieces`: row u64, slot, name, text, answer; one row has one or more.
    `dropped`: row, source, offset, step (its place in the list, -1 for none of them), reason, kept (row kept instead).
    """

    rows: pl.DataFrame
    pieces: pl.DataFrame
    dropped: tuple[pl.DataFrame, ...] = field(default=())

    def docs(self) -> pl.DataFrame:
        """Rows with their whole text: the pieces joined by line ends."""
        import polars as pl

        whole = self.pieces.group_by("row", maintain_order=True).agg(pl.col("text").str.join("\n"))
        return self.rows.with_columns(whole["text"])

    def without(self, decided: pl.DataFrame, step: int) -> Table:
        """The table less the rows that were decided on (row, reason, kept), which are noted as dropped."""
        import polars as pl

        if decided.is_empty():
            return self
        gone = decided.select("row", "reason", "kept", pl.lit(step).alias("step"))
        noted = self.rows.select("row", "source", "offset").join(gone, on="row", maintain_order="left")
        return Table(
            self.rows.join(gone, on="row", how="anti", maintain_order="left"),
            self.pieces.join(gone, on="row", how="anti", maintain_order="left"),
            (*self.dropped, noted),
        )


def apply_steps(
    table: Table, steps: Sequence[BaseModel], seed: int, events: Events, batch_rows: int = BATCH_ROWS
) -> Table:
    """Run the steps in order. Batches are cut at `batch_rows`, which must not show in the result."""
    for place, step in enumerate(steps):
        operator = operator_of("cleaner", step)
        events.check()
        table = SHAPES[operator.function("SHAPE")](table, _Step(operator, step, place, seed, batch_rows), events)
    return table


@dataclass(frozen=True)
class _Step:
    operator: Operator
    params: BaseModel
    place: int
    seed: int
    batch_rows: int

    def batches(self, function: str, frame: pl.DataFrame, events: Events) -> list[Any]:
        """What the operator's function says of each batch, in order."""
        call = self.operator.function(function)
        found = []
        for start in range(0, max(frame.height, 1), self.batch_rows):
            found.append(call(frame.slice(start, self.batch_rows), self.params))
            events.progress(min(start + self.batch_rows, frame.height), frame.height, "rows", step=self.operator.name)
        return found


def _map(table: Table, step: _Step, events: Events) -> Table:
    import polars as pl

    changed = pl.concat(step.batches("change", table.pieces, events)).alias("text")
    return replace(table, pieces=table.pieces.with_columns(changed))


def _keep(table: Table, step: _Step, events: Events) -> Table:
    import polars as pl

    docs = table.docs()
    reasons = pl.concat(step.batches("drop_reason", docs, events)).cast(pl.String).alias("reason")
    decided = docs.select("row", reasons, pl.lit(None, pl.UInt64).alias("kept"))
    return table.without(decided.filter(pl.col("reason").is_not_null()), step.place)


def _reduce(table: Table, step: _Step, events: Events) -> Table:
    import polars as pl

    emitted = pl.concat(step.batches("emit", table.docs(), events)).sort("row", maintain_order=True)
    return table.without(step.operator.function("decide")(emitted, step.params, step.seed), step.place)


SHAPES = {"map": _map, "keep": _keep, "reduce": _reduce}
