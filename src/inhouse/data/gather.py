"""Bring the rows of each table together: every shard is read once, however many tables there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inhouse.data.batch import Batch, read_frame, save
from inhouse.data.build import Site, tracked, write_scratch
from inhouse.data.segments import Shard
from inhouse.data.tasks import Finished, finished, publish

if TYPE_CHECKING:
    import polars as pl

GROUP_BYTES = 64 * 2**20  # text of the shards that are sorted by table at once: as much as one table has
SORTED = "sorted"


@dataclass(frozen=True)
class Stretch:
    """A stretch of a shard: its first row and how many, its first piece and how many."""

    shard: Shard
    row: int
    rows: int
    piece: int
    pieces: int

    def open(self) -> Batch:
        """The batch, mapped."""
        batch = self.shard.open()
        return Batch(batch.rows.slice(self.row, self.rows), batch.pieces.slice(self.piece, self.pieces))


@dataclass(frozen=True)
class SortTask:
    """Shards of which the rows that the file `wanted` names (row, shard, table) are to be sorted by table."""

    folder: Path
    shards: dict[int, Shard]
    wanted: Path


def stretches_of(shards: Sequence[Shard], placed: pl.DataFrame, site: Site) -> dict[int, list[Stretch]]:
    """Where the rows of each table lie, once groups of shards have been sorted by table.

    `placed`: row, shard and table of every row. As long as all shards together are no larger than one table's texts
    are, the one group is nothing but a copy; so it is for small datasets, where it costs little.
    """
    tasks = []
    ordered = placed.select("row", "shard", "table").sort("shard", maintain_order=True)
    for number, group in enumerate(_groups(shards)):
        wanted = ordered.slice(
            ordered["shard"].search_sorted(group[0], "left"),
            ordered["shard"].search_sorted(group[-1], "right") - ordered["shard"].search_sorted(group[0], "left"),
        )
        if wanted.height:
            folder = site.folder / "sorted" / f"{number:05d}"
            write_scratch(wanted, folder.with_suffix(".wanted.arrow"))
            tasks.append(SortTask(folder, {n: shards[n] for n in group}, folder.with_suffix(".wanted.arrow")))
    sizes = [sum(shard.megabytes for shard in task.shards.values()) for task in tasks]
    found: dict[int, list[Stretch]] = {}
    for done in tracked(site, sort_by_table, tasks, sizes, "sort"):
        for table, *bounds in done.facts["tables"]:
            found.setdefault(table, []).append(Stretch(Shard(done.folder, SORTED), *bounds))
    return found


def _groups(shards: Sequence[Shard]) -> Iterator[list[int]]:
    group: list[int] = []
    size = 0.0
    for number, shard in enumerate(shards):
        group.append(number)
        size += shard.megabytes * 1e6
        if size >= GROUP_BYTES:
            yield group
            group, size = [], 0.0
    if group:
        yield group


def sort_by_table(task: SortTask) -> Finished:
    """Write the wanted rows of some shards as one batch, table by table, and where those of each table begin."""
    import polars as pl

    if done := finished(task.folder):
        return done
    with publish(task.folder) as (out, result):
        wanted = read_frame(task.wanted)
        tables = wanted.select("row", "table")
        batches = [
            task.shards[number].open().only(some.select("row"))
            for (number,), some in wanted.group_by("shard", maintain_order=True)
        ]
        rows = pl.concat([batch.rows for batch in batches]).join(tables, on="row").sort("table", "row")
        pieces = pl.concat([batch.pieces for batch in batches]).join(tables, on="row").sort("table", "row", "slot")
        save(Batch(rows.drop("table"), pieces.drop("table")), out, SORTED)
        result["tables"] = [
            (table, *bounds, *_bounds(pieces, table))
            for table in rows["table"].unique().sort()
            for bounds in [_bounds(rows, table)]
        ]
    return finished(task.folder)  # type: ignore[return-value]


def _bounds(ordered: pl.DataFrame, table: int) -> tuple[int, int]:
    """Where the rows of a table begin, and how many there are."""
    first = int(ordered["table"].search_sorted(table, "left"))
    return first, int(ordered["table"].search_sorted(table, "right")) - first


def gathered(parts: Sequence[Stretch]) -> Batch:
    """The rows of one table, by id."""
    import polars as pl

    batches = [part.open() for part in parts]
    rows = pl.concat([batch.rows for batch in batches]).sort("row")
    pieces = pl.concat([batch.pieces for batch in batches]).sort("row", "slot")
    return Batch(rows, pieces)
