"""Read every source, understand its records, and lay them out in columns."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from math import ceil
from typing import TYPE_CHECKING

from inhouse.core.errors import UserError
from inhouse.core.messages import text
from inhouse.core.rows import Part
from inhouse.core.run import Events
from inhouse.data.records import TEXTS, Record, Reject, Unfit, excerpt
from inhouse.data.settings import DataParams
from inhouse.data.shapes import Chat, draft_of, expected, fits, needed_by, recognise
from inhouse.data.shapes.classification import ClassificationShape
from inhouse.data.shapes.draft import Draft
from inhouse.data.source import Located, Rejected, read
from inhouse.data.split import SplitParams, assign
from inhouse.data.table import Table

if TYPE_CHECKING:
    import polars as pl

SAMPLE = 100  # records that are looked at to recognise a shape
EVERY = 1000  # records between two reports of progress
SHOWN = 3  # rejects that an error shows


@dataclass(frozen=True, slots=True)
class Candidate:
    """A record that was understood, with its identity."""

    row: int  # 64 bits of H(source content, offset)
    offset: int
    part: Part | None
    draft: Draft


@dataclass
class SourceRows:
    """What one source gave."""

    located: Located
    shape: ClassificationShape | Chat | None = None
    read: int = 0
    rows: list[Candidate] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    tools: int = 0  # rows that bring tool definitions, which rows of a dataset do not hold


def gather(
    params: DataParams, located: Sequence[Located], events: Events, limit: int | None = None
) -> list[SourceRows]:
    """Read the sources (the first `limit` rows of each) and understand their records, sorted by source name.

    Raises data.empty, data.same_content, data.shape_unknown, data.columns, data.too_many_rejects.
    """
    _refuse_same_content(located)
    found = []
    for source in sorted(located, key=lambda s: s.params.name):
        gathered = _gather_one(params, source, events, limit)
        _refuse_many_rejects(gathered, params.fail_above)
        found.append(gathered)
    return found


def to_table(sources: Sequence[SourceRows], split: SplitParams | None) -> Table:
    """The rows of all sources in columns, each with its part. Raises split.no_test."""
    import polars as pl

    rows = [(s.located.params.name, r) for s in sources for r in s.rows]
    parts = _parts([r for _, r in rows], split)
    frame = pl.DataFrame(
        {
            "row": pl.Series([r.row for _, r in rows], dtype=pl.UInt64),
            "source": pl.Series([name for name, _ in rows], dtype=pl.String),
            "offset": pl.Series([r.offset for _, r in rows], dtype=pl.Int64),
            "part": pl.Series(parts, dtype=pl.String),
            "label": pl.Series([r.draft.label for _, r in rows], dtype=pl.String),
        }
    )
    return Table(frame.sort("row"), _pieces([r for _, r in rows]))


def _pieces(rows: Sequence[Candidate]) -> pl.DataFrame:
    import polars as pl

    flat = [(r.row, slot) for r in rows for slot in range(len(r.draft.texts))]
    frame = pl.DataFrame(
        {
            "row": pl.Series([row for row, _ in flat], dtype=pl.UInt64),
            "slot": pl.Series([slot for _, slot in flat], dtype=pl.UInt32),
            "name": pl.Series([name for r in rows for name in r.draft.names], dtype=pl.String),
            "text": pl.Series([text for r in rows for text in r.draft.texts], dtype=pl.String),
            "answer": pl.Series([answer for r in rows for answer in r.draft.answers], dtype=pl.Boolean),
        }
    )
    return frame.sort("row", "slot")


def _parts(rows: Sequence[Candidate], split: SplitParams | None) -> list[Part]:
    """Stated parts as they are; the rest by content, or all train when some source is the test part."""
    if split is None:
        split = SplitParams(test=0.0) if any(r.part == "test" for r in rows) else SplitParams()
    open_rows = [r for r in rows if r.part is None]
    questions = [_question(r.draft) for r in open_rows]
    decided = iter(assign(questions, split) if questions else [])
    parts = [next(decided) if r.part is None else r.part for r in rows]
    if questions and split.test and "test" not in parts:
        count = len(set(questions))
        raise UserError("split.no_test", rows=count, asked=f"{split.test:.1%}", least=ceil(1 / split.test))
    return parts


def _question(draft: Draft) -> str:
    """What the model is asked: everything but the last answer, so that one question never stands on both sides."""
    return "\n".join(draft.texts[:-1] if draft.turns else draft.texts)


def _gather_one(params: DataParams, source: Located, events: Events, limit: int | None) -> SourceRows:
    found = SourceRows(source)
    items: list[tuple[str, Record | Reject]] = []
    for pair in islice(read(source), limit):
        if len(items) % EVERY == 0:
            events.progress(len(items), None, "rows", source=source.params.name)
        items.append(pair)
    found.read = len(items)
    sample = list(islice((item for _, item in items if isinstance(item, Record)), SAMPLE))
    found.shape = _shape_of(params, source, sample) if sample else None
    for number, (file, item) in enumerate(items):
        if number % EVERY == 0:
            events.progress(number, found.read, "rows", source=source.params.name)
        _take(found, file, item)
    if not found.read:
        raise UserError("data.empty", source=source.params.name, place=source.params.from_)
    return found


def _take(found: SourceRows, file: str, item: Record | Reject) -> None:
    """Turn one record into a draft, or note why it is none."""
    source = found.located.params
    if isinstance(item, Reject):
        found.rejected.append(Rejected(source.name, file, item))
        return
    assert found.shape is not None  # chosen from the records: with one record there is a shape
    try:
        draft = draft_of(item.fields, found.shape)
    except Unfit as unfit:
        reject = Reject(item.offset, item.line, unfit.reason, unfit.detail, excerpt(item.fields))
        found.rejected.append(Rejected(source.name, file, reject))
        return
    row = row_id(found.located.content, item.offset)
    found.rows.append(Candidate(row, item.offset, source.part, draft))
    found.tools += bool(draft.turns and item.fields.get("tools"))


def row_id(content: str, offset: int) -> int:
    """The identity of a row: 64 bits of H(source content, offset)."""
    return int.from_bytes(hashlib.sha256(f"{content}:{offset}".encode()).digest()[:8])


def _shape_of(params: DataParams, source: Located, sample: Sequence[Record]) -> ClassificationShape | Chat:
    """The shape asked for when the records can have it, or the one recognised."""
    columns = [frozenset(record.fields) for record in sample]
    names = ", ".join(sorted(excerpt(name) for name in frozenset().union(*columns)))
    if params.shape.use == "auto":
        for found in columns:
            if shape := recognise(found):
                return shape
        raise UserError("data.shape_unknown", source=source.params.name, found=names, known=expected())
    if any(fits(params.shape, found) for found in columns):
        return params.shape
    raise UserError("data.columns", source=source.params.name, found=names, needed=needed_by(params.shape))


def _refuse_same_content(located: Sequence[Located]) -> None:
    """One content listed twice would give two rows one identity, and put the same rows on both sides of a split."""
    first: dict[str, str] = {}
    for source in located:
        other = first.setdefault(source.content, source.params.name)
        if other != source.params.name:
            raise UserError("data.same_content", first=other, second=source.params.name)


def _refuse_many_rejects(found: SourceRows, fail_above: float) -> None:
    bad = len(found.rejected)
    if bad / found.read <= fail_above:
        return
    shown = "\n".join(f"  {described(r)}" for r in found.rejected[:SHOWN])
    raise UserError(
        "data.too_many_rejects",
        source=found.located.params.name,
        rejected=bad,
        read=found.read,
        share=f"{bad / found.read:.1%}",
        allowed=f"{fail_above:.1%}",
        shown=shown,
    )


def described(rejected: Rejected) -> str:
    """One reject as a line for a person: file, line, reason and what exactly."""
    item = rejected.reject
    place = f"{rejected.file}:{item.line}" if item.line else f"{rejected.file} [{item.offset}]"
    detail = f" ({item.detail})" if item.detail else ""
    return f"{place}: {text(TEXTS[item.reason])}{detail}"
