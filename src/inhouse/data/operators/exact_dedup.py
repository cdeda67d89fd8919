"""Keep one of the documents that are equal, and none in the training part that the test part holds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Literal

from inhouse.core.params import Params
from inhouse.core.plugins import require
from inhouse.data.clusters import FIRST
from inhouse.data.operators.around import Around
from inhouse.data.shapes.calls import without_texts

if TYPE_CHECKING:
    import polars as pl

SHAPE = "reduce"


class ExactDedup(Params):
    """Drop exact duplicates, within parts and across them. The row with the smallest id stays, a test row first."""

    use: Literal["exact_dedup"] = "exact_dedup"


def emit(docs: pl.DataFrame, params: ExactDedup, around: Around) -> pl.DataFrame:
    """The 128-bit xxh3 of each text as two numbers, with the row's part and label."""
    return docs.select("row", "part", "label").with_columns(whole_hashes(whole_texts(docs)))


def whole_texts(docs: pl.DataFrame) -> pl.Series:
    """The text of each row; of rows about tools with what it does not tell: what is called, and what may be."""
    import polars as pl

    texts = docs["text"]
    if not any(name in docs.columns and docs[name].null_count() < docs.height for name in ("turns", "extra")):
        return texts
    turns, extra = docs["turns"], docs["extra"]
    return texts + pl.Series([_tools(*held) for held in zip(turns.to_list(), extra.to_list(), strict=True)])


def _tools(turns: str | None, extra: str | None) -> str:
    """What a row's turns call and may call (both as JSON), as far as its text does not tell; empty for most rows."""
    calls = [without_texts(turn["tool_calls"]) for turn in json.loads(turns or "[]") if turn.get("tool_calls")]
    tools = json.loads(extra or "{}").get("tools")
    return "\0" + json.dumps([calls, tools], sort_keys=True) if calls or tools else ""


def whole_hashes(texts: pl.Series) -> list[pl.Series]:
    """The 128-bit xxh3 of each text as two columns, `high` and `low`."""
    require("data", "numpy", "xxhash")
    import numpy as np
    import polars as pl
    import xxhash

    digests = b"".join(map(xxhash.xxh3_128_digest, texts.cast(pl.Binary).to_list()))
    halves = np.frombuffer(digests, ">u8").astype(np.uint64).reshape(-1, 2)
    return [pl.Series(name, halves[:, n]) for n, name in enumerate(("high", "low"))]


def decide(emitted: pl.DataFrame, params: ExactDedup, around: Around) -> pl.DataFrame:
    """Name every row but the kept: duplicate, duplicate_other_label (labels at odds) or duplicate_of_<part>."""
    import polars as pl

    rank = pl.col("part").replace_strict(FIRST, return_dtype=pl.UInt8)
    firsts = [pl.col(name).first().over("high", "low").alias(f"{name}_kept") for name in ("row", "part", "label")]
    ranked = emitted.sort("high", "low", rank, "row").with_columns(firsts)
    reason = (
        pl.when(pl.col("part") != pl.col("part_kept"))
        .then(pl.concat_str(pl.lit("duplicate_of_"), pl.col("part_kept")))
        .when(pl.col("label").ne_missing(pl.col("label_kept")))
        .then(pl.lit("duplicate_other_label"))
        .otherwise(pl.lit("duplicate"))
    )
    dropped = ranked.filter(pl.col("row") != pl.col("row_kept"))
    return dropped.select("row", reason.alias("reason"), pl.col("row_kept").alias("kept")).sort("row")
