"""Parts of Word and Excel files: judged, found, and parsed while they are unpacked, never as a whole tree."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from posixpath import basename, dirname, join, normpath
from xml.parsers import expat

from inhouse.data.readers.bytes import CHUNK
from inhouse.data.records import Damaged

SMALL_XML_BYTES = 8 * 2**20
LARGEST_XML_RATIO = 200  # XML of real documents and sheets packs 5 to 50 times
MAX_XML_BYTES = 512 * 2**20  # of all parts together: half an hour of reading for nobody
BROKEN = (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, OSError, ValueError)


@dataclass
class Handlers:
    """What is called for each element's beginning, its end and its text; names are without namespaces.

    Attributes come as one list: name, value, name, value, …
    """

    start: Callable[[str, Sequence[str]], None] | None = None
    end: Callable[[str], None] | None = None
    text: Callable[[str], None] | None = None


def parts_of(archive: zipfile.ZipFile, most: int = MAX_XML_BYTES) -> dict[str, zipfile.ZipInfo]:
    """The parts of XML by their name in small letters. Raises Damaged where a name is there twice or too much is in."""
    found: dict[str, zipfile.ZipInfo] = {}
    total = 0
    for info in archive.infolist():
        name = info.filename.lower()
        if not name.endswith((".xml", ".rels")):
            continue  # pictures, fonts and programs are not looked at
        if name in found:
            raise Damaged("damaged", f"{info.filename} is there twice")
        if info.file_size > SMALL_XML_BYTES and info.file_size > LARGEST_XML_RATIO * max(info.compress_size, 1):
            raise Damaged("zip_bomb", info.filename)
        total += info.file_size
        found[name] = info
    if total > most:
        raise Damaged("file_too_large", f"{total >> 20} MB of XML; at most {most >> 20} MB are read")
    return found


def parse(archive: zipfile.ZipFile, info: zipfile.ZipInfo, handlers: Handlers) -> None:
    """Call the handlers through a part. Raises Damaged, also where it declares entities or another encoding."""
    for _ in parsed(pieces(archive, info), info.filename, handlers):
        pass


def parsed(unpacked: Iterator[bytes], name: str, handlers: Handlers) -> Iterator[bytes]:
    """The pieces of a part, each when it has been parsed."""
    parser = expat.ParserCreate("UTF-8")
    parser.ordered_attributes = True
    parser.buffer_text = True
    parser.StartElementHandler = handlers.start
    parser.EndElementHandler = handlers.end
    parser.CharacterDataHandler = handlers.text
    parser.StartDoctypeDeclHandler = _refuse
    try:
        for piece in unpacked:
            parser.Parse(piece, False)
            yield piece
        parser.Parse(b"", True)
    except expat.ExpatError as error:
        raise Damaged("damaged", f"{name}: {error}") from None


def pieces(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """The bytes of a part. Raises Damaged."""
    try:
        with archive.open(info) as unpacked:
            while piece := unpacked.read(CHUNK):
                yield piece
    except BROKEN as error:
        raise Damaged("damaged", f"{info.filename}: {error}") from None


def _refuse(_name: str, _system: str | None, _public: str | None, _internal: bool) -> None:
    raise Damaged("damaged", "a document type, which no Office file has")


def local(name: str) -> str:
    """The name of an element or attribute without its namespace's prefix."""
    return name.rpartition(":")[2]


@dataclass
class _Relations:
    """The targets of a part's relations by the last word of their type."""

    folder: str
    found: dict[str, str] = field(default_factory=dict)

    def start(self, name: str, attributes: Sequence[str]) -> None:
        given = dict(zip(attributes[::2], attributes[1::2], strict=True))
        if local(name) == "Relationship" and given.get("TargetMode") != "External":
            target = given.get("Target", "")
            path = target.lstrip("/") if target.startswith("/") else normpath(join(self.folder, target))
            self.found.setdefault(basename(given.get("Type", "")), path.lower())


def relations_of(archive: zipfile.ZipFile, parts: dict[str, zipfile.ZipInfo], part: str = "") -> dict[str, str]:
    """The parts that a part names, by what they are to it: officeDocument, core-properties, … of the file itself."""
    info = parts.get(join(dirname(part), "_rels", f"{basename(part)}.rels"))
    if info is None:
        return {}
    relations = _Relations(dirname(part))
    parse(archive, info, Handlers(start=relations.start))
    return relations.found
