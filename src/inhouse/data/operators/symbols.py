"""Drop documents that are not made of running text: symbols, lists, cut-off lines, no common words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from inhouse.core.params import Params
from inhouse.core.plugins import require
from inhouse.data.operators.around import Around

if TYPE_CHECKING:
    import polars as pl

SHAPE = "keep"
WIDE_CHARS_PER_WORD = 2  # Chinese words have 1.5-2 characters on average, so that rates per word stay comparable


class Symbols(Params):
    """Keep documents that look like running text, by the quality rules of Gopher (Rae et al. 2021, appendix A.1.1).

    Text of Han characters or kana is judged by shares of characters instead of by words: 3 in 10 letters decide.
    A rule set to null is not applied.
    """

    use: Literal["symbols"] = "symbols"
    max_hash_ratio: float | None = Field(0.1, ge=0, description="'#' per word")
    max_ellipsis_ratio: float | None = Field(0.1, ge=0, description="'...' and '…' per word")
    max_bullet_lines: float | None = Field(0.9, ge=0, le=1, description="share of lines that begin with a bullet")
    max_ellipsis_lines: float | None = Field(0.3, ge=0, le=1, description="share of lines that end with an ellipsis")
    min_letter_words: float | None = Field(
        0.8, ge=0, le=1, description="share of words with a letter; not for Chinese and Japanese"
    )
    min_mean_word_chars: float | None = Field(3, ge=0, description="mean word length; not for Chinese and Japanese")
    max_mean_word_chars: float | None = Field(10, ge=1, description="mean word length; not for Chinese and Japanese")
    min_letters: float | None = Field(
        0.5, ge=0, le=1, description="share of letters among visible characters; for Chinese and Japanese only"
    )
    max_marks: float | None = Field(
        0.4, ge=0, le=1, description="share of punctuation and symbols among visible characters; Chinese and Japanese"
    )
    max_digits: float | None = Field(None, ge=0, le=1, description="share of digits among visible characters")
    min_stop_words: int | None = Field(
        2, ge=1, description="different function words of one language, for Latin, Cyrillic, Han and kana"
    )
    stop_words_from: int = Field(
        50, ge=1, description="words from which function words are expected; the paper drops shorter documents"
    )


def measure(docs: pl.DataFrame, params: Symbols, around: Around) -> pl.DataFrame:
    """script (wide, latin, cyrillic, other), words, and the shares and rates that the rules judge."""
    require("data", "numba")
    import polars as pl

    from inhouse.data.kernels import gopher
    from inhouse.data.kernels.buffers import flat
    from inhouse.data.kernels.kinds import kinds
    from inhouse.data.lexicons import word_lists

    stops = gopher.stop_table(tuple(word_lists("function_words").values()))
    counts = gopher.made_of(*flat(docs["text"]), kinds(), stops)
    names = ("visible", "letters", "wide", "latin", "cyrillic", "digits", "marks", "words", "word_chars")
    more = ("letter_words", "hashes", "ellipses", "lines", "bullet_lines", "ellipsis_lines", "stop_words")
    columns = dict(zip((*names, *more), counts.T[gopher.VISIBLE :], strict=True))
    return _figures(pl.DataFrame(columns))


def _figures(counts: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    def share(part: str, whole: str) -> pl.Expr:
        return (pl.col(part) / pl.col(whole).clip(1)).round(6)

    narrow = pl.col("letters") - pl.col("wide")
    script = (
        pl.when((pl.col("wide") > 0) & (pl.col("wide") * 10 >= pl.col("letters") * 3))
        .then(pl.lit("wide"))
        .when((pl.col("latin") > 0) & (pl.col("latin") * 2 >= narrow))
        .then(pl.lit("latin"))
        .when((pl.col("cyrillic") > 0) & (pl.col("cyrillic") * 2 >= narrow))
        .then(pl.lit("cyrillic"))
        .otherwise(pl.lit("other"))
    )
    words = pl.col("words") + pl.col("wide") // WIDE_CHARS_PER_WORD
    return counts.with_columns(script.alias("script"), words.alias("all_words")).select(
        "script",
        pl.col("all_words").alias("words"),
        share("hashes", "all_words").alias("hash_ratio"),
        share("ellipses", "all_words").alias("ellipsis_ratio"),
        share("bullet_lines", "lines").alias("bullet_lines"),
        share("ellipsis_lines", "lines").alias("ellipsis_lines"),
        share("letter_words", "words").alias("letter_words"),
        share("word_chars", "words").alias("mean_word_chars"),
        share("letters", "visible").alias("letters"),
        share("marks", "visible").alias("marks"),
        share("digits", "visible").alias("digits"),
        "stop_words",
    )


def drop_reason(figures: pl.DataFrame, params: Symbols) -> pl.Series:
    """The first rule that a document breaks, null = keep."""
    import polars as pl

    wide = pl.col("script") == "wide"
    always, spaced = pl.lit(True), ~wide
    wordy = (pl.col("script") != "other") & (pl.col("words") >= params.stop_words_from)
    rules: list[tuple[str, pl.Expr, str, float | None, bool]] = [
        ("many_hashes", always, "hash_ratio", params.max_hash_ratio, True),
        ("many_ellipses", always, "ellipsis_ratio", params.max_ellipsis_ratio, True),
        ("many_bullets", always, "bullet_lines", params.max_bullet_lines, True),
        ("many_cut_lines", always, "ellipsis_lines", params.max_ellipsis_lines, True),
        ("few_letter_words", spaced, "letter_words", params.min_letter_words, False),
        ("short_words", spaced, "mean_word_chars", params.min_mean_word_chars, False),
        ("long_words", spaced, "mean_word_chars", params.max_mean_word_chars, True),
        ("few_letters", wide, "letters", params.min_letters, False),
        ("many_marks", wide, "marks", params.max_marks, True),
        ("many_digits", always, "digits", params.max_digits, True),
        ("few_stop_words", wordy, "stop_words", params.min_stop_words, False),
    ]
    found = [
        pl.when(where & (pl.col(name) > limit if above else pl.col(name) < limit)).then(pl.lit(reason))
        for reason, where, name, limit, above in rules
        if limit is not None
    ]
    return figures.with_columns(pl.coalesce(*found, pl.lit(None, pl.String)).alias("reason"))["reason"]
