"""What a reader yields: a record, or a reject that says where and why."""

from __future__ import annotations

from dataclasses import dataclass
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
    "unheld_field",
    "no_prompt",
    "no_answer",
    "turns_differ",
    "same_answer",
    "truncated",
    "damaged",
    "unreadable",
    "zip_bomb",
    "unsafe_member",
    "encrypted",
    "nested_archive",
    "file_too_large",
    "no_array",
    "bad_header",
    "no_sheet",
    "sheet_too_large",
    "no_match",
    "no_text",
    "empty_file",
    "no_reader",
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
    "unheld_field": "data.reason.unheld_field",
    "no_prompt": "data.reason.no_prompt",
    "no_answer": "data.reason.no_answer",
    "turns_differ": "data.reason.turns_differ",
    "same_answer": "data.reason.same_answer",
    "truncated": "data.reason.truncated",
    "damaged": "data.reason.damaged",
    "unreadable": "data.reason.unreadable",
    "zip_bomb": "data.reason.zip_bomb",
    "unsafe_member": "data.reason.unsafe_member",
    "encrypted": "data.reason.encrypted",
    "nested_archive": "data.reason.nested_archive",
    "file_too_large": "data.reason.file_too_large",
    "no_array": "data.reason.no_array",
    "bad_header": "data.reason.bad_header",
    "no_sheet": "data.reason.no_sheet",
    "sheet_too_large": "data.reason.sheet_too_large",
    "no_match": "data.reason.no_match",
    "no_text": "data.reason.no_text",
    "empty_file": "data.reason.empty_file",
    "no_reader": "data.reason.no_reader",
}
# Rejects that stand for a file without a row. They are named and counted like others, but no row was lost in them, so
# they do not count towards `fail_above`.
WITHOUT_ROW: frozenset[Reason] = frozenset(("empty_file", "no_reader"))

MAX_LINE_BYTES = 16 * 2**20  # a longer line is a broken file far more often than a document
EXCERPT_CHARS = 80


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a file. `offset` counts the file's rows from 0, rejects included; `line` counts its lines from 1."""

    offset: int
    fields: dict[str, Any]
    line: int | None = None


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that cannot be used. `detail` names the column, label or character; `excerpt` shows how it begins."""

    offset: int
    line: int | None
    reason: Reason
    detail: str = ""
    excerpt: str = ""


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a file that can be read by itself.

    Bytes from `start` up to `end`, both at the beginning of a line; for Parquet, rows. `first` is the offset of its
    first row.
    """

    start: int
    end: int
    first: int


class Unfit(Exception):
    """A record's content does not fit: why, and what exactly."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = excerpt(detail)


class Damaged(Exception):
    """A file cannot be read on from here: why, and what exactly."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = excerpt(detail)

    def at(self, offset: int, line: int | None = None) -> Reject:
        """The reject that stands for what could not be read from this row on."""
        return Reject(offset, line, self.reason, self.detail)


def excerpt(value: object) -> str:
    """The beginning of a value as one printable line."""
    try:
        text = str(value)[: EXCERPT_CHARS * 2]
    except RecursionError:  # JSON may nest deeper than Python can print
        text = type(value).__name__
    text = text.encode("utf-8", "backslashreplace").decode()
    return " ".join(text.split())[:EXCERPT_CHARS]
