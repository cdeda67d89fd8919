"""Build the rows of a dataset: gather, clean, finish. Pure: writes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, get_args

from inhouse.core.errors import UserError
from inhouse.core.plugins import operator_of, require
from inhouse.core.rows import Part, Row
from inhouse.core.run import Events
from inhouse.data.gather import SourceRows, gather, to_table
from inhouse.data.settings import DataParams
from inhouse.data.shapes import finish
from inhouse.data.shapes.classification import ClassificationShape
from inhouse.data.source import Located, Rejected
from inhouse.data.table import BATCH_ROWS, Table, apply_steps

if TYPE_CHECKING:
    import polars as pl

PARTS: tuple[Part, ...] = get_args(Part)
SHAPE_STEP = -1  # the place of the build itself among the steps that drop rows


@dataclass(frozen=True, slots=True)
class Dropped:
    """A row that a step took out; `kept` is the row that stays instead of a duplicate."""

    id: str
    source: str
    offset: int
    step: str
    number: int  # place in the list of steps from 1; 0: the finished row was blank
    reason: str
    kept: str | None


@dataclass(frozen=True)
class Built:
    """A dataset in memory, with everything that was read and is not in it."""

    params: DataParams
    sources: tuple[SourceRows, ...]
    table: Table
    rows: tuple[Row, ...]
    labels: tuple[str, ...]
    dropped: tuple[Dropped, ...]
    seed: int

    @property
    def read(self) -> int:
        """Rows read, rejects included: kept + dropped + rejected."""
        return sum(source.read for source in self.sources)

    @property
    def rejected(self) -> tuple[Rejected, ...]:
        """Rows that could not be used, by source and offset."""
        return tuple(reject for source in self.sources for reject in source.rejected)

    def part(self, part: Part) -> list[Row]:
        """The rows of a part, by id."""
        return [row for row, name in zip(self.rows, self.table.rows["part"], strict=True) if name == part]


def build(
    params: DataParams, located: Sequence[Located], seed: int, events: Events, batch_rows: int = BATCH_ROWS
) -> Built:
    """Build a dataset from files on this machine; the result does not depend on the order of the sources.

    Raises data.* and split.* errors. `batch_rows` only bounds memory.
    """
    require("data", "polars", "xxhash")
    sources = gather(params, located, events)
    table = to_table(sources, params.split)
    table = apply_steps(table, params.steps, seed, events, batch_rows)
    table = without_blank(table)
    built = Built(
        params=params,
        sources=tuple(sources),
        table=table,
        rows=tuple(rows_of(sources, table)),
        labels=_labels(params, table),
        dropped=tuple(_dropped(params, table)),
        seed=seed,
    )
    _refuse_unusable(built)
    return built


def without_blank(table: Table) -> Table:
    """Drop rows of which the steps left a text blank: there is nothing to ask or nothing to answer."""
    import polars as pl

    blank = table.pieces.filter(pl.col("text").str.strip_chars() == "").select("row").unique().sort("row")
    reasons = [pl.lit("empty_text").alias("reason"), pl.lit(None, pl.UInt64).alias("kept")]
    return table.without(blank.with_columns(reasons), SHAPE_STEP)


def rows_of(sources: Sequence[SourceRows], table: Table) -> Iterator[Row]:
    """The finished rows in the table's order."""
    drafts = {r.row: (r, source) for source in sources for r in source.rows}
    pairs = zip(table.pieces["row"], table.pieces["text"], strict=True)
    for number, group in groupby(pairs, key=lambda pair: pair[0]):
        candidate, source = drafts[number]
        assert source.shape is not None  # a source without a shape has no drafts
        yield Row(
            id=f"{number:016x}",
            messages=finish(candidate.draft, [text for _, text in group], source.shape),
            label=candidate.draft.label,
            source=source.located.params.name,
            offset=candidate.offset,
        )


def test_texts_in_train(table: Table) -> int:
    """Rows of the training part whose whole text also stands in the test part."""
    import polars as pl

    docs = table.docs()
    test = docs.filter(pl.col("part") == "test").select("text").unique()
    return docs.filter(pl.col("part") == "train").join(test, on="text", how="semi").height


def _labels(params: DataParams, table: Table) -> tuple[str, ...]:
    if isinstance(params.shape, ClassificationShape) and params.shape.labels is not None:
        return params.shape.labels
    return tuple(sorted(table.rows["label"].drop_nulls().unique()))


def _dropped(params: DataParams, table: Table) -> Iterator[Dropped]:
    import polars as pl

    if not table.dropped:
        return
    frame: pl.DataFrame = pl.concat(table.dropped).sort("source", "offset")
    for item in frame.iter_rows(named=True):
        place = item["step"]
        yield Dropped(
            id=f"{item['row']:016x}",
            source=item["source"],
            offset=item["offset"],
            step="shape" if place == SHAPE_STEP else operator_of("cleaner", params.steps[place]).name,
            number=place + 1,
            reason=item["reason"],
            kept=None if item["kept"] is None else f"{item['kept']:016x}",
        )


def _refuse_unusable(built: Built) -> None:
    """Raise when nothing is left, a part is missing, or there is only one label to learn."""
    if not built.rows:
        raise UserError("data.all_dropped", read=built.read, dropped=_why(built))
    train, test = built.part("train"), built.part("test")
    if not train:
        raise UserError("data.no_train", rows=len(built.rows), dropped=_why(built))
    if not test:
        raise UserError("data.no_test", rows=len(built.rows), dropped=_why(built))
    labels = {row.label for row in train}
    if len(labels) == 1 and (label := labels.pop()) is not None:
        raise UserError("data.one_class", label=label, rows=len(train))


def _why(built: Built) -> str:
    counts: dict[str, int] = {}
    for item in built.dropped:
        key = f"{item.step} {item.reason}"
        counts[key] = counts.get(key, 0) + 1
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "0"
