"""Read Arrow files, as streams or with a footer: what the `datasets` library and many others write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from inhouse.core.params import Params
from inhouse.core.plugins import require
from inhouse.data.readers.bytes import seekable
from inhouse.data.records import Damaged, Record, Reject, excerpt
from inhouse.data.shapes.draft import without_nulls
from inhouse.sources.archive import LARGEST_RATIO, SMALL_BYTES

if TYPE_CHECKING:
    import pyarrow

SUFFIXES = (".arrow",)
ROWS = 1024  # made into Python values at a time
MAGIC = b"ARROW1"
END = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # of a stream


class ArrowReader(Params):
    """All columns of an Arrow file; lists and structs arrive as lists and objects."""

    use: Literal["arrow"] = "arrow"


def read(path: Path, params: ArrowReader) -> Iterator[Record | Reject]:
    """The rows of the file in order, one record batch in memory at a time.

    A row that cannot be decoded is rejected and what stands around it is read. What comes before a damage is read;
    one reject stands for the rest.
    """
    require("arrow", "pyarrow")
    offset = 0
    with ExitStack() as stack:
        try:
            for batch in _batches(path, stack):
                for first in range(0, batch.num_rows, ROWS):
                    yield from _rows(batch.slice(first, ROWS), offset + first)
                offset += batch.num_rows
        except Damaged as damage:
            yield damage.at(offset)


def _batches(path: Path, stack: ExitStack) -> Iterator[pyarrow.RecordBatch]:
    """The record batches. Raises Damaged where the file cannot be read on."""
    import pyarrow as pa

    path = seekable(path, stack)
    try:
        size = path.stat().st_size
        with path.open("rb") as f:
            head = f.read(len(MAGIC))
            f.seek(max(size - len(END), 0))
            tail = f.read()
        if not size:
            return
        source = stack.enter_context(pa.memory_map(str(path)))
        yield from _checked(_footed(source, tail) if head == MAGIC else _streamed(source), size)
    except (pa.ArrowException, OSError) as error:
        raise Damaged(*_told(error)) from None
    if head != MAGIC and tail != END:
        raise Damaged("truncated", "no end of the stream")


def _told(error: BaseException) -> tuple[Literal["damaged", "unreadable"], str]:
    if isinstance(error, OSError) and error.errno:
        return "unreadable", error.strerror or str(error)
    return "damaged", (str(error).splitlines() or [type(error).__name__])[0]


def _footed(source: pyarrow.NativeFile, tail: bytes) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow as pa

    if not tail.endswith(MAGIC):
        raise Damaged("truncated", "no footer")
    with pa.ipc.open_file(source) as reader:
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


def _streamed(source: pyarrow.NativeFile) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow as pa

    with pa.ipc.open_stream(source) as reader:
        yield from reader


def _checked(batches: Iterator[pyarrow.RecordBatch], size: int) -> Iterator[pyarrow.RecordBatch]:
    """The batches whose columns have names of their own, and no more rows than a file of this size can hold."""
    for batch in batches:
        if len(set(batch.schema.names)) < len(batch.schema.names):
            raise Damaged("bad_header", f"columns: {', '.join(batch.schema.names)}")
        if batch.num_rows > max(SMALL_BYTES, LARGEST_RATIO * size):
            raise Damaged("damaged", f"{batch.num_rows} rows in {size} bytes")
        yield batch


def _rows(batch: pyarrow.RecordBatch, first: int) -> Iterator[Record | Reject]:
    """The rows from `first` on; a batch that cannot be decoded is halved until only bad rows are lost."""
    import pyarrow as pa

    try:
        batch.validate(full=True)  # its offsets are believed when values are made of them
        rows: list[dict[str, Any]] = batch.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError, LookupError) as error:
        half = batch.num_rows // 2
        if half:
            yield from _rows(batch.slice(0, half), first)
            yield from _rows(batch.slice(half), first + half)
        else:
            yield Reject(first, None, "damaged", excerpt(_told(error)[1]))
        return
    filled = [f.name for f in batch.schema if pa.types.is_nested(f.type) and "arguments" in str(f.type)]
    for offset, row in enumerate(rows, first):
        yield Record(offset, {**row, **{name: without_nulls(row[name]) for name in filled}})
