"""Bring the rows of each table together: every shard is read once, however many tables there are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from inhouse.data.batch import Batch, read_frame
from inhouse.data.build import Site, tracked, write_scratch
from inhouse.data.segments import Shard
from inhouse.data.tasks import Finished, finished, publish

if TYPE_CHECKING:
    import polars as pl

GROUP_BYTES = 16 * 2**20  # text of the shards that are sorted by table at once
SORTED = "sorted.arrow"


@dataclass(frozen=True)
class Stretch:
    """The rows of one table in a file of sorted rows: bytes from, between rows and pieces, and to."""

    path: Path
    start: int
    pieces: int
    end: int

    def open(self) -> Batch:
        """The batch; nothing else of the file is read."""
        import polars as pl

        with self.path.open("rb") as f:
            f.seek(self.start)
            rows, pieces = f.read(self.pieces - self.start), f.read(self.end - self.pieces)
        return Batch(pl.read_ipc_stream(rows), pl.read_ipc_stream(pieces))


@dataclass(frozen=True)
class SortTask:
    """Shards of which the rows that the file `wanted` names (row, shard, table) are to be sorted by table."""

    folder: Path
    shards: dict[int, Shard]
    wanted: Path


def stretches_of(shards: Sequence[Shard], placed: pl.DataFrame, site: Site) -> dict[int, list[Stretch]]:
    """Where the rows of each table lie, once groups of shards have been sorted by table.

    `placed`: row, shard and table of every row.
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
            found.setdefault(table, []).append(Stretch(done.folder / SORTED, *bounds))
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
    """Write the wanted rows of some shards into one file, table by table, and say where those of each table lie."""
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
        with (out / SORTED).open("wb") as f:
            result["tables"] = [
                (table, f.tell(), _append(rows, table, f), _append(pieces, table, f))
                for table in rows["table"].unique().sort()
            ]
    return finished(task.folder)  # type: ignore[return-value]


def _append(ordered: pl.DataFrame, table: int, f: BinaryIO) -> int:
    """Write the rows of a table, and say where the file ends then."""
    first = int(ordered["table"].search_sorted(table, "left"))
    last = int(ordered["table"].search_sorted(table, "right"))
    ordered.slice(first, last - first).drop("table").write_ipc_stream(f, compression="uncompressed")
    return f.tell()


def gathered(parts: Sequence[Stretch | Shard], wanted: pl.DataFrame) -> Batch:
    """The rows of one table, which `wanted` names, by id."""
    import polars as pl

    batches = [part.open().only(wanted) for part in parts]
    rows = pl.concat([batch.rows for batch in batches]).sort("row")
    pieces = pl.concat([batch.pieces for batch in batches]).sort("row", "slot")
    return Batch(rows, pieces)
