"""Keep documents whose length is in a range."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from inhouse.core.messages import text as say
from inhouse.core.params import Params
from inhouse.core.plugins import require
from inhouse.data.operators.around import Around

if TYPE_CHECKING:
    import polars as pl

SHAPE = "keep"


class Length(Params):
    """Drop documents that are too short or too long, all their texts counted together."""

    use: Literal["length"] = "length"
    min_words: int | None = Field(None, ge=1, description="words, separated by white space")
    max_words: int | None = Field(None, ge=1, description="words, separated by white space")
    min_chars: int = Field(1, ge=1, description="characters; for text without spaces, such as Chinese")
    max_chars: int | None = Field(None, ge=1, description="characters")

    @model_validator(mode="after")
    def _range_is_open(self) -> Length:
        for least, most in ((self.min_words, self.max_words), (self.min_chars, self.max_chars)):
            if least is not None and most is not None and least > most:
                raise ValueError(say("problem.empty_range", least=least, most=most))
        return self


def measure(docs: pl.DataFrame, params: Length, around: Around) -> pl.DataFrame:
    """words (separated by white space) and chars of each document."""
    require("data", "numba")
    import polars as pl

    from inhouse.data.kernels.buffers import flat
    from inhouse.data.kernels.space import count_words

    words = pl.Series("words", count_words(*flat(docs["text"])), dtype=pl.UInt32)
    return pl.DataFrame([words, docs["text"].str.len_chars().alias("chars")])


def drop_reason(figures: pl.DataFrame, params: Length) -> pl.Series:
    """too_short, too_long, or null = keep."""
    import polars as pl

    words, chars = pl.col("words"), pl.col("chars")
    short, long = chars < params.min_chars, pl.lit(False)
    if params.min_words is not None:
        short |= words < params.min_words
    if params.max_words is not None:
        long |= words > params.max_words
    if params.max_chars is not None:
        long |= chars > params.max_chars
    reason = pl.when(short).then(pl.lit("too_short")).when(long).then(pl.lit("too_long"))
    return figures.with_columns(reason.alias("reason"))["reason"]
