"""What a zip file holds, judged before anything is unpacked; Word and Excel files are zip files too."""

from __future__ import annotations

import io
import stat
import zipfile
from pathlib import Path

from inhouse.data.readers.bytes import whole
from inhouse.data.records import Damaged, Reason
from inhouse.sources.archive import LARGEST_RATIO, SMALL_BYTES, is_inside

OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # how a Word or Excel file begins that is protected by a password


def problem_of(info: zipfile.ZipInfo) -> Reason | None:
    """Why a member must not be unpacked."""
    if not is_inside(info.filename) or stat.S_ISLNK(info.external_attr >> 16):
        return "unsafe_member"
    if info.flag_bits & 0x1:
        return "encrypted"
    if info.file_size > SMALL_BYTES and info.file_size > LARGEST_RATIO * max(info.compress_size, 1):
        return "zip_bomb"
    return None


def budget_of(size: int) -> int:
    """How many bytes a zip file of `size` bytes may unpack to in all, members that share their data included."""
    return max(SMALL_BYTES, LARGEST_RATIO * size)


def office(path: Path) -> bytes:
    """The bytes of a Word or Excel file that is safe to open. Raises Damaged."""
    raw = whole(path)
    if raw.startswith(OLE):
        raise Damaged("encrypted")
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise Damaged("truncated" if raw.startswith(b"PK\x03\x04") else "damaged", str(error)) from None
    if problem := next((found for info in members if (found := problem_of(info))), None):
        raise Damaged(problem)
    if sum(info.file_size for info in members) > budget_of(len(raw)):
        raise Damaged("zip_bomb")
    return raw
