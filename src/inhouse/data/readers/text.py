"""Read plain text and Markdown files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from inhouse.core.params import Params
from inhouse.data.records import Record, Reject, excerpt

SUFFIXES = (".txt", ".md")
BETWEEN = {"paragraph": re.compile(rb"\n[ \t\r]*\n\s*"), "line": re.compile(rb"\n")}


class TextReader(Params):
    """One document per file, paragraph or line: columns `text`, `file` (its name) and `folder` (of the file)."""

    use: Literal["text"] = "text"
    per: Literal["file", "paragraph", "line"] = Field("file", description="what makes one document")
    encoding: Literal["utf-8", "gb18030"] = Field("utf-8", description="gb18030 reads GBK and GB2312 files too")


def read(path: Path, params: TextReader) -> Iterator[Record | Reject]:
    """The documents of the file, in order; blank ones between separators are skipped."""
    place = {"file": path.name, "folder": path.parent.name}
    raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    for offset, (document, line) in enumerate(_documents(raw, params.per)):
        try:
            text = document.decode(params.encoding).replace("\r\n", "\n")
        except UnicodeDecodeError as error:
            at = line + document.count(b"\n", 0, error.start)
            yield Reject(offset, at, "invalid_encoding", f"byte {error.start}", excerpt(document[:200]))
        else:
            yield Record(offset, {"text": text, **place}, line)


def _documents(raw: bytes, per: str) -> Iterator[tuple[bytes, int]]:
    """Documents that are not blank, with the line each begins on.

    Cut before decoding, so that one broken document costs no other: in both encodings a line end is one byte.
    """
    start, line = 0, 1
    ends = [match.span() for match in BETWEEN[per].finditer(raw)] if per in BETWEEN else []
    for end, resume in [*ends, (len(raw), len(raw))]:
        if raw[start:end].strip():
            yield raw[start:end], line
        line += raw.count(b"\n", start, resume)
        start = resume
