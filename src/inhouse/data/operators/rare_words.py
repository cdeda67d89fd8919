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
    """Of each word of the batch the first row that holds it, its key, and its count: 24 bytes a different word."""
    return combine(_counts(docs, params, around).select("row", "key", "count"), params)


def combine(emitted: pl.DataFrame, params: RareWords) -> pl.DataFrame:
    """Several batches as one, so that what is held grows with the vocabulary and not with the texts."""
    import polars as pl

    whole = emitted.group_by("key").agg(pl.col("row").min(), pl.col("count").sum())
    return whole.select("row", "key", "count").sort("key")


def ask(emitted: pl.DataFrame, params: RareWords, around: Around) -> tuple[pl.Series | None, pl.DataFrame]:
    """The rows that hold the rarest words, or all to be judged; with the keys of these words and of all rare ones."""
    import polars as pl

    rarest = _rarest(emitted, params)
    judged = params.action == "drop_documents"
    rare = emitted.filter((pl.col("count") < params.min_count) & judged)["key"].sort()
    keys = [
        pl.Series(name, [values], dtype=pl.List(pl.UInt64))
        for name, values in (("rare", rare), ("named", rarest["key"]))
    ]
    return None if judged else rarest["row"].unique().sort(), pl.DataFrame(keys)


def emit_more(docs: pl.DataFrame, params: RareWords, around: Around, asked: pl.DataFrame) -> pl.DataFrame:
    """row, key and word of the rarest words; row and share of the documents that hold too many rare ones."""
    import polars as pl

    counts = _counts(docs, params, around)
    named = counts.filter(pl.col("key").is_in(asked["named"][0].implode())).select("row", "key", "word")
    rare = _among(counts["key"], asked["rare"][0]).alias("rare")
    inside = (pl.col("count") * pl.col("rare")).sum() / pl.col("count").sum()
    shares = counts.with_columns(rare).group_by("row").agg(inside.alias("share"))
    return pl.concat([named, shares.filter(pl.col("share") > params.max_share).sort("row")], how="diagonal")


def _among(keys: pl.Series, known: pl.Series) -> pl.Series:
    """Which keys stand in an ordered list: by bisection, for a table of all of it would be built for every batch."""
    import polars as pl

    if known.is_empty():
        return pl.repeat(False, len(keys), eager=True)
    ordered = known.to_numpy()
    places = ordered.searchsorted(keys.to_numpy()).clip(max=len(ordered) - 1)
    return pl.Series(ordered[places] == keys.to_numpy())


def decide(emitted: pl.DataFrame, params: RareWords, around: Around, more: pl.DataFrame) -> pl.DataFrame:
    """rare_words for documents above the share of rare words; for a report none."""
    import polars as pl

    dropped = more.filter(pl.col("share").is_not_null())
    nothing = pl.lit(None, pl.UInt64).alias("kept")
    return dropped.select("row", pl.lit("rare_words", pl.String).alias("reason"), nothing).sort("row")


def report(emitted: pl.DataFrame, params: RareWords, around: Around, more: pl.DataFrame) -> dict[str, Any]:
    """Words in all, different ones, rare ones, and the rarest with their counts."""
    import polars as pl

    named = _rarest(emitted, params).join(more.drop_nulls("word").select("key", "word").unique("key"), on="key")
    return {
        "words": int(emitted["count"].sum()),
        "distinct": emitted.height,
        "rare": emitted.filter(pl.col("count") < params.min_count).height,
        "rarest": dict(named.sort("count", "word").select("word", "count").iter_rows()),
    }


def _rarest(emitted: pl.DataFrame, params: RareWords) -> pl.DataFrame:
    """key, count and a row of the rarest words; which of equally rare ones is left to their hash, a fair draw."""
    import polars as pl

    rare = emitted.filter(pl.col("count") < params.min_count)
    return rare.sort("count", "key").head(SHOWN)


def _counts(docs: pl.DataFrame, params: RareWords, around: Around) -> pl.DataFrame:
    """row, word, key and count, sorted by row and key."""
    import polars as pl

    texts = docs["text"].str.to_lowercase() if params.lower_case else docs["text"]
    found = words_of(texts).group_by("doc", "word").agg(pl.len().alias("count").cast(pl.UInt64))
    words = found["word"].unique()
    keyed = found.join(pl.DataFrame({"word": words, "key": keys_of(words)}), on="word", how="left")
    rows = docs.select("row").with_row_index("doc")
    return keyed.join(rows, on="doc", how="left").select("row", "word", "key", "count").sort("row", "key")
