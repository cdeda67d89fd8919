"""Read plain text and Markdown files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from inhouse.core.params import Params
from inhouse.data.readers.bytes import joined, lines
from inhouse.data.readers.encoding import ABOUT, Codec, Encoding, cut_lines, decoded
from inhouse.data.records import Damaged, Record, Reject, Span, excerpt

SUFFIXES = (".txt", ".md")
BETWEEN = re.compile(rb"\n[ \t\r]*\n\s*")


class TextReader(Params):
    """One document per file, paragraph or line: columns `text`, `file` (its name) and `folder` (of the file)."""

    use: Literal["text"] = "text"
    per: Literal["file", "paragraph", "line"] = Field("file", description="what makes one document")
    encoding: Encoding = Field("auto", description=ABOUT)


def read(path: Path, params: TextReader, span: Span | None = None) -> Iterator[Record | Reject]:
    """The documents of the file, or of a span of it, in order; blank ones between separators are skipped.

    A line's offset is its number less one; other documents are counted.
    """
    offset, place = span.first if span else 0, {"file": path.name, "folder": path.parent.name}
    try:
        codec, pieces = decoded(path, params.encoding, span if params.per == "line" else None)
        if params.per == "line":
            for number, raw in lines(pieces, offset + 1):
                offset = number
                if raw is None:
                    yield Reject(number - 1, number, "line_too_long")
                elif raw.strip():
                    yield _document(raw, number - 1, number, codec, place)
            return
        found = _documents(joined(pieces), params.per)
        for offset, (document, line) in enumerate(found):
            yield _document(document, offset, line, codec, place)
    except Damaged as damage:
        yield damage.at(offset, offset + 1 if params.per == "line" else None)


def cut(path: Path, params: TextReader, span_bytes: int) -> list[Span]:
    """Spans of about `span_bytes` bytes when a line is a document; else one for the file."""
    if params.per == "line":
        return cut_lines(path, params.encoding, span_bytes)
    return [Span(0, path.stat().st_size, 0)]


def _document(raw: bytes, offset: int, line: int, codec: Codec, place: dict[str, str]) -> Record | Reject:
    try:
        text = raw.decode(codec).replace("\r\n", "\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        at = line + raw.count(b"\n", 0, error.start)
        return Reject(offset, at, "invalid_encoding", f"byte {error.start}", excerpt(raw[:200]))
    return Record(offset, {"text": text, **place}, line)


def _documents(raw: bytes, per: str) -> Iterator[tuple[bytes, int]]:
    """Documents that are not blank, with the line each begins on.

    Cut before decoding, so that one broken document costs no other: in both encodings a line end is one byte.
    """
    start, line = 0, 1
    ends = [match.span() for match in BETWEEN.finditer(raw)] if per == "paragraph" else []
    for end, resume in [*ends, (len(raw), len(raw))]:
        if raw[start:end].strip():
            yield raw[start:end], line
        line += raw.count(b"\n", start, resume)
        start = resume
