"""Say what became of one row of a dataset, and why."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from inhouse.core.artifact import Frozen
from inhouse.core.errors import UserError
from inhouse.core.plugins import require
from inhouse.core.protocols import Context
from inhouse.core.rows import PARTS
from inhouse.data.beside import DROPPED, FILES, REJECTED
from inhouse.data.reading import SHARD_BYTES, row_id
from inhouse.data.reasons import reason_text
from inhouse.data.records import Record
from inhouse.data.source import SourceParams, cut_file, locate, read_file
from inhouse.data.traces import Trace, traces
from inhouse.data.versions import Version
from inhouse.dataset import part_files

if TYPE_CHECKING:
    import polars as pl

Fate = Literal["kept", "dropped", "rejected"]
ID = re.compile(r"[0-9a-f]{1,16}(#\d+)?")
SHORTEST = 4
SHOWN = 8  # rows that an error names
PLACE = ("source", "file", "offset")


class RowText(Frozen):
    """A row beside the one that is explained."""

    id: str
    source: str = ""
    file: str = ""
    offset: int | None = None
    part: str | None = Field(None, description="null when the row is not in the dataset either")
    label: str | None = None
    texts: tuple[tuple[str, str], ...] = Field((), description="role or column, and text")


class Why(Frozen):
    """One row's fate. `original` is its record as the source has it, where the source is at hand and unchanged."""

    dataset: str
    fate: Fate
    row: RowText
    step: str | None = Field(None, description="the step that dropped it")
    number: int | None = Field(None, description="place of that step from 1; 0: the finished row was blank")
    reason: str | None = None
    told: str | None = Field(None, description="the reason in words")
    line: int | None = Field(None, description="line of a rejected row in its file")
    detail: str = ""
    excerpt: str = ""
    stays: RowText | None = Field(None, description="the row that is kept instead")
    parent: RowText | None = Field(None, description="the row it was made from")
    children: tuple[str, ...] = Field((), description="rows made from it")
    copies: int = Field(1, description="how often the mix repeats it")
    traces: tuple[Trace, ...] = ()
    original: dict[str, str] | None = None
    missing: Literal["not_at_hand", "changed"] | None = Field(None, description="why there is no original")


@dataclass(frozen=True)
class _Asked:
    """A row as the user named it: the beginning of an id, or a place."""

    name: str
    id: str | None = None
    source: str = ""
    file: str | None = None
    offset: int = 0

    def matches(self) -> pl.Expr:
        """Rows of a table with the columns id, source, file and offset that are meant."""
        import polars as pl

        if self.id is not None:
            return pl.col("id").str.starts_with(self.id)
        place = (pl.col("source") == self.source) & (pl.col("offset") == self.offset)
        return place if self.file is None else place & (pl.col("file") == self.file)


def explain(version: Version, name: str, context: Context) -> Why:
    """What became of the row that `name` means in a dataset. Raises data.row_unknown and data.row_ambiguous.

    `context` says where the project lies and where downloads are, for reading the original again.
    """
    require("data", "polars")
    facts = version.facts
    asked = _parsed(version, name, facts)
    why = _kept(version, asked) or _dropped(version, asked, facts) or _rejected(version, asked)
    if why is None:
        sources = ", ".join(source["name"] for source in facts["sources"])
        raise UserError("data.row_unknown", name=version.name, row=name, least=SHORTEST, sources=sources)
    if why.row.id:
        why = why.model_copy(update={"traces": tuple(traces(version.folder, facts, why.row.id))})
    if why.row.offset is None:
        return why
    original, missing = _original(version, why.row, facts, context)
    return why.model_copy(update={"original": original, "missing": missing})


