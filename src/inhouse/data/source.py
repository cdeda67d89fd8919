"""The sources of a dataset: where rows come from, on what terms, and reading them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from inhouse.core.artifact import Licence
from inhouse.core.errors import UserError
from inhouse.core.fingerprint import hash_file, hash_json
from inhouse.core.params import OneOf, Params
from inhouse.core.plugins import operator_of, operators
from inhouse.core.protocols import Context
from inhouse.core.rows import Part
from inhouse.core.run import Events
from inhouse.data.readers.bytes import chunks, ending
from inhouse.data.records import Damaged, Record, Reject, Span
from inhouse.data.saved import with_rows
from inhouse.sources import fetch, fingerprint, scheme_of
from inhouse.sources.licences import normal, read_licences, settle, use_of

ABOUT = re.compile(
    r"(readme|copying|notice|changelog|licen[cs]e([-_]\w+)?)(\.[a-z]{2}(-[a-z]+)?)?(\.(md|txt|rst|html))?$"
    r"|dataset_infos?\.json$",
    re.IGNORECASE,
)
SHOWN_ENDINGS = 8  # of files that are not read
GLOB = re.compile(r"[*?\[]")


Consent = Literal["unknown", "not_needed", "any", "internal", "evaluation", "withdrawn"]
# The uses of a project that persons have agreed to; what is not named here rules nothing out.
AGREED: dict[str, tuple[str, ...]] = {
    "internal": ("evaluation", "internal"),
    "evaluation": ("evaluation",),
    "withdrawn": (),
}


class SourceParams(Params):
    """A file, folder, glob or URI that rows come from, and the terms they may be used on."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    name: str = Field(min_length=1, description="name in rows and reports; absent: the file's name without its ending")
    from_: str = Field(alias="from", min_length=1, description="path, glob or URI (pypi:…, hf:datasets/org/name#file)")
    reader: Annotated[Params, OneOf("reader")] | None = Field(None, description="absent: chosen by the file's ending")
    part: Part | None = Field(None, description="the split these rows belong to; absent: decided by `split`")
    rename: dict[str, str] = Field(default_factory=dict, description="column in the file -> column the shape expects")
    licence: str | None = Field(None, description="SPDX expression, or LicenseRef-… for other terms")
    allowed_use: Literal["any", "evaluation", "research", "unknown"] = Field(
        "unknown", description="what the terms allow; checked against the project's `use`"
    )
    consent: Consent = Field(
        "unknown",
        description="what the persons that the rows tell of agreed to (any use, internal use, evaluation; withdrawn: "
        "none any more), or not_needed; checked against the project's `use`",
    )

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        value = {"from": value} if isinstance(value, str) else value
        if isinstance(value, dict) and "name" not in value:
            place = value.get("from", value.get("from_"))
            if isinstance(place, str) and place:
                return {**value, "name": _name_of(place)}
        return value


def _name_of(place: str) -> str:
    """The last part of a path, glob or URI that is no pattern, without its ending."""
    parts = [part for part in re.split(r"[#/\\:]", place) if part and not GLOB.search(part)]
    return PurePosixPath(parts[-1]).stem if parts else place


@dataclass(frozen=True)
class Located:
    """The files of a source on this machine, in reading order, and hashes over their content."""

    params: SourceParams
    files: tuple[tuple[str, Path], ...] = ()  # name relative to the source, path
    content: str = ""  # of all files together
    contents: tuple[str, ...] = ()  # of each file: with the place in it, what a row's id is made of
    licences: tuple[Licence, ...] = ()


def external_of(source: SourceParams, project_dir: Path) -> str:
    """What stands for a source's content in the recipe."""
    if not _is_glob(source):
        try:
            return fingerprint(source.from_, project_dir)
        except OSError:
            found = fetch(source.from_, project_dir, offline=True, project_dir=project_dir)
            return hash_json([(name, _hash(path)) for name, path in _listed(source, found)])
    return hash_json([(name, _hash(path)) for name, path in _globbed(source, project_dir)])


def _hash(path: Path) -> str:
    """A file's hash; of one that cannot be read, which its reader will say, what tells it from any other."""
    try:
        return hash_file(path)
    except OSError as error:
        return f"unreadable: {error.strerror}"


