"""Vote for a label where a word occurs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from inhouse.core.messages import text as say
from inhouse.core.params import Params
from inhouse.data.label.rules.words import holding, pattern_of

if TYPE_CHECKING:
    import polars as pl


class KeywordRule(Params):
    """Vote where any of the words occurs, in either case. English words match whole words, Chinese ones anywhere."""

    use: Literal["keyword"] = "keyword"
    name: str | None = Field(None, min_length=1, description="name in the report; absent: made from the rule")
    label: str = Field(min_length=1, description="the label it votes for")
    any: tuple[str, ...] = Field(min_length=1, description="words or phrases, one of which must occur")
    unless: tuple[str, ...] = Field((), description="words or phrases, none of which may occur")
    weight: float = Field(1.0, gt=0, description="what a vote counts with `decide: weights`")

    @field_validator("any", "unless")
    @classmethod
    def _not_blank(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        if not all(word.strip() for word in words):
            raise ValueError(say("problem.blank_word"))
        return tuple(word.strip() for word in words)


def votes(rows: pl.DataFrame, params: KeywordRule) -> pl.Series:
    """The label where a word occurs, else null."""
    import polars as pl

    hit = holding(rows["text"], pattern_of(params.any))
    if params.unless:
        hit &= ~holding(rows["text"], pattern_of(params.unless))
    return pl.select(pl.when(hit).then(pl.lit(params.label)).alias("vote")).to_series()
