"""Read every source, understand its records, and lay them out in shards on the disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inhouse.core.errors import UserError
from inhouse.core.rows import Part, after_question
from inhouse.data.batch import Batch, extra_of, piece_schema, row_schema, save, turns_of, write_frame
from inhouse.data.privacy import about_form
from inhouse.data.records import WITHOUT_ROW, Record, Reject, Span, Unfit, excerpt
from inhouse.data.shapes import Understood as Shape
from inhouse.data.shapes import draft_of, expected, fits, needed_by, recognise
from inhouse.data.shapes.calls import CALL
from inhouse.data.shapes.draft import Draft
from inhouse.data.source import Located, SourceParams, cut_file, read, read_file, size_of
from inhouse.data.split import SplitParams, group_key, moment_of, question_keys
from inhouse.data.tasks import Finished, finished, publish

if TYPE_CHECKING:
    import polars as pl

COUNTED = ("read", "rejected", "without_row")  # what a task tells of the rows it read
SAMPLE = 100  # records that are looked at to recognise a shape
SHARD_BYTES = 5 * 2**20  # text of a shard: small enough for several in memory, large enough to hide each call's cost
SHARD_ROWS = 50_000


@dataclass(frozen=True)
class Piece:
    """A file of a source, or one stretch of it."""

    content: str  # of the whole file; see Located.contents
    name: str
    path: Path
    bytes: int
    span: Span | None = None


@dataclass(frozen=True)
class ReadTask:
    """Some files of one source, or a stretch of one, to be read into shards below `folder`."""

    folder: Path
    params: SourceParams
    shape: Shape | None  # None: no record of the source can be used
    split: SplitParams
    pieces: tuple[Piece, ...]
    shard_bytes: int
    excerpts: bool  # whether rejects may show what stands in the bad row


def sampled_shape(asked: Any, source: Located, group: str | None = None) -> Shape | None:
    """The shape asked for when the source's first records can have it, or the one recognised; None without records.

    Raises data.shape_unknown, and data.columns where they lack a column of the shape or the one that `group` names.
    """
    sample = list(islice((item for _, item in read(source) if isinstance(item, Record)), SAMPLE))
    if not sample:
        return None
    columns = [frozenset(record.fields) for record in sample]
    names = ", ".join(sorted(excerpt(name) for name in frozenset().union(*columns)))
    if group is not None and source.params.part is None and not any(group in found for found in columns):
        raise UserError("data.columns", source=source.params.name, found=names, needed=group)
    if asked.use == "auto":
        for record in sample:
            if shape := recognise(record.fields):
                return shape
        raise UserError("data.shape_unknown", source=source.params.name, found=names, known=expected())
    if any(fits(asked, found) for found in columns):
        return asked  # type: ignore[no-any-return]
    raise UserError("data.columns", source=source.params.name, found=names, needed=needed_by(asked))


def stretches(source: Located, shard_bytes: int) -> Iterator[tuple[Piece, ...]]:
    """The work of reading a source in portions of about a shard: large files cut where their format allows it."""
    together: list[Piece] = []
    size = 0
    for content, (name, path) in zip(source.contents, source.files, strict=True):
        bytes_ = size_of(path)
        spans = cut_file(source.params, path, shard_bytes) if bytes_ > shard_bytes else [None]
        if len(spans) > 1:
            yield from ((Piece(content, name, path, bytes_ // len(spans), span),) for span in spans)
            continue
        together.append(Piece(content, name, path, bytes_))
        size += bytes_
        if size >= shard_bytes:
            yield tuple(together)
            together, size = [], 0
    if together:
        yield tuple(together)


def read_shards(task: ReadTask) -> Finished:
    """Read a task's records into shards; what cannot be used goes to rejects.jsonl with file, place and reason."""
    if done := finished(task.folder):
        return done
    with publish(task.folder) as (out, result):
        reader = _Reader(task, out)
        for piece in task.pieces:
            for item in read_file(task.params, piece.path, piece.span):
                reader.take(piece, item)
        reader.flush()
        reader.rejects.close()
        counts = (reader.read, reader.rejected, reader.without_row)
        result.update(zip(COUNTED, counts, strict=True), shards=reader.shards)
    return finished(task.folder)  # type: ignore[return-value]


