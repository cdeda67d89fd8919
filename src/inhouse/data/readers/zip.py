"""Read the files in a zip archive, each by the reader of its ending."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from errno import ENOSPC
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter, field_validator

from inhouse.core.errors import UserError
from inhouse.core.params import OneOf, Params
from inhouse.core.plugins import operator_of
from inhouse.data.readers.bytes import ending
from inhouse.data.readers.encoding import detect
from inhouse.data.readers.members import budget_of, problem_of
from inhouse.data.records import Damaged, Reason, Record, Reject, excerpt
from inhouse.sources.archive import extract

SUFFIXES = (".zip",)
UTF8_NAME = 0x800


class ZipReader(Params):
    """The rows of all files in the archive that a reader knows, one file after the other."""

    use: Literal["zip"] = "zip"
    only: str = Field("*", min_length=1, description="pattern for the names of the members read, as `train/*.jsonl`")
    reader: dict[str, Any] | None = Field(
        None, description="settings of the reader for every member, as {use: csv, delimiter: ;}; absent: by its ending"
    )

    @field_validator("reader")
    @classmethod
    def _known(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None and _reader(value).model_dump()["use"] == "zip":
            raise ValueError("an archive inside an archive is not read")
        return value


def read(path: Path, params: ZipReader) -> Iterator[Record | Reject]:
    """The rows of the members, in the order of the archive, counted over the whole archive.

    Links, encrypted members and zip bombs are rejected by name, and the rest is read. Members are unpacked one at a
    time, into the folder for temporary files.
    """
    offset = 0
    try:
        if not path.stat().st_size:
            return
        with _opened(path) as archive:
            left = budget_of(path.stat().st_size)
            wanted, others = _wanted(archive, params)
            for info in wanted:
                problem = _problem(info, left)
                left -= 0 if problem else info.file_size
                last = -1
                for item in [Reject(0, None, problem)] if problem else _rows(archive, info, params):
                    last = item.offset
                    yield _placed(item, offset, info.filename)
                offset += last + 1
            if others:
                yield Reject(offset, None, "no_reader", excerpt(f"{len(others)}: {', '.join(others)}"))
    except Damaged as damage:
        yield damage.at(offset)
    except OSError as error:
        yield Damaged("unreadable", error.strerror or str(error)).at(offset)


def _opened(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise Damaged("damaged", str(error)) from None


def _wanted(archive: zipfile.ZipFile, params: ZipReader) -> tuple[list[zipfile.ZipInfo], list[str]]:
    """The files that the settings name: those a reader takes, archives among them, and the names of the others."""
    from inhouse.data.source import beside, endings

    known, wanted, others = endings(), [], []
    for info in archive.infolist():
        info.filename = _name(info)
        if info.is_dir() or beside(info.filename) or not fnmatchcase(info.filename, params.only):
            continue
        if params.reader is not None or ending(Path(info.filename)) in known:
            wanted.append(info)
        else:
            others.append(info.filename)
    return wanted, others


def _name(info: zipfile.ZipInfo) -> str:
    """The member's name; of an archive from Chinese Windows, whose names are GBK and do not say so, too."""
    if info.flag_bits & UTF8_NAME or info.filename.isascii():
        return info.filename
    try:
        raw = info.filename.encode("cp437")  # what the standard library took it for
        return raw.decode(detect(raw))
    except UnicodeError:
        return info.filename


def _problem(info: zipfile.ZipInfo, left: int) -> Reason | None:
    """Why a member is not read; `left` bytes may still be unpacked from its archive."""
    if ending(Path(info.filename)) in SUFFIXES:
        return "nested_archive"
    return problem_of(info) or ("zip_bomb" if info.file_size > left else None)


def _rows(archive: zipfile.ZipFile, info: zipfile.ZipInfo, params: ZipReader) -> Iterator[Record | Reject]:
    """What a reader finds in a member; one reject for a member that gives nothing."""
    empty = True
    for item in _member(archive, info, params):
        empty = False
        yield item
    if empty:
        yield Reject(0, None, "empty_file")


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, params: ZipReader) -> Iterator[Record | Reject]:
    """What a reader finds in a member, or one reject."""
    from inhouse.data.source import reader_for

    with TemporaryDirectory() as folder:
        target = Path(folder) / info.filename
        try:
            extract(archive, info, target, lambda _: None)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError) as error:
            if isinstance(error, OSError) and error.errno == ENOSPC:
                raise UserError("store.no_space", path=folder, free_mb=0) from None
            yield Damaged("damaged", str(error)).at(0)
        except UserError as error:
            if error.code != "sources.archive":
                raise  # no space left: nothing is wrong with the data
            yield Damaged("damaged", str(error.facts["reason"])).at(0)
        else:
            reader = reader_for(target) if params.reader is None else _reader(params.reader)
            yield from operator_of("reader", reader).function("read")(target, reader)


def _placed(item: Record | Reject, start: int, member: str) -> Record | Reject:
    if isinstance(item, Record):
        return replace(item, offset=item.offset + start)
    detail = f"{member}: {item.detail}" if item.detail else member
    return replace(item, offset=item.offset + start, detail=detail)


def _reader(settings: dict[str, Any]) -> BaseModel:
    found: BaseModel = TypeAdapter(Annotated[Params, OneOf("reader")]).validate_python(settings)
    return found
