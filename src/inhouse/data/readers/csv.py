"""Read comma- or tab-separated files."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from inhouse.core.messages import text
from inhouse.core.params import Params
from inhouse.data.formulas import unguarded
from inhouse.data.readers.bytes import ending, lines
from inhouse.data.readers.encoding import ABOUT, BROKEN, Encoding, decoded
from inhouse.data.records import MAX_LINE_BYTES, TEXTS, Damaged, Reason, Record, Reject, excerpt

SUFFIXES = (".csv", ".tsv", ".tab")
REVIEWED = {"label_by", "label_reviewers"}  # columns of what `inhouse data review export` wrote


class CsvReader(Params):
    """Rows with a header line, or with `columns` named here."""

    use: Literal["csv"] = "csv"
    delimiter: str | None = Field(
        None, min_length=1, max_length=1, description="absent: tab for .tsv and .tab, else comma"
    )
    quote: str | None = Field('"', min_length=1, max_length=1, description="null: quotes are ordinary characters")
    columns: tuple[str, ...] | None = Field(
        None, min_length=1, description="column names in order; absent: the first line"
    )
    header_lines: int | None = Field(
        None, ge=0, description="lines before the first row; absent: 1, or 0 when `columns` is given"
    )
    encoding: Encoding = Field("auto", description=ABOUT)
    guarded: bool | None = Field(
        None,
        description="whether an apostrophe stands before what a spreadsheet would run (=, +, -, @, tab) and is taken "
        "off; absent: in files that `inhouse data review export` wrote",
    )

    @model_validator(mode="after")
    def _names_known(self) -> CsvReader:
        if self.columns is None and self.header_lines == 0:
            raise ValueError("without a header line, `columns` must name the columns")
        if self.columns is not None and len(set(self.columns)) != len(self.columns):
            raise ValueError("`columns` names one column twice")
        return self


class _Lines:
    """Decoded lines for the csv module; remembers which lines were too long or could not be decoded."""

    def __init__(self, path: Path, encoding: Encoding, skip: int) -> None:
        self.codec, pieces = decoded(path, encoding)
        self.source = lines(pieces)
        self.bad: dict[int, Reason] = {}
        self.last = 0
        for _ in range(skip):
            self.last = next(self.source, (self.last, None))[0]

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        self.last, raw = next(self.source)
        if raw is None:
            self.bad[self.last] = "line_too_long"
            return BROKEN + "\n"
        try:
            return raw.decode(self.codec) + "\n"  # the csv module tells a line feed inside quotes by it
        except UnicodeDecodeError:
            self.bad[self.last] = "invalid_encoding"
            return raw.decode("utf-8", "replace").rstrip("\r") + BROKEN + "\n"

    def reason(self, first: int, last: int) -> Reason | None:
        """Why one of these lines cannot be used."""
        return next((self.bad[n] for n in range(first, last + 1) if n in self.bad), None)


def read(path: Path, params: CsvReader) -> Iterator[Record | Reject]:
    """The rows of the file, in order; blank lines are skipped. A row that spans broken lines is rejected line by line.

    One reject stands for the file when the header cannot be decoded or repeats a name.
    """
    # The csv module's own limit is 131,072 characters a field and global to the process: lines are bounded already.
    csv.field_size_limit(MAX_LINE_BYTES)
    offset = line = 0
    try:
        columns, skip = _columns(path, params)
        guards = set(columns) >= REVIEWED if params.guarded is None else params.guarded
        columns = tuple(map(unguarded, columns)) if guards else columns
        source = _Lines(path, params.encoding, skip)
        for row in _rows(source, _delimiter(path, params), params.quote):
            line = row[3]
            row = ([unguarded(cell) for cell in row[0]], *row[1:]) if guards else row
            for item in _understood(row, columns, source, offset):
                yield item
                offset += 1
    except Damaged as damage:
        yield damage.at(offset, line + 1)


def _understood(
    row: tuple[list[str], str, int, int], columns: tuple[str, ...], source: _Lines, offset: int
) -> Iterator[Record | Reject]:
    """The record of a row, or a reject for each of its lines."""
    cells, problem, first, last = row
    reason = source.reason(first, last) or ("broken_csv" if problem else None)
    if reason is None and len(cells) != len(columns):
        reason, problem = "column_count", f"{len(cells)} ≠ {len(columns)}"
    if reason is None:
        yield Record(offset, dict(zip(columns, cells, strict=True)), first)
        return
    shown = excerpt(" | ".join(cells).replace(BROKEN, ""))
    for line in range(first, last + 1):  # an unclosed quote may swallow many rows: every line is accounted for
        yield Reject(offset + line - first, line, reason, problem, shown)


def _rows(source: _Lines, delimiter: str, quote: str | None) -> Iterator[tuple[list[str], str, int, int]]:
    """Cells, or what the csv module found wrong, and the first and last line of every row that is not blank."""
    rows = _reader(source, delimiter, quote)
    while True:
        first, cells, problem = source.last + 1, [], ""
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            problem = str(error)
        if cells or problem:
            yield cells, problem, first, source.last


def _columns(path: Path, params: CsvReader) -> tuple[tuple[str, ...], int]:
    """The column names, and how many lines come before the first row."""
    if params.columns is not None:
        return params.columns, params.header_lines or 0
    source = _Lines(path, params.encoding, 0)
    header, problem, _, last = next(_rows(source, _delimiter(path, params), params.quote), ([], "", 0, 0))
    if reason := source.reason(1, last):
        problem = text(TEXTS[reason])
    if twice := sorted({name for name in header if header.count(name) > 1}):
        problem = f"columns named twice: {', '.join(twice)}"
    if problem:
        raise Damaged("bad_header", problem)
    return tuple(header), max(params.header_lines or 1, source.last)


def _reader(source: _Lines, delimiter: str, quote: str | None) -> Iterator[list[str]]:
    if quote is None:
        return csv.reader(source, delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=True)
    return csv.reader(source, delimiter=delimiter, quotechar=quote, strict=True)


def _delimiter(path: Path, params: CsvReader) -> str:
    return params.delimiter or ("\t" if ending(path) in (".tsv", ".tab") else ",")
