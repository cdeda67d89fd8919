"""How far the cells of a workbook reach, found before the library that reads it makes room for all between them."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Sequence
from functools import lru_cache

from inhouse.data.readers.ooxml import Handlers, local, parsed, parts_of, pieces
from inhouse.data.records import Damaged

# fastexcel holds every cell from A1 to the last row and column, with polars about 60 bytes each, empty ones too.
MAX_CELLS = 20_000_000
SPARSE_CELLS = 2_000_000  # up to here a sheet may be as empty as it likes
EMPTY_PER_CELL = 50  # above, so many empty cells for each that is filled
LETTERS = re.compile(r"[A-Za-z]{1,6}")
NUMBER = re.compile(r"[0-9]{1,9}")


def bounded(raw: bytes) -> bytes:
    """The workbook's parts of XML as a plain zip file, when every sheet has a size that can be held in memory.

    Written anew, so that the library can see nothing that was not looked at here: no part of the same name, none
    longer than it says. Raises Damaged.
    """
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as archive, zipfile.ZipFile(out, "w") as clean:
        for info in parts_of(archive).values():
            sheet = _Reach()
            with clean.open(zipfile.ZipInfo(info.filename), "w", force_zip64=True) as copy:
                for piece in parsed(pieces(archive, info), info.filename, Handlers(start=sheet.start)):
                    copy.write(piece)
            sheet.judge(info.filename)
    return out.getvalue()


class _Reach:
    """The last row and column with a value; cells and rows that do not say where they are follow the one before."""

    def __init__(self) -> None:
        self.row = self.column = -1  # of the cell before, from 0; a row that says less than its cells is not believed
        self.last_row = self.last_column = -1
        self.filled = 0

    def start(self, name: str, attributes: Sequence[str]) -> None:
        kind = local(name) if ":" in name else name
        if kind in ("v", "is"):
            self.filled += 1
            if self.row > self.last_row:
                self.last_row = self.row
            if self.column > self.last_column:
                self.last_column = self.column
        elif kind == "c":
            said = _said(attributes)
            if said is None:
                self.column += 1
                return
            letters = said.rstrip("0123456789")
            row, self.column = _number(said[len(letters) :]), _column(letters)
            if row > self.row:
                self.row = row
        elif kind == "row":
            said = _said(attributes)
            self.row = self.row + 1 if said is None else _number(said)
            self.column = -1

    def judge(self, name: str) -> None:
        """Raise Damaged when the sheet would take too much memory."""
        rows, columns = self.last_row + 1, self.last_column + 1
        most = min(MAX_CELLS, max(SPARSE_CELLS, (1 + EMPTY_PER_CELL) * self.filled))
        if rows * columns > most:
            raise Damaged("sheet_too_large", f"{name}: {rows} rows x {columns} columns; {self.filled} cells filled")


def _said(attributes: Sequence[str]) -> str | None:
    """Where a cell or a row says that it is."""
    if attributes and attributes[0] == "r":
        return attributes[1]
    return next((value for name, value in zip(attributes[::2], attributes[1::2], strict=True) if name == "r"), None)


@lru_cache(maxsize=4096)
def _number(digits: str) -> int:
    """A row from 0. Raises Damaged."""
    if not NUMBER.fullmatch(digits):
        raise Damaged("damaged", f"a cell or a row at {digits!r}")
    return max(int(digits), 1) - 1


@lru_cache(maxsize=4096)
def _column(letters: str) -> int:
    """A column from 0. Raises Damaged."""
    if not LETTERS.fullmatch(letters):
        raise Damaged("damaged", f"a cell in column {letters!r}")
    column = 0
    for letter in letters.upper():
        column = column * 26 + ord(letter) - 64
    return column - 1
