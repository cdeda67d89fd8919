"""Steps over shards: adjacent steps that see one batch at a time run in one pass, decisions over all rows between."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from inhouse.core.plugins import Operator, operator_of
from inhouse.data.batch import Batch, load, piece_schema, read_frame, row_schema, save, write_frame
from inhouse.data.operators.around import Around
from inhouse.data.shapes.calls import CALL
from inhouse.data.tasks import Finished, finished, publish

if TYPE_CHECKING:
    import polars as pl

# The places of what drops rows without being a step of the project: a row that came out blank, and the mix.
SHAPE_STEP, MIX_STEP = -1, -2


@dataclass(frozen=True)
class Step:
    """One step and its place in `data.steps`, from 0."""

    place: int
    params: BaseModel

    @property
    def operator(self) -> Operator:
        """The operator whose settings these are."""
        return operator_of("cleaner", self.params)

    @property
    def shape(self) -> str:
        """map, keep, reduce or expand."""
        return str(self.operator.function("SHAPE"))

    @property
    def label(self) -> str:
        """Its name in files: place from 1, and operator."""
        return f"{self.place + 1:02d}-{self.operator.name}"


@dataclass(frozen=True)
class Segment:
    """Steps of one pass over the shards, and the decisions over all rows that follow it."""

    number: int
    passing: tuple[Step, ...]
    deciding: tuple[Step, ...]


def segments(steps: Sequence[BaseModel]) -> list[Segment]:
    """The steps cut where one may not be told of its rows before the decisions that stand before it are carried out."""
    found: list[tuple[list[Step], list[Step]]] = [([], [])]
    for place, params in enumerate(steps):
        step = Step(place, params)
        if found[-1][1] and _sees_decisions(step, found[-1][1][-1]):
            found.append(([], []))
        passing, deciding = found[-1]
        (deciding if step.shape == "reduce" else passing).append(step)
    return [Segment(number, tuple(passing), tuple(deciding)) for number, (passing, deciding) in enumerate(found)]


def _sees_decisions(step: Step, before: Step) -> bool:
    """Whether what a step sees or emits depends on the decisions before it.

    Of rows that were dropped in the meantime the engine leaves out what was emitted. It cannot where that does not
    belong to single rows (`combine`), and where rows have changed sides, for what is emitted depends on the part.
    """
    if step.shape != "reduce" or "combine" in vars(step.operator.module):
        return True
    return "moves" in vars(before.operator.module) and bool(before.operator.function("moves")(before.params))


@dataclass(frozen=True)
class Shard:
    """Where a batch lies."""

    folder: Path
    name: str

    @property
    def megabytes(self) -> float:
        """Size of its texts."""
        return (self.folder / f"{self.name}.pieces.arrow").stat().st_size / 1e6

    def open(self) -> Batch:
        """The batch."""
        return load(self.folder, self.name)


@dataclass(frozen=True)
class PassTask:
    """One shard to be taken through a segment. `alive` is a file with its rows (and parts) that are still in."""

    folder: Path
    shard: Shard
    alive: Path
    segment: Segment
    around: Around
    last: bool  # whether no segment follows, so that blank rows are dropped now


def pass_shard(task: PassTask) -> Finished:
    """Take a shard through a segment's steps; leaves texts, drops, figures, notes and what the decisions need."""
    if done := finished(task.folder):
        return done
    with publish(task.folder) as (out, result):
        walk = _Walk(task, out)
        batch = task.shard.open().only(read_frame(task.alive))
        for step in task.segment.passing:
            batch = walk.step(step, batch)
        if task.last:
            batch = walk.blank(batch)
        if walk.rewritten:
            save(batch, out, "shard")
        docs = batch.docs()
        for step in task.segment.deciding:
            started = time.monotonic()
            emitted = step.operator.function("emit")(docs, step.params, task.around)
            walk.times[step.label] = round(time.monotonic() - started, 4)
            write_frame(emitted, out / f"{step.label}.emitted.arrow")
        write_frame(walk.gone(), out / "dropped.arrow")
        write_frame(batch.rows.select("row", "part", "parent"), out / "rows.arrow")
        result.update(
            rewritten=walk.rewritten,
            made=walk.made,
            bytes=int(batch.pieces["text"].str.len_bytes().sum()),
            steps=walk.times,
        )
    return finished(task.folder)  # type: ignore[return-value]


