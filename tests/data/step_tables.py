"""Run steps on rows given in a test, cut into as many shards as it likes."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from inhouse.core.plugins import operators
from inhouse.core.rows import PARTS
from inhouse.core.run import Events
from inhouse.data.batch import Batch, piece_schema, row_schema, save
from inhouse.data.build import Built, Site, through
from inhouse.data.operators.around import Around
from inhouse.data.segments import Shard, dropped_schema, segments
from inhouse.data.settings import DataParams
from inhouse.data.tasks import Crew


@dataclass
class After:
    """What the steps left."""

    batch: Batch
    dropped: pl.DataFrame
    reports: dict[str, dict[str, Any]]

    @property
    def texts(self) -> list[str]:
        return self.batch.docs()["text"].to_list()

    @property
    def drops(self) -> dict[int, tuple[str, int | None]]:
        return {d["row"]: (d["reason"], d["kept"]) for d in self.dropped.iter_rows(named=True)}


def batch_of(rows: list[tuple[str, str, str | None]], ids: list[int] | None = None) -> Batch:
    """A batch of (text, part, label) rows of one text each."""
    count = len(rows)
    columns = {
        "row": ids or list(range(1, count + 1)), "source": ["s"] * count, "file": ["f"] * count,
        "offset": list(range(count)), "part": [r[1] for r in rows], "stated": [True] * count,
        "label": [r[2] for r in rows], "parent": [None] * count, "turns": [None] * count,
        "extra": [None] * count,
    }  # fmt: skip
    frame = pl.DataFrame(columns, schema=row_schema())
    pieces = {
        "row": columns["row"], "slot": [0] * count, "name": ["text"] * count, "text": [r[0] for r in rows],
        "answer": [False] * count,
    }  # fmt: skip
    return Batch(frame.sort("row"), pl.DataFrame(pieces, schema=piece_schema()).sort("row"))


def after(batch: Batch, *steps: Any, seed: int = 0, shard_rows: int = 8192) -> After:
    """The batch after the steps, in shards of `shard_rows` rows."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        shards, frames = [], []
        for start in range(0, max(batch.rows.height, 1), shard_rows):
            cut = batch.only(batch.rows.slice(start, shard_rows).select("row"))
            save(cut, folder, str(start))
            frames.append(cut.rows.with_columns(shard=pl.lit(len(shards), pl.UInt32)))
            shards.append(Shard(folder, str(start)))
        index = pl.concat(frames).sort("row").with_columns(pl.col("part").cast(pl.Enum(PARTS)))
        params = DataParams.model_validate({"sources": "-", "steps": steps})
        built = Built(
            params, seed, (), tuple(shards), index.select("row", "shard", "part", "stated", "parent"),
            pl.DataFrame(schema=dropped_schema()),
        )  # fmt: skip
        site = Site(folder / "work", Crew(1, "local", Events()), Around(seed, folder, folder / "cache", True), 1 << 20)
        stages = segments(params.steps)
        for segment in stages:
            built = through(built, segment, site, last=False)
        return After(rows_left(built), built.dropped, built.reports)


def rows_left(built: Built) -> Batch:
    """Everything that is still in, by id."""
    found = [
        shard.open().only(built.index.filter(pl.col("shard") == number).select("row", pl.col("part").cast(pl.String)))
        for number, shard in enumerate(built.shards)
    ]
    rows, pieces = pl.concat([b.rows for b in found]), pl.concat([b.pieces for b in found])
    return Batch(rows.sort("row"), pieces.sort("row", "slot"))


def cleaner(use: str, **params: Any) -> Any:
    """The settings of a step."""
    return operators("cleaner")[use].params(**params)
