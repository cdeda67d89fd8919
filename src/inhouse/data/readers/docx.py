"""Read Word documents: paragraphs and tables in their order."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from inhouse.core.params import Params
from inhouse.data.readers.bytes import whole
from inhouse.data.readers.members import office
from inhouse.data.readers.ooxml import Handlers, local, parse, parts_of, relations_of
from inhouse.data.records import Damaged, Record, Reject

SUFFIXES = (".docx",)
MAX_XML_BYTES = 128 * 2**20  # of all parts, some ten thousand pages; and of the text in the end
# What each element may hold that is read. All else, such as pictures, text boxes and deleted text, is passed over.
INSIDE = {
    "": ("document",),
    "document": ("body",),
    "body": ("p", "tbl"),
    "tbl": ("tr",),
    "tr": ("tc", "trPr"),
    "trPr": ("gridBefore",),
    "tc": ("p", "tcPr"),
    "tcPr": ("gridSpan", "vMerge"),
    "p": ("r",),
    "r": ("t", "tab", "ptab", "br", "cr", "noBreakHyphen"),
}
# What only says something of what it holds: links, form fields, insertions.
AROUND = frozenset(("hyperlink", "sdt", "sdtContent", "ins", "moveTo", "smartTag", "customXml", "fldSimple"))
MARKS = {"tab": "\t", "ptab": "\t", "cr": "\n", "br": "\n", "noBreakHyphen": "-"}
MOST_COLUMNS = 1 << 20


class DocxReader(Params):
    """One document per file: columns `text` (a table row is one line, cells apart by tabs), `title`, `file`, `folder`.

    Page headers, footers, comments and text boxes are left out, and what was deleted with changes tracked.
    """

    use: Literal["docx"] = "docx"


def read(path: Path, params: DocxReader) -> Iterator[Record | Reject]:
    """The document, or one reject when the file is damaged, encrypted, a zip bomb or too large."""
    try:
        if not whole(path):
            return
        text, title = _document(office(path))
    except Damaged as damage:
        yield damage.at(0)
        return
    yield Record(0, {"text": text, "title": title, "file": path.name, "folder": path.parent.name})


def _document(raw: bytes) -> tuple[str, str]:
    """The text and the title."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        parts = parts_of(archive, MAX_XML_BYTES)
        relations = relations_of(archive, parts)
        main = parts.get(relations.get("officeDocument", ""))
        if main is None:
            raise Damaged("damaged", "no document part")
        body, title = _Body(), _Title()
        parse(archive, main, Handlers(body.start, body.end, body.text))
        if not body.is_word:
            raise Damaged("damaged", "no Word document")
        about = parts.get(relations.get("core-properties", ""))
        if about is not None:
            parse(archive, about, Handlers(title.start, title.end, title.text))
    return "\n".join(body.lines).strip("\n"), "".join(title.found).strip()


class _Title:
    """The `title` of a file's core properties."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.inside = False

    def start(self, name: str, _attributes: Sequence[str]) -> None:
        self.inside = local(name) == "title"

    def end(self, _name: str) -> None:
        self.inside = False

    def text(self, text: str) -> None:
        if self.inside:
            self.found.append(text)


class _Body:
    """The lines of a document, found element by element."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.is_word = False
        self.size = 0
        self.open = [""]  # the elements around, by the names of INSIDE
        self.skipped = 0  # depth within an element that is passed over
        self.words: list[str] = []  # of the paragraph
        self.cell: list[str] = []  # its paragraphs
        self.column = self.span = 0
        self.goes_on = False  # the cell is the one above
        self.row: list[tuple[int, list[str]]] = []  # column and text of each cell
        self.above: dict[int, list[str]] = {}  # cells of the row before, by column

    def start(self, name: str, attributes: Sequence[str]) -> None:
        if self.skipped:
            self.skipped += 1
            return
        kind, around = local(name), self.open[-1]
        if kind in AROUND:
            self.open.append(around)
        elif kind in INSIDE.get(around, ()):
            self.open.append(kind)
            self._begin(kind, attributes)
        else:
            self.skipped = 1

    def end(self, _name: str) -> None:
        if self.skipped:
            self.skipped -= 1
            return
        kind = self.open.pop()
        if kind == self.open[-1]:
            return  # what closes is AROUND: no element of INSIDE holds its own kind
        if kind == "p":
            self._end_paragraph()
        elif kind == "tc":
            self._end_cell()
        elif kind == "tr":
            self._end_row()

    def text(self, text: str) -> None:
        if self.open[-1] == "t" and not self.skipped:
            self.words.append(text)

    def _begin(self, kind: str, attributes: Sequence[str]) -> None:
        if kind == "br":
            broken = _value(attributes, "type") in (None, "textWrapping")  # not a page or a column
            self.words.append("\n" if broken else "")
        elif kind in MARKS:
            self.words.append(MARKS[kind])
        elif kind == "gridSpan":
            self.span = _count(attributes)
        elif kind == "gridBefore":
            self.column = _count(attributes)
        elif kind == "vMerge":
            self.goes_on = _value(attributes, "val") != "restart"
        elif kind == "tbl":
            self.above = {}
        elif kind == "tr":
            self.row, self.column = [], 0
        elif kind == "tc":
            self.cell, self.span, self.goes_on = [], 1, False
        elif kind == "document":
            self.is_word = True

    def _end_paragraph(self) -> None:
        text = "".join(self.words)
        self.words.clear()
        if self.open[-1] == "tc":
            self.cell.append(text)
        else:
            self._add(text)

    def _end_cell(self) -> None:
        text = [" ".join(" ".join(self.cell).split())]
        self.row.append((self.column, self.above.get(self.column, text) if self.goes_on else text))
        self.column = min(self.column + self.span, MOST_COLUMNS)

    def _end_row(self) -> None:
        """The row as a line; a cell that goes down over rows stands in each of them."""
        self.above = dict(self.row)
        self._add("\t".join(text for _, (text,) in self.row))

    def _add(self, line: str) -> None:
        self.size += len(line)
        if self.size > MAX_XML_BYTES:  # a long cell over many rows
            raise Damaged("file_too_large", f"more than {MAX_XML_BYTES >> 20} MB of text")
        self.lines.append(line)


def _value(attributes: Sequence[str], wanted: str) -> str | None:
    names = zip(attributes[::2], attributes[1::2], strict=True)
    return next((value for name, value in names if local(name) == wanted), None)


def _count(attributes: Sequence[str]) -> int:
    text = _value(attributes, "val") or ""
    return min(int(text), MOST_COLUMNS) if text.isascii() and text.isdigit() and len(text) < 10 else 1