class _Walk:
    """A batch on its way through the steps, and what they leave beside it."""

    def __init__(self, task: PassTask, out: Path) -> None:
        self.task = task
        self.out = out
        self.rewritten = False
        self.made = 0
        self.dropped: list[pl.DataFrame] = []
        self.times: dict[str, float] = {}

    def step(self, step: Step, batch: Batch) -> Batch:
        """The batch after one step."""
        started = time.monotonic()
        after: Batch = {"map": self._map, "keep": self._keep, "expand": self._expand}[step.shape](step, batch)
        self.times[step.label] = round(time.monotonic() - started, 4)
        return after

    def _map(self, step: Step, batch: Batch) -> Batch:
        import polars as pl

        found = step.operator.function("change")(batch.pieces, step.params, self.task.around)
        texts, notes = found if isinstance(found, tuple) else (found, None)
        if notes is not None and notes.height:
            write_frame(notes, self.out / f"{step.label}.notes.arrow")
        self.rewritten = True
        changed = batch.with_texts(texts)
        lost = changed.pieces.filter(pl.col("text").is_null()).select("row").unique().sort("row")
        if lost.is_empty():
            return changed
        return self._without(changed, lost.with_columns(reason=pl.lit(step.operator.function("REMOVED"))), step.place)

    def _keep(self, step: Step, batch: Batch) -> Batch:
        import polars as pl

        figures = step.operator.function("measure")(batch.docs(), step.params, self.task.around)
        write_frame(batch.rows.select("row").hstack(figures), self.out / f"{step.label}.figures.arrow")
        reasons = step.operator.function("drop_reason")(figures, step.params).cast(pl.String).alias("reason")
        decided = batch.rows.select("row", reasons).filter(pl.col("reason").is_not_null())
        return self._without(batch, decided, step.place)

    def _expand(self, step: Step, batch: Batch) -> Batch:
        import polars as pl

        train = batch.rows.filter(pl.col("part") == "train").select("row")
        pieces = batch.pieces.join(train, on="row", how="semi", maintain_order="left")
        born = step.operator.function("expand")(pieces, step.params, self.task.around)
        if born.is_empty():
            return batch
        self.rewritten = True
        after = with_children(batch, born, step.place)
        self.made += after.rows.height - batch.rows.height
        return after

    def blank(self, batch: Batch) -> Batch:
        """Drop rows of which the steps left a text blank: there is nothing to ask or nothing to answer."""
        import polars as pl

        empty = ~pl.col("text").str.contains(r"\S") & (pl.col("name") != CALL)  # an argument may be blank
        blank = batch.pieces.filter(empty).select("row").unique().sort("row")
        return self._without(batch, blank.with_columns(reason=pl.lit("empty_text")), SHAPE_STEP)

    def _without(self, batch: Batch, decided: pl.DataFrame, place: int) -> Batch:
        import polars as pl

        if decided.is_empty():
            return batch
        noted = batch.rows.join(decided, on="row", maintain_order="left")
        none = pl.lit(None, pl.UInt64)
        self.dropped.append(noted.select(*DROPPED_FROM_ROWS, step=pl.lit(place, pl.Int32), kept=none))
        return batch.without(decided)

    def gone(self) -> pl.DataFrame:
        """Everything that these steps dropped."""
        import polars as pl

        return pl.concat(self.dropped) if self.dropped else pl.DataFrame(schema=dropped_schema())


DROPPED_FROM_ROWS = ("row", "source", "file", "offset", "reason")


def dropped_schema() -> dict[str, Any]:
    """Columns of dropped rows: `step` is the place of the step that dropped it, `kept` the row kept instead."""
    import polars as pl

    from_rows = {"row": pl.UInt64, "source": pl.String, "file": pl.String, "offset": pl.Int64, "reason": pl.String}
    return {**from_rows, "step": pl.Int32, "kept": pl.UInt64}


def with_children(batch: Batch, born: pl.DataFrame, place: int) -> Batch:
    """The batch with the rows that augmentation made: new ids, their parents' place, part and label."""
    import polars as pl
    import xxhash

    children = born.select("parent", "child").unique().sort("parent", "child")
    ids = [
        xxhash.xxh3_64_intdigest(f"{parent:016x}:{place}:{child}".encode()) for parent, child in children.iter_rows()
    ]
    children = children.with_columns(pl.Series("id", ids, dtype=pl.UInt64))
    rows = children.join(batch.rows.drop("parent"), left_on="parent", right_on="row", maintain_order="left")
    rows = rows.rename({"id": "row"}).select(batch.rows.columns)
    pieces = born.join(children, on=["parent", "child"], maintain_order="left").rename({"id": "row"})
    return Batch(
        pl.concat([batch.rows, rows.cast(pl.Schema(row_schema()))]).sort("row"),
        pl.concat([batch.pieces, pieces.select(batch.pieces.columns).cast(pl.Schema(piece_schema()))]).sort(
            "row", "slot"
        ),
    )


@dataclass(frozen=True)
class MoreTask:
    """Rows of a shard whose documents a decision wants to see again."""

    folder: Path
    shard: Shard
    rows: Path
    step: Step
    around: Around
    asked: Path | None  # a frame that the step gives along to every batch


def emit_more(task: MoreTask) -> Finished:
    """What a decision's second look at some rows gives."""
    if done := finished(task.folder):
        return done
    with publish(task.folder) as (out, result):
        docs = task.shard.open().only(read_frame(task.rows)).docs()
        started = time.monotonic()
        look = task.step.operator.function("emit_more")
        given = () if task.asked is None else (read_frame(task.asked),)
        more = look(docs, task.step.params, task.around, *given)
        result["steps"] = {task.step.label: round(time.monotonic() - started, 4)}
        write_frame(more, out / "emitted.arrow")
    return finished(task.folder)  # type: ignore[return-value]
