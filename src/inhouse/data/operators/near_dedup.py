"""Keep one of the documents that are nearly equal, or keep them all on one side of the split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from inhouse.core.params import Params
from inhouse.core.plugins import require
from inhouse.data.clusters import FIRST
from inhouse.data.operators.around import Around

if TYPE_CHECKING:
    import polars as pl

SHAPE = "reduce"


class NearDedup(Params):
    """Drop near duplicates: documents that share most of their runs of 8 letters or 5 Chinese characters.

    The row with the smallest id stays, a test row first; none is dropped that is not itself like a row that stays.
    Documents shorter than one run are left to `exact_dedup`.
    """

    use: Literal["near_dedup"] = "near_dedup"
    threshold: float = Field(0.7, ge=0.3, le=0.99, description="Jaccard similarity of two documents that is too much")
    action: Literal["drop", "group"] = Field(
        "drop", description="drop all but one; or keep all, those alike in one part unless the source stated another"
    )
    letters: int = Field(8, ge=2, le=20, description="letters of a run")
    characters: int = Field(5, ge=2, le=20, description="characters of a run in Chinese, Japanese and Korean")
    hashes: int = Field(112, ge=16, le=512, description="MinHash permutations; more find more and take longer")


def moves(params: NearDedup) -> bool:
    """Whether rows change sides, so that steps behind it must look again."""
    return params.action == "group"


def emit(docs: pl.DataFrame, params: NearDedup, around: Around) -> pl.DataFrame:
    """The row's part, whether its source stated it, and a key (u32) per band: about 110 bytes a row."""
    require("data", "numba", "numpy")
    from inhouse.data.clusters import band_columns

    keys = band_columns(docs["text"], (params.letters, params.characters), params.threshold, params.hashes)
    return docs.select("row", "part").with_columns(_stated(docs), *keys)


def ask(emitted: pl.DataFrame, params: NearDedup, around: Around) -> pl.Series:
    """The rows that share a band with another."""
    from inhouse.data.clusters import sharing

    return sharing(emitted)


def emit_more(docs: pl.DataFrame, params: NearDedup, around: Around) -> pl.DataFrame:
    """A sketch of each document: 1 KiB a row."""
    from inhouse.data.clusters import sketch_column

    return docs.select("row").with_columns(sketch_column(docs["text"], (params.letters, params.characters)))


def decide(emitted: pl.DataFrame, params: NearDedup, around: Around, more: pl.DataFrame) -> pl.DataFrame:
    """Name the rows that resemble one that stays (near_duplicate, near_duplicate_of_<part>), or move rows together."""
    import numpy as np
    import polars as pl

    from inhouse.data.clusters import clusters

    grouping = params.action == "group"
    order = _order(grouping)
    places = more.select("row").with_row_index("sketch")  # the sketches themselves stay where they are: 1 KiB each
    candidates = emitted.join(places, on="row", how="inner").sort(*order, "row")
    drawn = np.ascontiguousarray(more["sketch"].to_numpy())
    firsts = clusters(candidates, drawn, params.threshold, whole=grouping)
    first = candidates.select("row", "part")[firsts].rename({"row": "kept", "part": "part_kept"})
    found = pl.concat([candidates.select("row", "part", "stated"), first], how="horizontal")
    return _moved(found) if grouping else _dropped(found)


def _stated(docs: pl.DataFrame) -> pl.Series:
    import polars as pl

    return docs.get_column("stated", default=pl.repeat(False, docs.height, eager=True)).alias("stated")


def _order(grouping: bool) -> list[pl.Expr]:
    """What makes a row the first of its cluster, before its id.

    Where rows are moved, a test row does not come first by itself: the more rows a cluster has, the surer one of them
    would be in the test part, which would then get more than its share.
    """
    import polars as pl

    rank = pl.col("part").replace_strict(FIRST, return_dtype=pl.UInt8)
    return [pl.when("stated").then(rank).otherwise(9)] if grouping else [rank]


def _dropped(found: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    other = pl.concat_str(pl.lit("near_duplicate_of_"), pl.col("part_kept"))
    reason = pl.when(pl.col("part") != pl.col("part_kept")).then(other).otherwise(pl.lit("near_duplicate"))
    dropped = found.filter(pl.col("row") != pl.col("kept"))
    return dropped.select("row", reason.alias("reason"), "kept").sort("row")


def _moved(found: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    moved = found.filter((pl.col("part") != pl.col("part_kept")) & ~pl.col("stated"))
    nothing = [pl.lit(None, pl.String).alias("reason"), pl.lit(None, pl.UInt64).alias("kept")]
    return moved.select("row", *nothing, pl.col("part_kept").alias("part")).sort("row")
