"""Bytes under every reader: whole files, pieces and lines, unpacked from gzip and Zstandard on the way."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from inhouse.core.plugins import require
from inhouse.data import records
from inhouse.data.records import Damaged, Span
from inhouse.sources.archive import LARGEST_RATIO, SMALL_BYTES

CHUNK = 1 << 20
MAX_FILE_BYTES = 1 << 30  # of a document that has to be in memory as a whole
PACKED = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd"}


def ending(path: Path) -> str:
    """The ending that says what a file holds, in small letters: `.jsonl` for a.jsonl and for a.jsonl.gz."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in PACKED else suffix


def packing(path: Path) -> str | None:
    """How the file is packed, `.gz` or `.zst`, by its first bytes; None when it is not. Raises Damaged."""
    try:
        with path.open("rb") as f:
            head = f.read(4)
    except OSError as error:
        raise Damaged("unreadable", error.strerror or str(error)) from None
    found = next((suffix for suffix, magic in PACKED.items() if head.startswith(magic)), None)
    named = path.suffix.lower()
    if found is None and head and named in PACKED:
        raise Damaged("truncated" if PACKED[named].startswith(head) else "damaged", f"no {named[1:]} data")
    return found


def chunks(path: Path, span: Span | None = None) -> Iterator[bytes]:
    """The bytes of a file, or of a span of an unpacked one, in pieces of about 1 MB.

    Everything before a damage is given; then Damaged is raised: truncated, damaged, zip_bomb or unreadable.
    """
    packed = packing(path)
    try:
        with path.open("rb") as f:
            if packed is None:
                yield from _plain(f, span)
            else:
                yield from _guarded(f, _gunzip(f) if packed == ".gz" else _unzstd(f))
    except OSError as error:
        raise Damaged("unreadable", error.strerror or str(error)) from None


def whole(path: Path) -> bytes:
    """The whole content of a file. Raises Damaged, also when it is larger than MAX_FILE_BYTES."""
    return joined(chunks(path))


def seekable(path: Path, stack: ExitStack) -> Path:
    """The file, or an unpacked copy of it that goes with the stack. Raises Damaged."""
    if packing(path) is None:
        return path
    copy = Path(stack.enter_context(TemporaryDirectory())) / path.stem
    with copy.open("wb") as f:
        f.writelines(chunks(path))
    return copy


def joined(pieces: Iterator[bytes]) -> bytes:
    """The pieces in one. Raises Damaged (file_too_large) when they are larger than MAX_FILE_BYTES."""
    found, size = [], 0
    for piece in pieces:
        size += len(piece)
        if size > MAX_FILE_BYTES:
            raise Damaged("file_too_large")
        found.append(piece)
    return b"".join(found)


def lines(pieces: Iterator[bytes], first: int = 1) -> Iterator[tuple[int, bytes | None]]:
    """Lines without their line feed, numbered from `first`.

    None stands for a line over records.MAX_LINE_BYTES, of which no more than that and one piece is ever in memory.
    """
    number, held = first, 0
    begun: list[bytes] = []
    for piece in pieces:
        cut = piece.split(b"\n")
        held += len(cut[0])
        begun.append(cut[0])
        if held > records.MAX_LINE_BYTES:
            begun.clear()
        if len(cut) == 1:
            continue
        yield number, b"".join(begun) if held <= records.MAX_LINE_BYTES else None
        for line in cut[1:-1]:
            number += 1
            yield number, line if len(line) <= records.MAX_LINE_BYTES else None
        number += 1
        begun, held = [cut[-1]], len(cut[-1])
    if held:
        yield number, b"".join(begun) if held <= records.MAX_LINE_BYTES else None


def cut_at_lines(path: Path, span_bytes: int) -> list[Span]:
    """Spans of about `span_bytes` that begin at a line and together are the file. A packed file is one span."""
    size = path.stat().st_size
    if span_bytes >= size or packing(path) is not None:
        return [Span(0, size, 0)]
    spans: list[Span] = []
    at = first = 0
    with path.open("rb") as f:
        while at < size:
            end, after = _next_cut(f, min(at + span_bytes, size), (at, first))
            spans.append(Span(at, end, first))
            at, first = end, after
    return spans


def _next_cut(f: BinaryIO, wanted: int, begin: tuple[int, int]) -> tuple[int, int]:
    """The first line start at or after `wanted`, and the number of lines before it."""
    at, count = begin
    f.seek(at)
    while block := f.read(min(CHUNK, wanted - at) if at < wanted else CHUNK):
        if at + len(block) >= wanted:
            edge = block.find(b"\n", max(wanted - 1 - at, 0))
            if edge >= 0:
                return at + edge + 1, count + block.count(b"\n", 0, edge + 1)
        at += len(block)
        count += block.count(b"\n")
    return at, count


def _plain(f: BinaryIO, span: Span | None) -> Iterator[bytes]:
    if span is None:
        while piece := f.read(CHUNK):
            yield piece
        return
    f.seek(span.start)
    left = span.end - span.start
    while left and (piece := f.read(min(CHUNK, left))):
        left -= len(piece)
        yield piece


def _guarded(f: BinaryIO, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The pieces, as long as they are in proportion to the packed bytes read so far."""
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > SMALL_BYTES and size > LARGEST_RATIO * f.tell():
            raise Damaged("zip_bomb", f"more than {size} bytes from {f.tell()}")
        yield piece


def _gunzip(f: BinaryIO) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=f) as unpacked:
        try:
            while piece := unpacked.read1(CHUNK):  # read() would lose what stands before a damage
                yield piece
        except EOFError as error:
            raise Damaged("truncated", str(error)) from None
        except (gzip.BadGzipFile, zlib.error) as error:
            raise Damaged("damaged", str(error)) from None


def _unzstd(f: BinaryIO) -> Iterator[bytes]:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        require("data", "backports")
        from backports import zstd

    frame: zstd.ZstdDecompressor | None = None
    packed = f.read(CHUNK)
    while packed or frame is not None:
        frame = frame or zstd.ZstdDecompressor()
        try:
            piece = frame.decompress(packed, CHUNK)
        except zstd.ZstdError as error:
            raise Damaged("damaged", str(error)) from None
        if piece:
            yield piece
        if frame.eof:
            packed, frame = frame.unused_data or f.read(CHUNK), None
        elif not frame.needs_input:
            packed = b""
        elif not (packed := f.read(CHUNK)):
            raise Damaged("truncated", "the last Zstandard frame has no end")
