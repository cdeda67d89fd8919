"""The files of a dataset artifact: Parquet tables of rows, one or more for each part.

`train-00000.parquet`, `train-00001.parquet`, … hold the rows of a part in the order of their ids. Columns: `id`,
`messages` (list of role, content and, where tools are used, tool_calls as JSON and tool_call_id; where turns are not
learned, weight: 0 or null) or `text` for plain documents, `label` where there are labels, `source`, `file`, `offset`,
and `parent` (the row it was made from, or null) where rows were augmented. Where a row has them also `tools`
(definitions as JSON), `rejected` (the worse answer, as `messages`) and `desirable` (true or false).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inhouse.core.plugins import require
from inhouse.core.rows import Message, Part, Row

if TYPE_CHECKING:
    import polars as pl

FACTS = "dataset.json"
EXTRA = ("tools", "rejected", "desirable")  # columns that only some datasets have


def part_files(folder: Path, part: Part) -> list[Path]:
    """The tables of a part, in order; none when the dataset has no such part."""
    return sorted(folder.glob(f"{part}-*.parquet"))


def read_rows(folder: Path, part: Part) -> Iterator[Row]:
    """The rows of a part in the order of their ids; one table is held in memory at a time."""
    require("data", "polars")
    import polars as pl

    for path in part_files(folder, part):
        for fields in pl.read_parquet(path).iter_rows(named=True):
            yield _row(fields)


def write_rows(folder: Path, part: Part, rows: Sequence[Row]) -> int:
    """Write the rows of a part as one table; returns how many."""
    require("data", "polars")
    import polars as pl

    turns = [turn for row in rows for turn in row.messages]
    tools = any(turn.tool_calls or turn.tool_call_id for turn in turns)
    weights = any(turn.weight is not None for turn in turns)
    columns = {
        "id": pl.Series([row.id for row in rows], dtype=pl.String),
        "messages": messages_column([row.messages for row in rows], tools=tools, weights=weights),
        **extra_columns([(row.tools, row.rejected, row.desirable) for row in rows]),
        "label": pl.Series([row.label for row in rows], dtype=pl.String),
        "source": pl.Series([row.source for row in rows], dtype=pl.String),
        "file": pl.Series([row.file for row in rows], dtype=pl.String),
        "offset": pl.Series([row.offset for row in rows], dtype=pl.Int64),
        "parent": pl.Series([row.parent for row in rows], dtype=pl.String),
    }
    write_table(pl.DataFrame(columns), folder / f"{part}-00000.parquet")
    return len(rows)


GROUP_ROWS = 65_536  # rows that a reader takes at once


def write_table(frame: pl.DataFrame, path: Path) -> None:
    """Write a table whose bytes depend on its content only."""
    frame.write_parquet(path, compression="zstd", compression_level=3, statistics=False, row_group_size=GROUP_ROWS)


def write_table_of(parts: Iterable[pl.DataFrame], schema: pl.Schema, path: Path) -> None:
    """Write a table that comes in parts of any height: with the bytes of `write_table` and the memory of a part."""
    from polars.io.plugins import register_io_source

    def batches(*_: object) -> Iterator[pl.DataFrame]:
        return _even(parts)

    register_io_source(batches, schema=schema).sink_parquet(
        path, compression="zstd", compression_level=3, statistics=False, row_group_size=GROUP_ROWS, maintain_order=True
    )


def _even(parts: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """The same rows in parts that are whole groups of rows, the last one excepted."""
    import polars as pl

    rest: pl.DataFrame | None = None
    for part in parts:
        rest = part if rest is None else pl.concat([rest, part])
        whole = rest.height // GROUP_ROWS * GROUP_ROWS
        if whole:
            yield rest.head(whole).rechunk()
            rest = rest.slice(whole)
    if rest is not None and rest.height:
        yield rest.rechunk()


def messages_column(turns: Iterable[Sequence[Message] | None], *, tools: bool, weights: bool = False) -> pl.Series:
    """Conversations as a column of lists of turns; tool_calls and tool_call_id only where `tools`, weight likewise."""
    import polars as pl

    fields: dict[str, Any] = {"role": pl.String, "content": pl.String}
    if tools:
        fields |= {"tool_calls": pl.String, "tool_call_id": pl.String}
    if weights:
        fields["weight"] = pl.Int8
    values = [None if talk is None else [_turn(turn, fields) for turn in talk] for talk in turns]
    return pl.Series("messages", values, dtype=pl.List(pl.Struct(fields)))


Extra = tuple[Sequence[Mapping[str, Any]] | None, Sequence[Message] | None, bool | None]


def extra_columns(rows: Sequence[Extra], *, among: Collection[str] | None = None) -> dict[str, pl.Series]:
    """The columns tools, rejected and desirable of some rows: those of `among`, by default those that any row has."""
    import polars as pl

    found: dict[str, pl.Series] = {}
    tools, rejected, desirable = zip(*rows, strict=True) if rows else ((), (), ())
    wanted = among if among is not None else [
        name for name, values in zip(EXTRA, (tools, rejected, desirable), strict=True)
        if any(value is not None for value in values)
    ]  # fmt: skip
    if "tools" in wanted:
        told = [None if value is None else json.dumps(value, ensure_ascii=False) for value in tools]
        found["tools"] = pl.Series("tools", told, dtype=pl.String)
    if "rejected" in wanted:
        calls = any(turn.tool_calls or turn.tool_call_id for turns in rejected for turn in turns or ())
        found["rejected"] = messages_column(rejected, tools=among is not None or calls).alias("rejected")
    if "desirable" in wanted:
        found["desirable"] = pl.Series("desirable", desirable, dtype=pl.Boolean)
    return found


def _turn(turn: Message, fields: Collection[str]) -> dict[str, Any]:
    calls = None if turn.tool_calls is None else json.dumps(turn.tool_calls, ensure_ascii=False)
    return {name: calls if name == "tool_calls" else getattr(turn, name) for name in fields}


def _row(fields: Mapping[str, Any]) -> Row:
    turns = [_message(turn) for turn in fields["messages"]] if "messages" in fields else []
    if not turns:
        turns = [Message(role="assistant", content=fields["text"])]
    return Row(
        id=fields["id"],
        messages=turns,
        tools=None if fields.get("tools") is None else json.loads(fields["tools"]),
        rejected=None if fields.get("rejected") is None else [_message(turn) for turn in fields["rejected"]],
        desirable=fields.get("desirable"),
        label=fields.get("label"),
        source=fields["source"],
        file=fields["file"],
        offset=fields["offset"],
        parent=fields.get("parent"),
    )


def _message(turn: Mapping[str, Any]) -> Message:
    calls = turn.get("tool_calls")
    shown = {**turn, "tool_calls": None if calls is None else json.loads(calls)}
    return Message.model_validate(shown)
