"""The part of every row, from the keys that reading left."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from inhouse.core.errors import UserError
from inhouse.data.split import SplitParams, assign

if TYPE_CHECKING:
    import polars as pl


def decide_parts(index: pl.DataFrame, split: SplitParams) -> pl.Series:
    """Stated parts as they are, the others by their keys (columns: part or null, key, moment). Raises split.no_test."""

    open_rows = index["part"].is_null()
    if not open_rows.any():
        return index["part"]
    undecided = index.filter(open_rows)
    decided = assign(undecided["key"], split, undecided["moment"] if split.time else None)
    if split.test and not (decided == "test").any() and not (index["part"] == "test").any():
        rows = undecided["key"].n_unique()
        raise UserError("split.no_test", rows=rows, asked=f"{split.test:.1%}", least=ceil(1 / split.test))
    return index["part"].clone().scatter(open_rows.arg_true(), decided)
