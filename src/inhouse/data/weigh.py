"""Measure the rows that are left and choose those of the mix."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inhouse.data.batch import read_frame, write_frame
from inhouse.data.build import Built, Site, by_shard, places, tracked, write_scratch
from inhouse.data.mix import MixParams, mix, report, tokens_of
from inhouse.data.segments import MIX_STEP, Shard
from inhouse.data.tasks import Finished, finished, publish

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class WeighTask:
    """Rows of one shard whose size is wanted."""

    folder: Path
    shard: Shard
    alive: Path
    params: MixParams
    project_dir: Path


def weigh_shard(task: WeighTask) -> Finished:
    """Source, part, characters and tokens of every row."""
    import polars as pl

    if done := finished(task.folder):
        return done
    with publish(task.folder) as (out, _):
        docs = task.shard.open().only(read_frame(task.alive)).docs()
        sizes = docs.select("row", "source", "part", chars=pl.col("text").str.len_chars().cast(pl.Int64))
        if task.params.by == "tokens":
            sizes = sizes.with_columns(tokens_of(docs["text"], task.params, task.project_dir).alias("tokens"))
        write_frame(sizes, out / "sizes.arrow")
    return finished(task.folder)  # type: ignore[return-value]


@dataclass(frozen=True)
class Mixed:
    """A build less the rows that the mix leaves out, how often the others are written, and what the mix became."""

    built: Built
    copies: pl.DataFrame  # row, copies u32; the training part
    report: dict[str, Any]


def mixed(built: Built, params: MixParams, site: Site) -> Mixed:
    """Choose the rows of the training part. Raises data.mix_*."""
    import polars as pl

    folder = site.folder / "mix"
    tasks = []
    for number, alive in by_shard(built.index):
        path = folder / f"{number:05d}.alive.arrow"
        write_scratch(alive, path)
        shard = built.shards[number]
        tasks.append(WeighTask(folder / f"{number:05d}", shard, path, params, site.around.project_dir))
    weighed = tracked(site, weigh_shard, tasks, [task.shard.megabytes for task in tasks], "mix")
    rows = pl.concat([read_frame(result.folder / "sizes.arrow") for result in weighed]).sort("row")
    copies = mix(rows, params, site.around.seed)
    out = copies.filter(pl.col("copies") == 0).select("row", reason=pl.lit("not_in_mix"), kept=pl.lit(None, pl.UInt64))
    left = replace(
        built,
        index=built.index.join(out, on="row", how="anti", maintain_order="left"),
        dropped=pl.concat([built.dropped, places(built, out, MIX_STEP)]),
    )
    return Mixed(left, copies, report(rows, copies, params).model_dump(mode="json"))
