"""Vote for a label by what another column says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from inhouse.core.errors import UserError
from inhouse.core.params import Params

if TYPE_CHECKING:
    import polars as pl


class ColumnRule(Params):
    """Vote by the value of a column, such as a star rating or a folder's name."""

    use: Literal["column"] = "column"
    name: str | None = Field(None, min_length=1, description="name in the report; absent: made from the rule")
    column: str = Field(min_length=1, description="column of the source")
    labels: dict[str, str] = Field(
        min_length=1, description="value -> the label it votes for; other values do not vote"
    )
    weight: float = Field(1.0, gt=0, description="what a vote counts with `decide: weights`")


def votes(rows: pl.DataFrame, params: ColumnRule) -> pl.Series:
    """The label that belongs to the row's value, else null. Raises label.no_column."""
    import polars as pl

    if params.column not in rows.columns:
        raise UserError("label.no_column", column=params.column, found=", ".join(sorted(rows.columns)))
    return rows[params.column].replace_strict(params.labels, default=None, return_dtype=pl.String).alias("vote")
