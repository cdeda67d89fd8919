"""Read web archives: the text of every HTML page in a WARC file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from inhouse.core.params import Params
from inhouse.core.plugins import require
from inhouse.data.readers.encoding import ABOUT, Encoding
from inhouse.data.readers.markup import page_of
from inhouse.data.records import Damaged, Record, Reject

if TYPE_CHECKING:
    from fastwarc.warc import ArchiveIterator, WarcRecord

RESULT_DEPENDS_ON = ("FastWARC",)
SUFFIXES = (".warc",)
PAGES = ("text/html", "application/xhtml+xml")
MAX_PAGE_BYTES = 64 * 2**20  # FastWARC ends the process when a damaged header states more than the memory


class WarcReader(Params):
    """One document per HTML page that a server delivered: columns `text`, `title`, `url` and `date`."""

    use: Literal["warc"] = "warc"
    encoding: Encoding = Field("auto", description=f"{ABOUT}; what server and page state comes after UTF-8")


def read(path: Path, params: WarcReader) -> Iterator[Record | Reject]:
    """The pages of the archive (plain, gzip or Zstandard) that came with a 2xx status, in order.

    A page that cannot be used is rejected; a damaged record also ends the file, because nothing says where the next
    one begins.
    """
    require("data", "fastwarc", "resiliparse")
    from fastwarc.warc import ArchiveIterator, response

    offset = 0
    try:
        with path.open("rb") as f:
            if not f.read(1):
                return
            f.seek(0)
            archive = ArchiveIterator(f, record_types=response, parse_http=False, auto_decode="none")
            for record in _frozen(archive):
                found = record.at(offset) if isinstance(record, Damaged) else _page(record, offset, params.encoding)
                if found is not None:
                    yield found
                    offset += 1
    except Damaged as damage:
        yield damage.at(offset)
    except OSError as error:
        yield Damaged("unreadable", error.strerror or str(error)).at(offset)


def _frozen(archive: ArchiveIterator) -> Iterator[WarcRecord | Damaged]:
    """The records, each in memory, one too large as Damaged. Raises Damaged where the archive cannot be read on.

    A record is given after the next one was taken: one whose body cannot be unpacked would end the iterator.
    """
    waiting: list[WarcRecord | Damaged] = []
    try:
        while (record := next(archive, None)) is not None:
            size, url = record.content_length, record.headers.get("WARC-Target-URI") or ""
            taken: WarcRecord | Damaged = record
            if size > MAX_PAGE_BYTES:
                taken = Damaged("file_too_large", f"{url}: {size} bytes")
            else:
                record.freeze()  # its length is now what was really there
                if record.content_length < size:
                    raise Damaged("truncated", f"{url}: {record.content_length} of {size} bytes")
            yield from waiting
            waiting = [taken]
    except (OSError, Damaged) as error:  # OSError is what FastWARC raises for a broken stream
        yield from waiting
        raise error if isinstance(error, Damaged) else Damaged("damaged", str(error)) from None
    yield from waiting


def _page(record: WarcRecord, offset: int, encoding: Encoding) -> Record | Reject | None:
    """The document in a record; None when it is no page."""
    url = record.headers.get("WARC-Target-URI") or ""
    try:
        record.parse_http(auto_decode="all")
        http = record.http_headers
        if http is None or (record.http_content_type or "").lower() not in PAGES or not _fine(http.status_code):
            return None
        raw = record.reader.read(MAX_PAGE_BYTES + 1)
        if len(raw) > MAX_PAGE_BYTES:
            return Reject(offset, None, "file_too_large", url)
        page = page_of(raw, encoding, record.http_charset)
    except OSError as error:  # a body that is not packed as its header says
        return Reject(offset, None, "damaged", f"{url}: {error}")
    except Damaged as damage:
        return Reject(offset, None, damage.reason, f"{url}: {damage.detail}")
    date = record.record_date.isoformat() if record.record_date else None
    return Record(offset, {"text": page.text, "title": page.title, "url": url, "date": date})


def _fine(status: int | None) -> bool:
    return status is not None and 200 <= status < 300
