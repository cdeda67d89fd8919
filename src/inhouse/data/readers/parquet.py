"""Read Parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from inhouse.core.params import Params
from inhouse.core.plugins import require
from inhouse.data.readers.bytes import packing, seekable
from inhouse.data.records import Damaged, Record, Reject, Span, excerpt
from inhouse.data.shapes.draft import without_nulls

SUFFIXES = (".parquet",)
BATCH_BYTES = 8 * 2**20  # of the file, packed; text unpacks to two or three times that
BATCH_ROWS = 8192
FEW_ROWS = 128  # about a page of text
MAGIC = b"PAR1"


class ParquetReader(Params):
    """All columns of a Parquet file; lists and structs arrive as lists and objects."""

    use: Literal["parquet"] = "parquet"


def read(path: Path, params: ParquetReader, span: Span | None = None) -> Iterator[Record | Reject]:
    """The rows of the file, or of a span of it, in order and in batches.

    What cannot be decoded is rejected row by row, and what stands around it is read. One reject stands for a file
    without its end, where Parquet keeps what all the rest means.
    """
    require("data", "polars")
    with ExitStack() as stack:
        try:
            path = seekable(path, stack)
            rows = _rows(path)
        except Damaged as damage:
            yield damage.at(0)
            return
        start, end = (span.start, span.end) if span and span.end else (0, rows)
        step = _batch_rows(path, rows)
        for first in range(start, end, step):
            yield from _batch(path, first, min(step, end - first))


def cut(path: Path, params: ParquetReader, span_bytes: int) -> list[Span]:
    """Spans of whole batches, of about `span_bytes` of the file; `start` and `end` count rows."""
    require("data", "polars")
    try:
        if packing(path) is not None:
            return [Span(0, 0, 0)]
        rows = _rows(path)
    except Damaged:
        return [Span(0, 0, 0)]  # read says why
    step = _batch_rows(path, rows)
    step *= max(1, round(span_bytes * rows / max(path.stat().st_size, 1) / step))
    return [Span(first, min(first + step, rows), first) for first in range(0, rows, step)] or [Span(0, 0, 0)]


def _rows(path: Path) -> int:
    """How many rows the footer promises. Raises Damaged when there is no footer."""
    import polars as pl

    size = path.stat().st_size
    if not size:
        raise Damaged("damaged", "0 bytes")
    with path.open("rb") as f:
        head = f.read(4)
        f.seek(max(size - 4, 0))
        tail = f.read(4)
    if head == MAGIC and tail != MAGIC:
        raise Damaged("truncated", "no footer")
    try:
        scan = pl.scan_parquet(path)
        rows = int(scan.select(pl.len()).collect().item())
        if rows > size and scan.slice(rows - 1, 1).collect().height != 1:  # rows of less than a byte: is there a last?
            raise Damaged("damaged", f"{rows} rows in {size} bytes")
        return rows
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise Damaged("damaged", _first_line(error)) from None


def _batch_rows(path: Path, rows: int) -> int:
    return max(1, min(BATCH_ROWS, BATCH_BYTES * rows // max(path.stat().st_size, 1)))


def _batch(path: Path, first: int, count: int) -> Iterator[Record | Reject]:
    """Rows from `first` on; a part that cannot be decoded is halved down to FEW_ROWS to save what is around it."""
    import polars as pl

    try:
        frame = pl.scan_parquet(path).slice(first, count).collect()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        if count > FEW_ROWS:
            yield from _batch(path, first, count // 2)
            yield from _batch(path, first + count // 2, count - count // 2)
        else:
            yield from (Reject(first + row, None, "damaged", excerpt(_first_line(error))) for row in range(count))
        return
    filled = [name for name, kind in frame.schema.items() if kind.is_nested() and "'arguments'" in str(kind)]
    for offset, fields in enumerate(frame.iter_rows(named=True), first):
        yield Record(offset, {**fields, **{name: without_nulls(fields[name]) for name in filled}} if filled else fields)
    for row in range(frame.height, count):
        yield Reject(first + row, None, "truncated", "the footer promises more rows")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
