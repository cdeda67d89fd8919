"""Read HTML files: the text of a page without what surrounds it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from inhouse.core.params import Params
from inhouse.data.readers.bytes import whole
from inhouse.data.readers.encoding import ABOUT, Encoding
from inhouse.data.readers.markup import page_of
from inhouse.data.records import Damaged, Record, Reject

SUFFIXES = (".html", ".htm", ".xhtml")


class HtmlReader(Params):
    """One document per file: columns `text` (without navigation, banners, scripts), `title`, `file` and `folder`."""

    use: Literal["html"] = "html"
    encoding: Encoding = Field("auto", description=f"{ABOUT}; what the page states comes after UTF-8")


def read(path: Path, params: HtmlReader) -> Iterator[Record | Reject]:
    """The page, or one reject. A file without a byte holds no page."""
    try:
        raw = whole(path)
        page = page_of(raw, params.encoding)
    except Damaged as damage:
        yield damage.at(0)
        return
    if raw:
        yield Record(0, {"text": page.text, "title": page.title, "file": path.name, "folder": path.parent.name})
