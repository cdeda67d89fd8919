"""What lies beside the tables of a dataset: rejected and dropped rows, figures and notes of the steps."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from inhouse.core.plugins import operator_of
from inhouse.data.batch import read_frame
from inhouse.data.build import Built
from inhouse.data.finish import hexadecimal
from inhouse.data.segments import MIX_STEP, SHAPE_STEP, Step
from inhouse.dataset import write_table, write_table_of

if TYPE_CHECKING:
    import polars as pl

REJECTED = "rejected.jsonl"
DROPPED = "dropped.parquet"
FILES = "files.parquet"
FIGURES = "figures"
NOTES = "notes"
STRETCH_ROWS = 2**18  # rows of figures that are held at once


def write(built: Built, out: Path) -> None:
    """Write rejected.jsonl, dropped.parquet, and a table per step that has figures or notes.

    All are ordered by id; none holds a value that a step was to remove.
    """
    with (out / REJECTED).open("w", encoding="utf-8", newline="\n") as f:
        f.writelines(built.rejects())
    write_table(dropped_table(built), out / DROPPED)
    if any(len(source.located.files) > 1 for source in built.sources):
        write_table(files_table(built), out / FILES)
    for kind in (FIGURES, NOTES):
        for place, params in enumerate(built.params.steps):
            label = Step(place, params).label
            frames = [
                read_frame(path) for done in built.passes for task in done
                if (path := task.folder / f"{label}.{kind}.arrow").exists()
            ]  # fmt: skip
            if frames:
                (out / kind).mkdir(exist_ok=True)
                schema = _named(frames[0].clear()).schema
                write_table_of(_by_id(frames), schema, out / kind / f"{label}.parquet")


def files_table(built: Built) -> pl.DataFrame:
    """Every file of the sources: source, file, content (of which the ids of its rows are made)."""
    import polars as pl

    every = [
        (source.located.params.name, name, content)
        for source in built.sources
        for (name, _), content in zip(source.located.files, source.located.contents, strict=True)
    ]
    return pl.DataFrame(every, schema=dict.fromkeys(("source", "file", "content"), pl.String), orient="row")


def dropped_table(built: Built) -> pl.DataFrame:
    """Every dropped row: id, source, file, offset, step, number (place from 1; 0: no step of the project), reason,
    kept (id of the row that stays instead)."""
    import polars as pl

    names = {place: operator_of("cleaner", step).name for place, step in enumerate(built.params.steps)}
    names |= {SHAPE_STEP: "shape", MIX_STEP: "mix"}
    found = built.dropped.sort("source", "file", "offset", "row")
    return found.select(
        hexadecimal(found["row"]).alias("id"), "source", "file", "offset",
        pl.col("step").replace_strict(names, return_dtype=pl.String).alias("step"),
        (pl.col("step") + 1).clip(0).alias("number"), "reason", hexadecimal(found["kept"]).alias("kept"),
    )  # fmt: skip


def _by_id(frames: list[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """What all shards say, ordered by id, a stretch of ids at a time."""
    import numpy as np
    import polars as pl

    ordered = [frame if frame["row"].is_sorted() else frame.sort("row", maintain_order=True) for frame in frames]
    rows = [frame["row"].to_numpy() for frame in ordered]
    count = max(1, ceil(sum(map(len, rows)) / STRETCH_ROWS))
    starts = [0] * len(rows)
    for number in range(1, count + 1):
        bound = np.uint64((number << 64) // count - 1)
        ends = [int(ids.searchsorted(bound, side="right")) for ids in rows]
        cut = [frame.slice(s, e - s) for frame, s, e in zip(ordered, starts, ends, strict=True)]
        yield _named(pl.concat(cut).sort("row", maintain_order=True))
        starts = ends


def _named(frame: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    return frame.select(hexadecimal(frame["row"]).alias("id"), pl.exclude("row"))


def train_labels(built: Built) -> set[str | None]:
    """Labels of the training part; None for rows without one."""
    import polars as pl

    found: set[str | None] = set()
    train = built.index.filter(pl.col("part") == "train")
    for number in train["shard"].unique():
        shard = built.shards[number]
        rows = read_frame(shard.folder / f"{shard.name}.rows.arrow", "row", "label")
        found |= set(rows.join(train.select("row"), on="row", how="semi")["label"].unique())
    return found
