"""Rows in columns: what a shard holds and what operators see."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inhouse.core.rows import Message
from inhouse.data.shapes.draft import Draft

if TYPE_CHECKING:
    import polars as pl


RESULT_DEPENDS_ON = ("polars",)  # its regular expressions, Unicode tables and Parquet writer
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Batch:
    """Rows and their texts, both sorted by row id, so that no result depends on the order of reading.

    `rows`: row u64, source, file, offset, part (train, valid, test; null before it is decided), stated (whether the
    source said the part), label, parent u64 (the row it was made from), turns (JSON; only for conversations that hold
    more than texts), extra (JSON: tools, rejected and desirable, of the rows that have them).
    `pieces`: row u64, slot u32, name, text, answer; one row has one or more.
    """

    rows: pl.DataFrame
    pieces: pl.DataFrame

    def docs(self) -> pl.DataFrame:
        """Rows with their whole text: the pieces joined by line ends."""
        import polars as pl

        if self.pieces.height == self.rows.height:  # one piece each, in the same order
            return self.rows.with_columns(self.pieces["text"])
        whole = self.pieces.group_by("row", maintain_order=True).agg(pl.col("text").str.join("\n"))
        return self.rows.with_columns(whole["text"])

    def only(self, rows: pl.DataFrame) -> Batch:
        """The rows named in the column `row`, which is sorted; a column `part` there replaces theirs."""
        kept = self.rows.join(rows.select("row"), on="row", how="semi", maintain_order="left")
        if "part" in rows.columns:
            kept = kept.drop("part").join(rows.select("row", "part"), on="row", maintain_order="left")
        pieces = self.pieces
        if kept.height < self.rows.height:
            pieces = pieces.join(kept.select("row"), on="row", how="semi", maintain_order="left")
        return Batch(kept.select(self.rows.columns), pieces)

    def without(self, rows: pl.DataFrame) -> Batch:
        """The batch less the rows named in the column `row`."""
        if rows.is_empty():
            return self
        gone = rows.select("row")
        return Batch(
            self.rows.join(gone, on="row", how="anti", maintain_order="left"),
            self.pieces.join(gone, on="row", how="anti", maintain_order="left"),
        )

    def with_texts(self, texts: pl.Series) -> Batch:
        """The batch with another text for every piece."""
        return replace(self, pieces=self.pieces.with_columns(texts.alias("text")))


@cache
def row_schema() -> dict[str, Any]:
    """Types of `Batch.rows`."""
    import polars as pl

    return {
        "row": pl.UInt64, "source": pl.String, "file": pl.String, "offset": pl.Int64, "part": pl.String,
        "stated": pl.Boolean, "label": pl.String, "parent": pl.UInt64, "turns": pl.String,
        "extra": pl.String,
    }  # fmt: skip


@cache
def piece_schema() -> dict[str, Any]:
    """Types of `Batch.pieces`."""
    import polars as pl

    return {"row": pl.UInt64, "slot": pl.UInt32, "name": pl.String, "text": pl.String, "answer": pl.Boolean}


def save(batch: Batch, folder: Path, name: str) -> None:
    """Write a batch as two Arrow streams."""
    write_frame(batch.rows, folder / f"{name}.rows.arrow")
    write_frame(batch.pieces, folder / f"{name}.pieces.arrow")


def load(folder: Path, name: str) -> Batch:
    """A batch that `save` wrote."""
    return Batch(read_frame(folder / f"{name}.rows.arrow"), read_frame(folder / f"{name}.pieces.arrow"))


def write_frame(frame: pl.DataFrame, path: Path) -> None:
    """Write one Arrow stream: to write and read a small one takes a tenth of an Arrow file's time."""
    frame.write_ipc_stream(path, compression="uncompressed")


def read_frame(path: Path, *columns: str) -> pl.DataFrame:
    """The frame that `write_frame` wrote, or some of its columns."""
    import polars as pl

    return pl.read_ipc_stream(path, columns=list(columns) or None)


def turns_of(draft: Draft) -> str | None:
    """What of a conversation its texts do not tell, as JSON; None for the most of them."""
    if all(
        turn.content is not None and not turn.tool_calls and not turn.tool_call_id and turn.weight is None
        for turn in draft.turns
    ):
        return None
    return json.dumps(_bare(draft.turns), ensure_ascii=False)


def _bare(turns: Sequence[Message]) -> list[dict[str, Any]]:
    """Turns without what they say, which stands in the pieces."""
    said = [turn.model_copy(update={"content": None if turn.content is None else ""}) for turn in turns]
    return [turn.model_dump(exclude_none=True) for turn in said]


def extra_of(draft: Draft) -> str | None:
    """Tools, the bare turns of the worse answer, and whether the answer was liked, as JSON; None without any."""
    worse = None if draft.rejected is None else _bare(draft.rejected)
    held = {"tools": draft.tools, "rejected": worse, "desirable": draft.desirable}
    found = {name: value for name, value in held.items() if value is not None}
    return json.dumps(found, ensure_ascii=False) if found else None


def drafts_of(batch: Batch) -> Iterator[tuple[Draft, list[str]]]:
    """Each row as the draft it came from, and the texts that the steps left, in order."""
    names, texts = batch.pieces["name"].to_list(), batch.pieces["text"].to_list()
    start = 0
    lengths = [len(list(group)) for _, group in groupby(batch.pieces["row"].to_list())]
    held = (batch.rows[name] for name in ("label", "turns", "extra"))
    for length, label, turns, extra in zip(lengths, *held, strict=True):
        own, said = tuple(names[start : start + length]), texts[start : start + length]
        yield Draft(own, tuple(said), label, _turns(own, turns), *_extra(extra)), said
        start += length


def _extra(extra: str | None) -> tuple[tuple[dict[str, Any], ...] | None, tuple[Message, ...] | None, bool | None]:
    if extra is None:
        return None, None, None
    held = json.loads(extra)
    tools = None if "tools" not in held else tuple(held["tools"])
    worse = None if "rejected" not in held else tuple(map(Message.model_validate, held["rejected"]))
    return tools, worse, held.get("desirable")


def _turns(names: Sequence[str], turns: str | None) -> tuple[Message, ...]:
    if turns is None:
        return tuple(Message.model_validate({"role": name, "content": ""}) for name in names if name in ROLES)
    return tuple(Message.model_validate(turn) for turn in json.loads(turns))
