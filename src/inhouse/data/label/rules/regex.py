"""Vote for a label where a pattern matches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from inhouse.core.params import Params
from inhouse.data.label.rules.words import holding

if TYPE_CHECKING:
    import polars as pl


class RegexRule(Params):
    """Vote where any of the patterns matches somewhere. Linear-time syntax as RE2's: no look-around."""

    use: Literal["regex"] = "regex"
    name: str | None = Field(None, min_length=1, description="name in the report; absent: made from the rule")
    label: str = Field(min_length=1, description="the label it votes for")
    any: tuple[str, ...] = Field(min_length=1, description="patterns, one of which must match; (?i) ignores case")
    unless: tuple[str, ...] = Field((), description="patterns, none of which may match")
    weight: float = Field(1.0, gt=0, description="what a vote counts with `decide: weights`")


def votes(rows: pl.DataFrame, params: RegexRule) -> pl.Series:
    """The label where a pattern matches, else null."""
    import polars as pl

    hit = _any(rows["text"], params.any)
    if params.unless:
        hit &= ~_any(rows["text"], params.unless)
    return pl.select(pl.when(hit).then(pl.lit(params.label)).alias("vote")).to_series()


def _any(texts: pl.Series, patterns: tuple[str, ...]) -> pl.Series:
    hit = holding(texts, patterns[0])
    for pattern in patterns[1:]:
        hit |= holding(texts, pattern)
    return hit
