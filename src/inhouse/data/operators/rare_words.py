"""Find words that hardly ever occur, and drop documents that are full of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from inhouse.core.params import Params
from inhouse.data.operators.around import Around
from inhouse.data.segment import keys_of, words_of

if TYPE_CHECKING:
    import polars as pl

SHAPE = "reduce"
SHOWN = 50  # words named in the report


class RareWords(Params):
    """Count words over all documents and report those seen fewer than `min_count` times.

    Words are Unicode words, Chinese ones are cut by jieba. Names and terms are rare too: look at the report before
    dropping anything.
    """

    use: Literal["rare_words"] = "rare_words"
    min_count: int = Field(3, ge=2, description="words seen fewer times are rare")
    action: Literal["report", "drop_documents"] = Field("report", description="what to do besides counting")
    max_share: float = Field(
        0.5, ge=0, lt=1, description="drop_documents: share of a document's words that may be rare"
    )
    lower_case: bool = Field(True, description="count The and the as one word")


def emit(docs: pl.DataFrame, params: RareWords, around: Around) -> pl.DataFrame:
    """row, key of a word, count. For a report one row stands for all of its batch, which keeps the table small."""
    import polars as pl

    counts = _counts(docs, params, around)
    if params.action == "drop_documents":
        return counts.select("row", "key", "count")
    whole = counts.group_by("key").agg(pl.col("row").min(), pl.col("count").sum())
    return whole.select("row", "key", "count").sort("row", "key")


def ask(emitted: pl.DataFrame, params: RareWords, around: Around) -> pl.Series:
    """Rows that hold the rarest words, at most one for each word of the report."""
    return _rarest(emitted, params)["row"].unique().sort()


def emit_more(docs: pl.DataFrame, params: RareWords, around: Around) -> pl.DataFrame:
    """row, key, word: the words of the few rows that were asked for."""
    return _counts(docs, params, around).select("row", "key", "word")


def decide(emitted: pl.DataFrame, params: RareWords, around: Around, more: pl.DataFrame) -> pl.DataFrame:
    """rare_words for documents above the share of rare words; for a report none."""
    import polars as pl

    if params.action == "report":
        emitted = emitted.clear()
    rare = pl.col("count").sum().over("key") < params.min_count
    shares = (
        emitted.with_columns(rare.alias("rare"))
        .group_by("row")
        .agg(((pl.col("count") * pl.col("rare")).sum() / pl.col("count").sum()).alias("share"))
    )
    dropped = shares.filter(pl.col("share") > params.max_share)
    nothing = pl.lit(None, pl.UInt64).alias("kept")
    return dropped.select("row", pl.lit("rare_words", pl.String).alias("reason"), nothing).sort("row")


def report(emitted: pl.DataFrame, params: RareWords, around: Around, more: pl.DataFrame) -> dict[str, Any]:
    """Words in all, different ones, rare ones, and the rarest with their counts."""
    import polars as pl

    totals = emitted.group_by("key").agg(pl.col("count").sum())
    named = _rarest(emitted, params).join(more.select("key", "word").unique("key"), on="key", how="inner")
    return {
        "words": int(totals["count"].sum()),
        "distinct": totals.height,
        "rare": totals.filter(pl.col("count") < params.min_count).height,
        "rarest": dict(named.sort("count", "word").select("word", "count").iter_rows()),
    }


def _rarest(emitted: pl.DataFrame, params: RareWords) -> pl.DataFrame:
    """key, count and a row of the rarest words; which of equally rare ones is left to their hash, a fair draw."""
    import polars as pl

    totals = emitted.group_by("key").agg(pl.col("count").sum(), pl.col("row").min())
    return totals.filter(pl.col("count") < params.min_count).sort("count", "key").head(SHOWN)


def _counts(docs: pl.DataFrame, params: RareWords, around: Around) -> pl.DataFrame:
    """row, word, key and count, sorted by row and key."""
    import polars as pl

    texts = docs["text"].str.to_lowercase() if params.lower_case else docs["text"]
    found = words_of(texts, around.cache).group_by("doc", "word").agg(pl.len().alias("count").cast(pl.UInt32))
    words = found["word"].unique()
    keyed = found.join(pl.DataFrame({"word": words, "key": keys_of(words)}), on="word", how="left")
    rows = docs.select("row").with_row_index("doc")
    return keyed.join(rows, on="doc", how="left").select("row", "word", "key", "count").sort("row", "key")
