"""Keep the same number of rows for every label."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from inhouse.core.errors import UserError
from inhouse.core.params import Params
from inhouse.core.plugins import require
from inhouse.data.operators.around import Around

if TYPE_CHECKING:
    import polars as pl

SHAPE = "reduce"


class PartCounts(Params):
    """Rows per label in each part; a part left out keeps all its rows."""

    train: int | None = Field(None, ge=1)
    valid: int | None = Field(None, ge=1)
    test: int | None = Field(None, ge=1)


class Balance(Params):
    """Keep at most so many rows of each label, chosen by a hash of the seed and the row's id."""

    use: Literal["balance"] = "balance"
    per_label: Annotated[int, Field(ge=1)] | PartCounts = Field(
        description="one number for every part, or part by part"
    )


def emit(docs: pl.DataFrame, params: Balance, around: Around) -> pl.DataFrame:
    """The row's part and label."""
    return docs.select("row", "part", "label")


def decide(emitted: pl.DataFrame, params: Balance, around: Around) -> pl.DataFrame:
    """over_quota for the rows that the hash puts last. Raises data.balance_labels when rows carry no label."""
    require("data", "numpy", "xxhash")
    import numpy as np
    import polars as pl
    import xxhash

    if emitted["label"].null_count():
        raise UserError("data.balance_labels", rows=emitted["label"].null_count())
    digests = (xxhash.xxh3_64_intdigest(f"{around.seed}:{row:016x}".encode()) for row in emitted["row"])
    lots = np.fromiter(digests, np.uint64, emitted.height)
    place = pl.struct("lot", "row").rank("ordinal").over("part", "label")
    quota = pl.col("part").replace_strict(_quotas(params), default=None, return_dtype=pl.UInt32)
    return (
        emitted.with_columns(pl.Series("lot", lots))
        .filter(place > quota)
        .select("row", pl.lit("over_quota").alias("reason"), pl.lit(None, pl.UInt64).alias("kept"))
        .sort("row")
    )


def _quotas(params: Balance) -> dict[str, int | None]:
    if isinstance(params.per_label, int):
        return {"train": params.per_label, "valid": params.per_label, "test": params.per_label}
    return {"train": params.per_label.train, "valid": params.per_label.valid, "test": params.per_label.test}
