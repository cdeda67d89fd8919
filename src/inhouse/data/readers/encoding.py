"""Find out how a file's text is encoded, and give its bytes in an encoding whose lines can be cut."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from functools import cache, lru_cache
from itertools import chain
from pathlib import Path
from typing import Literal

from inhouse.data.readers.bytes import CHUNK, chunks, cut_at_lines
from inhouse.data.records import Damaged, Span

Encoding = Literal["auto", "utf-8", "gb18030"]
Codec = Literal["utf-8", "gb18030"]
ABOUT = "auto: by its byte order mark, else UTF-8, else GB18030 for a Chinese file; gb18030 reads GBK and GB2312 too"

# UTF-32 before UTF-16: the mark of UTF-32 LE begins with that of UTF-16 LE.
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
SAMPLE = CHUNK
LOOKED_AT = 16 * CHUNK  # of a file that begins with plain ASCII
COMMON = 0.7  # share of common characters that makes bytes Chinese text; Latin-1 read as GB18030 has about none
BROKEN = "\udcff"  # a lone surrogate: written as UTF-8 it is invalid, so the line is rejected as any broken one


def decoded(path: Path, encoding: Encoding, span: Span | None = None) -> tuple[Codec, Iterator[bytes]]:
    """How the bytes are to be decoded, and the bytes without a byte order mark.

    UTF-16 and UTF-32 are passed on as UTF-8, so that a line feed is one byte. What cannot be decoded in them becomes
    invalid UTF-8. Damage of the file is raised while the pieces are read.
    """
    found = encoding if encoding != "auto" else encoding_of(path)
    pieces = _unmarked(chunks(path, span)) if span is None or span.start == 0 else chunks(path, span)
    if found == "gb18030":
        return "gb18030", pieces
    return "utf-8", pieces if found == "utf-8" else _as_utf8(pieces, found)


def cut_lines(path: Path, encoding: Encoding, span_bytes: int) -> list[Span]:
    """Spans of about `span_bytes` bytes that begin at a line; one span for a file that cannot be cut."""
    whole = [Span(0, path.stat().st_size, 0)]
    try:
        if encoding == "auto" and encoding_of(path) not in ("utf-8", "gb18030"):
            return whole
        return cut_at_lines(path, span_bytes)
    except Damaged:
        return whole


def encoding_of(path: Path) -> str:
    """The encoding of a file: utf-8, gb18030, or utf-16 and utf-32 with their byte order."""
    try:
        state = path.stat()
    except OSError:
        return "utf-8"  # whoever reads the file says what is wrong
    return _encoding_of(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=64)  # every span of a file asks
def _encoding_of(path: Path, size: int, changed_ns: int) -> str:
    return detect(_sample(path))


def detect(sample: bytes) -> str:
    """The encoding of the bytes that a file begins with.

    A file is Chinese GB18030 only if all of it decodes so, into mostly common characters, and no more than half of
    its lines that are not ASCII are UTF-8: one broken line does not make another encoding.
    """
    for mark, name in MARKS:
        if sample.startswith(mark):
            return name
    if _decodes(sample, "utf-8") is not None:
        return "utf-8"
    coded = [line for line in sample.split(b"\n") if not line.isascii()]
    if len(sample) >= SAMPLE and len(coded) > 1:
        coded.pop()  # the sample ends in the middle of it
    valid = sum(_decodes(line, "utf-8") is not None for line in coded)
    text = _decodes(sample, "gb18030")
    chinese = text is not None and _share_of_common(text) >= COMMON
    return "gb18030" if chinese and 2 * valid <= len(coded) else "utf-8"


def _decodes(raw: bytes, encoding: str) -> str | None:
    """The text, None when it is not valid; a character cut at the end does not count."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(raw)
    except UnicodeDecodeError:
        return None


def _share_of_common(text: str) -> float:
    """Share of the 3,755 most common Chinese characters among those that are neither ASCII nor punctuation."""
    coded = [c for c in text if c > "\x7f" and c not in _marks()]
    return sum(c in _common() for c in coded) / len(coded) if coded else 0.0


@cache
def _common() -> frozenset[str]:
    """Level 1 of GB 2312-1980: rows 16 to 55, in the codec of the standard library."""
    return frozenset(_rows(range(0xB0, 0xD8)))


@cache
def _marks() -> frozenset[str]:
    """Symbols and full-width forms: rows 1 and 3 of GB 2312-1980."""
    return frozenset(_rows((0xA1, 0xA3)))


def _rows(leads: range | tuple[int, ...]) -> str:
    return b"".join(bytes((lead, trail)) for lead in leads for trail in range(0xA1, 0xFF)).decode("gb2312", "ignore")


def _sample(path: Path) -> bytes:
    """The beginning of a file; when that is plain ASCII, a piece further on that is not."""
    looked, sample = 0, b""
    try:
        for piece in chunks(path):
            # The line feed keeps bytes in the middle of a file from being taken for a byte order mark.
            sample = sample + piece if not sample.isascii() else (b"\n" if sample else b"") + piece
            looked += len(piece)
            if looked >= LOOKED_AT or (len(sample) >= SAMPLE and not sample.isascii()):
                break
    except Damaged:
        pass  # whoever reads the file meets it again, and says so
    return sample[:SAMPLE]


def _unmarked(pieces: Iterator[bytes]) -> Iterator[bytes]:
    head = b""
    for piece in pieces:
        head += piece
        if len(head) >= 4:
            break
    mark = next((mark for mark, _ in MARKS if head.startswith(mark)), b"")
    return chain((head.removeprefix(mark),), pieces)


def _as_utf8(pieces: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)("inhouse.broken")
    for piece in pieces:
        yield decoder.decode(piece).encode("utf-8", "surrogatepass")
    yield decoder.decode(b"", final=True).encode("utf-8", "surrogatepass")


def _mark_broken(error: UnicodeError) -> tuple[str, int]:
    return BROKEN, error.end if isinstance(error, UnicodeDecodeError) else 0


codecs.register_error("inhouse.broken", _mark_broken)