def size_of(path: Path) -> int:
    """Bytes of a file; 0 of one that cannot be looked at."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def readers_of(source: SourceParams, project_dir: Path) -> frozenset[str]:
    """Names of the readers that the files of a source may need; of files that are not on this machine yet, all."""
    named = None if source.reader is None else operator_of("reader", source.reader).name
    every = frozenset(operators("reader"))
    if scheme_of(source.from_) != "local":
        return every if named is None else frozenset((named, "zip"))
    if _is_glob(source):
        files = _globbed(source, project_dir)
    else:
        files = _listed(source, fetch(source.from_, project_dir, offline=True, project_dir=project_dir))
    found = {ending(path) for _, path in files}
    if named is not None:
        return frozenset((named, "zip") if ".zip" in found else (named,))
    known = endings()
    chosen = {known[suffix] for suffix in found if suffix in known}
    chosen |= {"jsonl"} if "json" in chosen else set()  # a look at the file decides
    return every if "zip" in chosen else frozenset(chosen)


def locate(source: SourceParams, context: Context) -> Located:
    """Fetch a source and list its files. Raises data.no_files when there is none to read."""
    if _is_glob(source):
        files = _globbed(source, context.project_dir, context.events)
        licences = terms(source, None)
    else:
        found = fetch(
            source.from_,
            context.sources,
            offline=context.offline,
            project_dir=context.project_dir,
            events=context.events,
        )
        files = _listed(source, found, context.events)
        licences = terms(source, found)
    content, contents = _contents(source, files)
    return Located(source, files, content, contents, licences)


def terms(source: SourceParams, found: Path | None) -> tuple[Licence, ...]:
    """The licences of a source: what the project file states, else what lies beside the fetched file."""
    readings = [] if found is None else read_licences(found)
    if source.licence is None and readings:
        settled = settle(source.name, readings)
        if source.allowed_use == "unknown":
            return settled
        return tuple(licence.model_copy(update={"use": source.allowed_use}) for licence in settled)
    spdx = "NOASSERTION" if source.licence is None else normal(source.licence)
    use = use_of(spdx) if source.allowed_use == "unknown" else source.allowed_use
    others = "; ".join(f"{r.spdx} ({r.source})" for r in readings if r.spdx != spdx)
    note = f"the package it came in: {others}" if others else None
    return (Licence(subject=source.name, spdx=spdx, source="project file, data.sources", use=use, note=note),)


def _contents(source: SourceParams, files: tuple[tuple[str, Path], ...]) -> tuple[str, tuple[str, ...]]:
    """One hash over the files, and one for each.

    The reader is in them: one file may be read twice, as two arrays of one JSON file.
    """
    reader = None if source.reader is None else source.reader.model_dump(mode="json")
    hashes = [(name, _hash(path)) for name, path in files]
    contents = tuple(hash_json([[digest], reader]) for _, digest in hashes)
    return contents[0] if len(files) == 1 else hash_json([hashes, reader]), contents


def told_apart(located: Sequence[Located]) -> list[Located]:
    """The sources, with a number at the content of a file that equals one before, so that no two rows have one id.

    A source of one file comes before folders, and these by name; so a row's id is the same whatever else is read,
    unless that is an equal file.
    """
    seen: Counter[str] = Counter()
    found: dict[str, Located] = {}
    for source in sorted(located, key=lambda s: (len(s.files) > 1, s.params.name)):
        contents = []
        for content in source.contents:
            contents.append(f"{content}:{seen[content]}" if seen[content] else content)
            seen[content] += 1
        found[source.params.name] = replace(source, contents=tuple(contents))
    return [found[source.params.name] for source in located]


def read_file(source: SourceParams, path: Path, span: Span | None = None) -> Iterator[Record | Reject]:
    """The records and rejects of one file, or of one stretch of it; columns renamed as the source says.

    A file that gives nothing at all gives one reject, `empty_file`.
    """
    reader = reader_of(source.reader, path)
    read = operator_of("reader", reader).function("read")
    items: Iterator[Record | Reject] = read(path, reader) if span is None else read(path, reader, span)
    empty = span is None
    for item in items:
        empty = False
        yield _renamed(item, source.rename) if source.rename and isinstance(item, Record) else item
    if empty:
        yield Reject(0, None, "empty_file")


def read(located: Located) -> Iterator[tuple[str, Record | Reject]]:
    """Every record and reject of a source with its file's name; offsets count within the file."""
    for name, path in located.files:
        for item in read_file(located.params, path):
            yield name, item