def _parsed(version: Version, name: str, facts: dict[str, Any]) -> _Asked:
    place, _, offset = name.strip().rpartition(":")
    if place and offset.isdecimal():
        for source in sorted((s["name"] for s in facts["sources"]), key=len, reverse=True):
            if place == source:
                return _Asked(name, source=source, offset=int(offset))
            if place.startswith(f"{source}/"):
                return _Asked(name, source=source, file=place.removeprefix(f"{source}/"), offset=int(offset))
    wanted = name.strip().lower()
    if ID.fullmatch(wanted) and len(wanted.partition("#")[0]) >= SHORTEST:
        return _Asked(name, id=wanted)
    sources = ", ".join(source["name"] for source in facts["sources"])
    raise UserError("data.row_unknown", name=version.name, row=name, least=SHORTEST, sources=sources)


def _single(version: Version, asked: _Asked, rows: pl.DataFrame) -> None:
    """Raise data.row_ambiguous when the frame holds different rows."""
    if rows["id"].n_unique() > 1:
        shown = [f"{r['id']} ({r['source']}/{r['file']}:{r['offset']})" for r in rows.head(SHOWN).iter_rows(named=True)]
        raise UserError("data.row_ambiguous", name=version.name, row=asked.name, found=", ".join(shown))


def _kept(version: Version, asked: _Asked) -> Why | None:
    import polars as pl

    found = _in_tables(version.folder, asked.matches())
    if asked.id is None:
        found = found.filter(pl.col("parent").is_null())  # those made from it stand at the same place
    firsts = found.with_columns(pl.col("id").str.split("#").list.first())
    if firsts.is_empty():
        return None
    _single(version, asked, firsts)
    row, parent = firsts["id"][0], firsts["parent"][0]
    made = _in_tables(version.folder, pl.col("parent") == row)
    children = made.filter(~pl.col("id").str.contains("#", literal=True))["id"].to_list()
    shown = row_text(version.folder, row)
    copies = _in_tables(version.folder, pl.col("id").str.starts_with(f"{row}#")).height + 1
    return Why(
        dataset=version.name, fate="kept", row=shown or RowText(id=row), copies=copies, children=tuple(children),
        parent=None if parent is None else beside_of(version.folder, parent),
    )  # fmt: skip


def _in_tables(folder: Path, matches: pl.Expr) -> pl.DataFrame:
    """Rows of all tables that match: id, source, file, offset, parent, part, table, at (place in the table)."""
    import polars as pl

    frames = []
    for part in PARTS:
        for path in part_files(folder, part):
            scan = pl.scan_parquet(path)
            if "parent" not in scan.collect_schema():
                scan = scan.with_columns(parent=pl.lit(None, pl.String))
            columns = scan.select("id", *PLACE, "parent").with_row_index("at").filter(matches)
            frames.append(columns.with_columns(part=pl.lit(part), table=pl.lit(path.name)).collect())
    return pl.concat(frames)


def row_text(folder: Path, row: str) -> RowText | None:
    """A row of the dataset with its texts; only the stretch of the table that holds it is read."""
    import polars as pl

    found = _in_tables(folder, pl.col("id") == row)
    if found.is_empty():
        return None
    place = found.row(0, named=True)
    fields = pl.scan_parquet(folder / place["table"]).slice(place["at"], 1).collect().row(0, named=True)
    if "text" in fields:
        texts = [("text", fields["text"])]
    else:
        texts = [(turn["role"], turn["content"] or turn.get("tool_calls") or "") for turn in fields["messages"]]
        worse = fields.get("rejected") or ()
        texts += [("rejected", turn["content"] or turn.get("tool_calls") or "") for turn in worse]
    return RowText(
        id=row, source=place["source"], file=place["file"], offset=place["offset"], part=place["part"],
        label=fields.get("label"), texts=tuple(texts),
    )  # fmt: skip


def beside_of(folder: Path, row: str) -> RowText:
    """A row that another one points at: it may have gone too, and then only its place is known."""
    import polars as pl

    if (shown := row_text(folder, row)) is not None:
        return shown
    gone = pl.scan_parquet(folder / DROPPED).filter(pl.col("id") == row).select(*PLACE).collect()
    if gone.is_empty():
        return RowText(id=row)
    source, file, offset = gone.row(0)
    return RowText(id=row, source=source, file=file, offset=offset)