@dataclass
class _Reader:
    """Rows of a task on their way into shards."""

    task: ReadTask
    out: Path
    read: int = 0
    rejected: int = 0
    without_row: int = 0  # rejects that stand for a file without a row
    size: int = 0
    shards: list[dict[str, Any]] = field(default_factory=list)
    rows: list[tuple[int, str, int, Part | None, bool, str | None, str | None, str | None]] = field(
        default_factory=list
    )
    drafts: list[Draft] = field(default_factory=list)
    keys: list[tuple[int | None, float | None]] = field(default_factory=list)
    questions: dict[int, str] = field(default_factory=dict)  # by place in `keys`: their keys are made together

    def __post_init__(self) -> None:
        self.rejects = (self.out / "rejects.jsonl").open("w", encoding="utf-8", newline="\n")

    def take(self, piece: Piece, item: Record | Reject) -> None:
        """Turn one record into a draft, or note why it is none."""
        self.read += 1
        if isinstance(item, Reject):
            self.reject(piece, item)
            return
        try:
            assert self.task.shape is not None  # chosen from the records: with one record there is a shape
            draft = draft_of(item.fields, self.task.shape)
            keys, question = _split_keys(item.fields, draft, self.task)
        except Unfit as unfit:
            self.reject(piece, Reject(item.offset, item.line, unfit.reason, unfit.detail, excerpt(item.fields)))
            return
        part = self.task.params.part
        row = row_id(piece.content, item.offset)
        held = (draft.label, turns_of(draft), extra_of(draft))
        self.rows.append((row, piece.name, item.offset, part, part is not None, *held))
        self.drafts.append(draft)
        if question is not None:
            self.questions[len(self.keys)] = question
        self.keys.append(keys)
        self.size += sum(map(len, draft.texts))  # characters: near enough
        if self.size >= self.task.shard_bytes or len(self.rows) >= SHARD_ROWS:
            self.flush()

    def reject(self, piece: Piece, item: Reject) -> None:
        """Note a row that cannot be used."""
        self.rejected += 1
        self.without_row += item.reason in WITHOUT_ROW
        shown = {"source": self.task.params.name, "file": piece.name, **asdict(item)}
        if not self.task.excerpts:
            shown |= {"excerpt": "", "detail": about_form(item)}
        self.rejects.write(json.dumps(shown, ensure_ascii=False) + "\n")

    def flush(self) -> None:
        """Write the rows gathered so far as one shard."""
        if not self.rows:
            return
        name = f"{len(self.shards):05d}"
        batch = _batch(self.task.params.name, self.rows, self.drafts)
        save(batch, self.out, name)
        for place, key in zip(
            self.questions, question_keys(list(self.questions.values()), self.task.split), strict=True
        ):
            self.keys[place] = key, self.keys[place][1]
        write_frame(_keys([row[0] for row in self.rows], self.keys), self.out / f"{name}.keys.arrow")
        self.shards.append({"name": name, "rows": batch.rows.height})
        self.rows, self.drafts, self.keys, self.questions, self.size = [], [], [], {}, 0


def row_id(content: str, offset: int) -> int:
    """The identity of a row: 64 bits of H(content of its file, place in it)."""
    return int.from_bytes(hashlib.sha256(f"{content}:{offset}".encode()).digest()[:8])


def _batch(source: str, rows: Sequence[tuple[Any, ...]], drafts: Sequence[Draft]) -> Batch:
    import polars as pl

    ids, files, offsets, parts, stated, labels, turns, extra = zip(*rows, strict=True)
    count = len(rows)
    columns = {
        "row": ids, "source": [source] * count, "file": files, "offset": offsets, "part": parts, "stated": stated,
        "label": labels, "parent": [None] * count, "turns": turns, "extra": extra,
    }  # fmt: skip
    lengths = [len(draft.texts) for draft in drafts]
    pieces = {
        "row": [row for row, length in zip(ids, lengths, strict=True) for _ in range(length)],
        "slot": [slot for length in lengths for slot in range(length)],
        "name": [name for draft in drafts for name in draft.names],
        "text": [text for draft in drafts for text in draft.texts],
        "answer": [answer for draft in drafts for answer in draft.answers],
    }
    return Batch(
        pl.DataFrame(columns, schema=row_schema()).sort("row"),
        pl.DataFrame(pieces, schema=piece_schema()).sort("row", "slot"),
    )


def _keys(rows: Sequence[int], keys: Sequence[tuple[int | None, float | None]]) -> pl.DataFrame:
    import polars as pl

    columns = {"row": rows, "key": [key for key, _ in keys], "moment": [moment for _, moment in keys]}
    return pl.DataFrame(columns, schema={"row": pl.UInt64, "key": pl.UInt64, "moment": pl.Float64})


def _split_keys(
    fields: Mapping[str, Any], draft: Draft, task: ReadTask
) -> tuple[tuple[int | None, float | None], str | None]:
    """What decides the row's part: the key of its group, and its time, or the question that makes the key.

    None of them when the part is stated.
    """
    split = task.split
    if task.params.part is not None:
        return (None, None), None
    moment = moment_of(_column(fields, split.time), split.time) if split.time else None
    group = fields.get(split.group) if split.group else None
    if not (split.test or split.valid):
        return (0, moment), None
    if group is not None:
        return (group_key(group, split), moment), None
    return (None, moment), question_of(draft)


def _column(fields: Mapping[str, Any], name: str) -> object:
    if fields.get(name) is None:
        raise Unfit("missing_column", name)
    return fields[name]


def question_of(draft: Draft) -> str:
    """What the model is asked: all but the last answer and tool calls, so that one question has one side of a split."""
    if not draft.turns:
        return "\n".join(draft.texts)
    if draft.rejected is not None:  # the better and the worse answer are both left out
        return "\n".join(turn.content for turn in draft.turns[: after_question(draft.turns)] if turn.content)
    return "\n".join(text for name, text in zip(draft.names[:-1], draft.texts[:-1], strict=True) if name != CALL)