def cut_file(source: SourceParams, path: Path, bytes_: int) -> list[Span | None]:
    """The stretches of a large file that can be read apart from each other; [None] where its format allows none."""
    reader = reader_of(source.reader, path)
    operator = operator_of("reader", reader)
    if "cut" not in vars(operator.module):
        return [None]
    spans: list[Span | None] = operator.function("cut")(path, reader, bytes_)
    return spans


def _renamed(item: Record, rename: dict[str, str]) -> Record:
    return Record(item.offset, {rename.get(k, k): v for k, v in item.fields.items()}, item.line)


def reader_of(named: BaseModel | None, path: Path) -> BaseModel:
    """The reader that a source names, else the one for the file; a named reader reads the members of a zip file."""
    if named is None:
        return reader_for(path)
    if ending(path) == ".zip" and operator_of("reader", named).name != "zip":
        return operators("reader")["zip"].params(reader=named.model_dump())
    return named


def reader_for(path: Path) -> BaseModel:
    """The reader for a file by its ending, with its defaults. Raises data.no_reader."""
    suffix = ending(path)
    if suffix == ".json" and not _starts_with_array(path):
        suffix = ".jsonl"  # many files named .json hold one object a line
    found = endings().get(suffix)
    if found is None:
        raise UserError("data.no_reader", path=path.name, known=", ".join(sorted(endings())))
    return operators("reader")[found].params()


def _starts_with_array(path: Path) -> bool:
    try:
        head = next(chunks(path), b"")
    except Damaged:
        return False  # the reader says what is wrong
    # The marks of UTF-8 and UTF-16, white space, and the zero bytes between the characters of UTF-16.
    return head.lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n\x00")[:1] == b"["


def endings() -> dict[str, str]:
    """The endings that are known, each with the name of its reader."""
    return {suffix: name for name, op in operators("reader").items() for suffix in op.function("SUFFIXES")}


def _is_glob(source: SourceParams) -> bool:
    return scheme_of(source.from_) == "local" and GLOB.search(source.from_) is not None


def _globbed(source: SourceParams, project_dir: Path, told: Events | None = None) -> tuple[tuple[str, Path], ...]:
    """Files that match, by their name below the last folder that the pattern spells out."""
    parts = Path(source.from_).expanduser().parts
    first = next(i for i, part in enumerate(parts) if GLOB.search(part))
    folder = project_dir.joinpath(*parts[:first])
    found = {(_shown(p.relative_to(folder)), p) for p in folder.glob("/".join(parts[first:])) if p.is_file()}
    return _known(source, sorted(found), told)


def _listed(source: SourceParams, found: Path, told: Events | None = None) -> tuple[tuple[str, Path], ...]:
    if found.is_file():
        return ((_shown(Path(found.name)), found),)
    below = sorted((_shown(p.relative_to(found)), p) for p in found.rglob("*") if p.is_file() or _leads_nowhere(p))
    return _known(source, [(name, path) for name, path in with_rows(below, source.from_) if not beside(name)], told)


def _leads_nowhere(path: Path) -> bool:
    """Whether it is a link to a file that is not there: it is named among the rejects."""
    return path.is_symlink() and not path.exists()


def beside(name: str) -> bool:
    """Whether a file of a folder is hidden or speaks about the data instead of holding it."""
    parts = [part for part in name.split("/") if part not in (".", "..")]
    return any(part.startswith(".") for part in parts) or (bool(parts) and ABOUT.match(parts[-1]) is not None)


def _shown(path: Path) -> str:
    """A relative path with forward slashes; bytes that are no text are escaped."""
    return path.as_posix().encode("utf-8", "backslashreplace").decode()


def _known(source: SourceParams, found: list[tuple[str, Path]], told: Events | None) -> tuple[tuple[str, Path], ...]:
    """Of several files, those a reader knows by their ending; a glob with a reader named takes all that match."""
    known = endings()
    if source.reader is not None:
        wanted = operator_of("reader", source.reader).name
        known = {suffix: reader for suffix, reader in known.items() if reader in (wanted, "zip")}
    every = source.reader is not None and _is_glob(source)
    files = tuple((name, path) for name, path in found if every or ending(path) in known)
    if not files:
        raise UserError("data.no_files", source=source.name, place=source.from_, known=", ".join(sorted(known)))
    if told is not None and len(files) < len(found):
        others = {ending(path) or path.name for _, path in found if ending(path) not in known}
        shown = ", ".join(sorted(others)[:SHOWN_ENDINGS])
        told.note("data.passed_over", source=source.name, count=len(found) - len(files), endings=shown)
    return files
