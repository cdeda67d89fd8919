"""Read Parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from inhouse.core.errors import UserError
from inhouse.core.params import Params
from inhouse.core.plugins import require
from inhouse.data.records import Record, Reject

SUFFIXES = (".parquet",)
BATCH_ROWS = 8192


class ParquetReader(Params):
    """All columns of a Parquet file; lists and structs arrive as lists and objects."""

    use: Literal["parquet"] = "parquet"


def read(path: Path, params: ParquetReader) -> Iterator[Record | Reject]:
    """The rows of the file, in order. Raises data.unreadable when the file is broken."""
    require("data", "polars")
    import polars as pl

    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError("data.unreadable", path=path.name, problem=str(error).splitlines()[0]) from None
    offset = 0
    for batch in frame.iter_slices(BATCH_ROWS):
        for fields in batch.iter_rows(named=True):
            yield Record(offset, fields)
            offset += 1
