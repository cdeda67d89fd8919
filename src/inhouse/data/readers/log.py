"""Read log files: a line, or a line and those that follow it, by a pattern."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from inhouse.core.params import Params
from inhouse.core.plugins import require
from inhouse.data.readers.bytes import lines
from inhouse.data.readers.encoding import ABOUT, Codec, Encoding, decoded
from inhouse.data.readers.jsonl import parsed
from inhouse.data.records import Damaged, Record, Reject, excerpt

SUFFIXES = (".log",)
BATCH_LINES = 4096
BATCH_BYTES = 8 * 2**20
MAX_JOINED = 100_000  # lines of one record
WHOLE = "inhouse_whole_line"  # a group around the pattern: null where a line does not match
PATTERNS = {
    # The combined format of nginx and Apache: nginx.org/en/docs/http/ngx_http_log_module.html, log_format.
    "nginx": (
        r"(?P<remote_addr>\S+) \S+ (?P<remote_user>\S+) \[(?P<time>[^\]]+)\] "
        r'"(?P<request>(?:[^"\\]|\\.)*)" (?P<status>\d{3}) (?P<bytes_sent>\d+|-)'
        r'(?: "(?P<referer>(?:[^"\\]|\\.)*)" "(?P<agent>(?:[^"\\]|\\.)*)")?.*'
    ),
}

Line = tuple[int, str, dict[str, str | None] | None]  # number, text, what the pattern found


class LogReader(Params):
    """Lines of a log: a column for each named group of the pattern; blank lines are skipped."""

    use: Literal["log"] = "log"
    format: Literal["plain", "nginx", "json"] = Field(
        "plain", description="plain: the line as `text`; nginx: its combined format; json: one object a line"
    )
    pattern: str | None = Field(
        None, min_length=1, description="instead of `format`: an expression with (?P<name>…) for the whole line"
    )
    multiline: bool = Field(False, description="a line that does not match continues the record before it")
    encoding: Encoding = Field("auto", description=ABOUT)

    @model_validator(mode="after")
    def _pattern_usable(self) -> LogReader:
        if self.multiline and self.pattern is None and self.format != "nginx":
            raise ValueError("`multiline` needs a `pattern` that tells the first line of a record")
        if self.pattern is not None and not _groups(self.pattern):
            raise ValueError("`pattern` names no group: write (?P<text>.*) for what is to become a column")
        return self


def read(path: Path, params: LogReader) -> Iterator[Record | Reject]:
    """The records of the log, in order; a record's offset is its line number less one.

    Continued lines are added to the group `text`, or to the last one. Patterns take linear time whatever they are
    given (the Rust engine in polars: no look-around, no back references).
    """
    last = 0
    try:
        codec, pieces = decoded(path, params.encoding)
        source = lines(pieces)
        pattern = params.pattern or PATTERNS.get(params.format)
        if pattern is None:
            items = _whole_lines(source, codec, params.format)
        elif params.multiline:
            items = _joined(_found(source, codec, pattern), _groups(pattern))
        else:
            items = _single(_found(source, codec, pattern))
        for item in items:
            last = item.line or last
            yield item
    except Damaged as damage:
        yield damage.at(last, last + 1)


def _whole_lines(source: Iterator[tuple[int, bytes | None]], codec: Codec, form: str) -> Iterator[Record | Reject]:
    """Lines that need no pattern: plain ones, and JSON objects."""
    for number, raw in source:
        if raw is not None and not raw.strip():
            continue
        if raw is not None and form == "json":
            yield parsed(raw, number, codec)
            continue
        text = _text(number, raw, codec)
        yield text if isinstance(text, Reject) else Record(number - 1, {"text": text}, number)


def _groups(pattern: str) -> list[str]:
    """The named groups of a pattern, in order. Raises ValueError when it is none."""
    require("data", "polars")
    import polars as pl

    try:
        dtype = pl.Series([""]).str.extract_groups(pattern).dtype
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"`pattern` is not an expression that can be used: {error}") from None
    assert isinstance(dtype, pl.Struct)
    return [field.name for field in dtype.fields if not field.name.isdigit()]


def _found(source: Iterator[tuple[int, bytes | None]], codec: Codec, pattern: str) -> Iterator[Line | Reject]:
    """Every line with what the pattern found in it; None when it does not match, also for a blank line."""
    for batch in _batches(source):
        texts = [_text(number, raw, codec) for number, raw in batch]
        values = iter(_extracted([text for text in texts if isinstance(text, str)], pattern))
        for (number, _), text in zip(batch, texts, strict=True):
            yield text if isinstance(text, Reject) else (number, text, next(values))


def _batches(source: Iterator[tuple[int, bytes | None]]) -> Iterator[list[tuple[int, bytes | None]]]:
    """Some lines at a time; what was read before a damage comes before it is raised."""
    batch: list[tuple[int, bytes | None]] = []
    size = 0
    try:
        for number, raw in source:
            batch.append((number, raw))
            size += len(raw or b"")
            if len(batch) >= BATCH_LINES or size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
    except Damaged:
        yield batch
        raise
    yield batch


def _text(number: int, raw: bytes | None, codec: Codec) -> str | Reject:
    if raw is None:
        return Reject(number - 1, number, "line_too_long")
    try:
        return raw.decode(codec).removesuffix("\r")
    except UnicodeDecodeError as error:
        return Reject(number - 1, number, "invalid_encoding", f"byte {error.start}", excerpt(raw[:200]))


def _extracted(texts: list[str], pattern: str) -> list[dict[str, Any] | None]:
    """The named groups for each text, None where the whole text does not match."""
    import polars as pl

    groups = pl.Series(texts, dtype=pl.String).str.extract_groups(f"^(?P<{WHOLE}>{pattern})$")
    rows = groups.struct.unnest().select(WHOLE, *_groups(pattern)).to_dicts()
    return [row if row.pop(WHOLE) is not None else None for row in rows]


def _single(found: Iterator[Line | Reject]) -> Iterator[Record | Reject]:
    for item in found:
        if isinstance(item, Reject):
            yield item
        elif item[1].strip():
            number, text, fields = item
            yield Record(number - 1, fields, number) if fields else _no_match(number, text)


def _joined(found: Iterator[Line | Reject], groups: list[str]) -> Iterator[Record | Reject]:
    """Records with the lines that continue them."""
    column = "text" if "text" in groups else groups[-1]
    start: Line | None = None
    more: list[str] = []
    for item in found:
        if not isinstance(item, Reject) and item[2] is None:
            number, text, _ = item
            if start is not None and len(more) < MAX_JOINED:
                more.append(text)
            elif text.strip():
                yield _no_match(number, text)
            continue
        if start is not None:
            yield _record(start, more, column)
        start, more = (None, []) if isinstance(item, Reject) else (item, [])
        if isinstance(item, Reject):
            yield item
    if start is not None:
        yield _record(start, more, column)


def _record(start: Line, more: list[str], column: str) -> Record:
    number, _, fields = start
    assert fields is not None  # a record starts with a line that matches
    joined = "\n".join(((fields[column] or ""), *more)).rstrip("\n")
    return Record(number - 1, {**fields, column: joined}, number)


def _no_match(number: int, text: str) -> Reject:
    return Reject(number - 1, number, "no_match", "", excerpt(text))
