"""Read PDF files: the text layer of their pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from inhouse.core.params import Params
from inhouse.core.plugins import require
from inhouse.data.readers.bytes import whole
from inhouse.data.records import Damaged, Record, Reject

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument  # type: ignore[import-untyped]

RESULT_DEPENDS_ON = ("pypdfium2",)
SUFFIXES = (".pdf",)
# PDFium marks a hyphen at the end of a line by one of these and joins the next line to it.
HYPHEN = re.compile(r"[\x02\ufffe](?:\r?\n)?(?=([^\W\d_])?)")
PAGE_NUMBER = re.compile(
    r"\s*(?:[-–—]\s*)?(?:page\s+|p\.\s*|第\s*)?\d{1,5}(?:\s*页)?(?:\s*(?:/|of|共)\s*\d{1,5}(?:\s*页)?)?(?:\s*[-–—])?\s*",
    re.IGNORECASE,
)
FEWEST_LINES = 2  # a page of one line keeps it, were it a number
WORD_CUT = re.compile(r"[^\W\d_]-$")


class PdfReader(Params):
    """One document per file or page: columns `text`, `title`, `file`, `folder` and, per page, `page` from 1."""

    use: Literal["pdf"] = "pdf"
    per: Literal["file", "page"] = Field("file", description="what makes one document")


def read(path: Path, params: PdfReader) -> Iterator[Record | Reject]:
    """The text layer of the file; pages without one are left out, a file without any is rejected.

    A word that is hyphenated at the end of a line or page is put together when a small letter follows. The first and
    the last line of a page are left out when they hold nothing but a page number (`7`, `- 7 -`, `Page 7 of 9`,
    `第 7 页`). An encrypted or damaged file is one reject, a damaged page of `per: page` too.
    """
    require("documents", "pypdfium2")
    import pypdfium2

    offset = 0
    try:
        raw = whole(path)
        if not raw:
            return
        with pypdfium2.PdfDocument(raw) as document:
            title = str(document.get_metadata_dict().get("Title", "")).strip()
            place = {"title": title, "file": path.name, "folder": path.parent.name}
            pages = _pages(document)
            if params.per == "file":
                yield _whole(pages, place)
                return
            for offset, text in enumerate(pages):
                yield _one(text, offset, place)
    except Damaged as damage:
        yield damage.at(offset)
    except pypdfium2.PdfiumError as error:
        locked = error.err_code in (pypdfium2.raw.FPDF_ERR_PASSWORD, pypdfium2.raw.FPDF_ERR_SECURITY)
        yield Damaged("encrypted" if locked else "damaged", str(error)).at(offset)


def _whole(pages: Iterator[str | Damaged], place: dict[str, str]) -> Record | Reject:
    text = ""
    for page in pages:
        if isinstance(page, Damaged):
            return page.at(0)
        text = _continued(text, page)
    if not text.strip():
        return Reject(0, None, "no_text")
    return Record(0, {"text": text, **place})


def _one(page: str | Damaged, offset: int, place: dict[str, str]) -> Record | Reject:
    if isinstance(page, Damaged):
        return page.at(offset)
    if not page.strip():
        return Reject(offset, None, "no_text", f"page {offset + 1}")
    return Record(offset, {"text": page, **place, "page": offset + 1})


def _pages(document: PdfDocument) -> Iterator[str | Damaged]:
    """The text of every page, or why it cannot be had."""
    import pypdfium2

    for number in range(len(document)):
        try:
            page = document[number]
            text = page.get_textpage().get_text_bounded()
            page.close()
        except pypdfium2.PdfiumError as error:
            yield Damaged("damaged", f"page {number + 1}: {error}")
        else:
            yield _cleaned(text)


def _cleaned(text: str) -> str:
    """The lines of a page without page numbers, hyphenated words put together."""
    whole = HYPHEN.sub(lambda mark: "" if (mark.group(1) or "").islower() else "-\n", text.replace("\r\n", "\n"))
    lines = whole.replace("\r", "\n").strip("\n").split("\n")
    if len(lines) >= FEWEST_LINES and PAGE_NUMBER.fullmatch(lines[0]):
        del lines[0]
    if len(lines) >= FEWEST_LINES and PAGE_NUMBER.fullmatch(lines[-1]):
        del lines[-1]
    return "\n".join(line.rstrip() for line in lines).strip("\n")


def _continued(text: str, page: str) -> str:
    """Two pages as one text."""
    if not text or not page:
        return text or page
    if WORD_CUT.search(text) and page[0].islower():
        return text[:-1] + page
    return f"{text}\n{page}"
