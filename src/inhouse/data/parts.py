"""The part of every row, from the keys that reading left."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, get_args

from inhouse.core.errors import UserError
from inhouse.core.rows import Part
from inhouse.data.split import SplitParams, assign

if TYPE_CHECKING:
    import polars as pl

PARTS: tuple[Part, ...] = get_args(Part)


def decide_parts(index: pl.DataFrame, split: SplitParams) -> pl.Series:
    """Stated parts as they are, the others by their keys (columns: part or null, key, moment). Raises split.no_test."""
    import polars as pl

    open_rows = index["part"].is_null()
    if not open_rows.any():
        return index["part"]
    undecided = index.filter(open_rows)
    keys = undecided["key"].to_list()
    moments = undecided["moment"].to_list() if split.time else None
    decided = pl.Series(assign(keys, split, moments), dtype=pl.String)
    if split.test and "test" not in decided and "test" not in index["part"].drop_nulls():
        raise UserError("split.no_test", rows=len(set(keys)), asked=f"{split.test:.1%}", least=ceil(1 / split.test))
    parts = index["part"].to_list()
    found = iter(decided)
    return pl.Series("part", [next(found) if part is None else part for part in parts], dtype=pl.String)
