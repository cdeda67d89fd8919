"""Read Word documents: paragraphs and tables in their order."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from inhouse.core.params import Params
from inhouse.core.plugins import require
from inhouse.data.readers.bytes import whole
from inhouse.data.readers.members import office
from inhouse.data.records import Damaged, Record, Reject

if TYPE_CHECKING:
    from docx.document import Document
    from docx.table import Table

RESULT_DEPENDS_ON = ("python-docx",)
SUFFIXES = (".docx",)
BROKEN = (zipfile.BadZipFile, zlib.error, NotImplementedError, KeyError, ValueError, EOFError)


class DocxReader(Params):
    """One document per file: columns `text` (a table row is one line, cells apart by tabs), `title`, `file`, `folder`.

    Page headers, footers, comments and text boxes are left out.
    """

    use: Literal["docx"] = "docx"


def read(path: Path, params: DocxReader) -> Iterator[Record | Reject]:
    """The document, or one reject when the file is damaged, encrypted or a zip bomb."""
    require("documents", "docx")
    try:
        if not whole(path):
            return
        document = _opened(office(path))
    except Damaged as damage:
        yield damage.at(0)
        return
    title = document.core_properties.title.strip()
    yield Record(0, {"text": _text(document), "title": title, "file": path.name, "folder": path.parent.name})


def _opened(raw: bytes) -> Document:
    import docx
    from docx.opc.exceptions import OpcError
    from lxml.etree import LxmlError  # type: ignore[import-untyped]

    try:
        return docx.Document(io.BytesIO(raw))
    except (OpcError, LxmlError, *BROKEN) as error:
        raise Damaged("damaged", str(error)) from None


def _text(document: Document) -> str:
    from docx.table import Table

    blocks = document.iter_inner_content()
    return "\n".join(_rows(block) if isinstance(block, Table) else block.text for block in blocks).strip("\n")


def _rows(table: Table) -> str:
    """Rows as lines; a merged cell is said once, a line end inside a cell is a space."""
    found = []
    for row in table.rows:
        cells = {id(cell._tc): cell.text for cell in row.cells}  # python-docx repeats a merged cell
        found.append("\t".join(" ".join(text.split()) for text in cells.values()))
    return "\n".join(found)