def _dropped(version: Version, asked: _Asked, facts: dict[str, Any]) -> Why | None:
    import polars as pl

    found = pl.scan_parquet(version.folder / DROPPED).filter(asked.matches()).collect()
    if asked.id is None and found.height > 1:
        found = found.filter(pl.col("id").is_in(sorted(_ids_at(version, asked, facts))))
    if found.is_empty():
        return None
    _single(version, asked, found)
    fields = found.row(0, named=True)
    row = RowText(id=fields["id"], source=fields["source"], file=fields["file"], offset=fields["offset"])
    return Why(
        dataset=version.name, fate="dropped", row=row, step=fields["step"], number=fields["number"],
        reason=fields["reason"], told=reason_text(fields["reason"]),
        stays=None if fields["kept"] is None else beside_of(version.folder, fields["kept"]),
    )  # fmt: skip


def _ids_at(version: Version, asked: _Asked, facts: dict[str, Any]) -> set[str]:
    """The ids that a row read at this place can have; rows made from it have others."""
    import polars as pl

    source = next(s for s in facts["sources"] if s["name"] == asked.source)
    contents = [source["content"]]
    if source["files"] > 1:
        files = pl.read_parquet(version.folder / FILES).filter(pl.col("source") == asked.source)
        contents = files["content"].to_list()
    return {f"{row_id(content, asked.offset):016x}" for content in contents}


def _rejected(version: Version, asked: _Asked) -> Why | None:
    if asked.id is not None:
        return None  # a row that could not be read has no id
    found = [item for item in rejects(version.folder) if _is_at(item, asked)]
    if not found:
        return None
    if len(found) > 1:
        places = ", ".join(f"{item['source']}/{item['file']}:{item['offset']}" for item in found[:SHOWN])
        raise UserError("data.row_ambiguous", name=version.name, row=asked.name, found=places)
    item = found[0]
    row = RowText(id="", source=item["source"], file=item["file"], offset=item["offset"])
    return Why(
        dataset=version.name, fate="rejected", row=row, reason=item["reason"], told=reason_text(item["reason"]),
        line=item["line"], detail=item["detail"], excerpt=item["excerpt"],
    )  # fmt: skip


def rejects(folder: Path) -> Iterator[dict[str, Any]]:
    """Rows that could not be used, as rejected.jsonl names them."""
    with (folder / REJECTED).open(encoding="utf-8") as f:
        yield from map(json.loads, f)


def _is_at(item: dict[str, Any], asked: _Asked) -> bool:
    here = item["source"] == asked.source and item["offset"] == asked.offset
    return here and asked.file in (None, item["file"])


def _original(
    version: Version, row: RowText, facts: dict[str, Any], context: Context
) -> tuple[dict[str, str] | None, Literal["not_at_hand", "changed"] | None]:
    """The row's record as its source has it, when that lies on this machine and is what was read then."""
    stated = next((s for s in version.record.params["sources"] if s["name"] == row.source), None)
    content = next((s["content"] for s in facts["sources"] if s["name"] == row.source), None)
    try:
        source = SourceParams.model_validate(stated)
        located = locate(source, context)
        if located.content != content:
            return None, "changed"
        paths = [path for name, path in located.files if row.file in ("", name)]
        return (_read_again(source, paths[0], row.offset or 0) if len(paths) == 1 else None), None
    except (UserError, ValidationError, OSError):
        return None, "not_at_hand"


def _read_again(source: SourceParams, path: Path, offset: int) -> dict[str, str] | None:
    spans = cut_file(source, path, SHARD_BYTES)
    before = [span for span in spans if span is not None and span.first <= offset]
    for item in read_file(source, path, before[-1] if before else None):
        if item.offset == offset:
            return _shown(item.fields) if isinstance(item, Record) else None
    return None


def _shown(fields: dict[str, Any]) -> dict[str, str]:
    return {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False, default=str) for k, v in fields.items()}
