"""Read Excel workbooks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from inhouse.core.params import Params
from inhouse.core.plugins import require
from inhouse.data.readers.bytes import whole
from inhouse.data.readers.members import office
from inhouse.data.readers.sheets import bounded
from inhouse.data.records import Damaged, Record, Reject

if TYPE_CHECKING:
    import polars as pl

RESULT_DEPENDS_ON = ("fastexcel",)
SUFFIXES = (".xlsx",)


class ExcelReader(Params):
    """The rows of one sheet, every cell as text."""

    use: Literal["excel"] = "excel"
    sheet: str | None = Field(None, description="name of the sheet; absent: the first one")
    columns: tuple[str, ...] | None = Field(
        None, min_length=1, description="column names in order; absent: the header line"
    )
    header_lines: int = Field(
        1, ge=0, description="lines before the first row; the last of them is the header unless `columns` is given"
    )


def read(path: Path, params: ExcelReader) -> Iterator[Record | Reject]:
    """The rows of the sheet, in order; `line` is the row's number in Excel, blank rows are skipped."""
    require("documents", "fastexcel", "polars")
    try:
        if not whole(path):
            return
        rows = _sheet(bounded(office(path)), params.sheet).rows()
        columns = _columns(rows, params)
    except Damaged as damage:
        yield damage.at(0)
        return
    offset = 0
    for line, cells in enumerate(rows[params.header_lines :], params.header_lines + 1):
        if all(cell is None for cell in cells):
            continue
        fields = dict.fromkeys(name for name in columns if name) | dict(zip(columns, cells, strict=False))
        unnamed = [fields.pop("", None), *cells[len(columns) :]]
        if any(cell is not None for cell in unnamed):
            yield Reject(offset, line, "column_count", "a cell below no column name")
        else:
            yield Record(offset, fields, line)
        offset += 1


def _sheet(raw: bytes, name: str | None) -> pl.DataFrame:
    """Every row of a sheet, header included, so that row numbers are those of Excel."""
    import fastexcel

    try:
        workbook = fastexcel.read_excel(raw)
        if name is not None and name not in workbook.sheet_names:
            raise Damaged("no_sheet", f"{name}; there are {', '.join(workbook.sheet_names)}")
        found = name if name is not None else 0
        return workbook.load_sheet(found, header_row=None, skip_rows=0, dtypes="string").to_polars()
    except fastexcel.FastExcelError as error:
        raise Damaged("damaged", (str(error).splitlines() or [""])[0]) from None


def _columns(rows: list[tuple[str | None, ...]], params: ExcelReader) -> list[str]:
    """The column names, "" where the header has none. Raises Damaged (bad_header)."""
    if params.columns is not None:
        return list(params.columns)
    if not params.header_lines:
        raise Damaged("bad_header", "header_lines is 0 and columns is not set")
    if len(rows) < params.header_lines:
        return []
    header = [(cell or "").strip() for cell in rows[params.header_lines - 1]]
    named = [name for name in header if name]
    if twice := sorted({name for name in named if named.count(name) > 1}):
        raise Damaged("bad_header", f"columns named twice: {', '.join(twice)}")
    return header
