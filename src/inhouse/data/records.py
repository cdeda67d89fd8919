"""What a reader yields: a record, or a reject that says where and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Reason = Literal[
    "broken_json",
    "broken_csv",
    "not_an_object",
    "invalid_encoding",
    "line_too_long",
    "column_count",
    "missing_column",
    "wrong_type",
    "empty_text",
    "unknown_label",
    "unknown_role",
    "no_prompt",
    "no_answer",
]
TEXTS: dict[Reason, str] = {
    "broken_json": "data.reason.broken_json",
    "broken_csv": "data.reason.broken_csv",
    "not_an_object": "data.reason.not_an_object",
    "invalid_encoding": "data.reason.invalid_encoding",
    "line_too_long": "data.reason.line_too_long",
    "column_count": "data.reason.column_count",
    "missing_column": "data.reason.missing_column",
    "wrong_type": "data.reason.wrong_type",
    "empty_text": "data.reason.empty_text",
    "unknown_label": "data.reason.unknown_label",
    "unknown_role": "data.reason.unknown_role",
    "no_prompt": "data.reason.no_prompt",
    "no_answer": "data.reason.no_answer",
}

MAX_LINE_BYTES = 16 * 2**20  # a longer line is a broken file far more often than a document
EXCERPT_CHARS = 80


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a file. `offset` counts the file's rows from 0, rejects included; `line` counts its lines from 1."""

    offset: int
    fields: dict[str, Any]
    line: int | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a file that can be read by itself: from byte `start` to `end`, its first row at offset `first`."""

    start: int
    end: int
    first: int


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that cannot be used. `detail` names the column, label or character; `excerpt` shows how it begins."""

    offset: int
    line: int | None
    reason: Reason
    detail: str = ""
    excerpt: str = ""


class Unfit(Exception):
    """A record's content does not fit: why, and what exactly."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = excerpt(detail)


def excerpt(value: object) -> str:
    """The beginning of a value as one printable line."""
    text = str(value)[: EXCERPT_CHARS * 2]
    text = text.encode("utf-8", "backslashreplace").decode()
    return " ".join(text.split())[:EXCERPT_CHARS]


def lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Lines of a file with their number from 1; None for a line over MAX_LINE_BYTES, which is never held in memory."""
    with path.open("rb") as f:
        number = 0
        while chunk := f.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(chunk) <= MAX_LINE_BYTES:
                yield number, chunk.removeprefix(b"\xef\xbb\xbf") if number == 1 else chunk
                continue
            while not chunk.endswith(b"\n") and (chunk := f.readline(MAX_LINE_BYTES)):
                pass
            yield number, None
