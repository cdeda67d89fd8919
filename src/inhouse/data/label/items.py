"""Rows to label: a text, the label it may have, and the row it came from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from inhouse.core.errors import UserError
from inhouse.core.messages import text as say
from inhouse.core.run import Events
from inhouse.data.label.settings import LabelParams
from inhouse.data.records import WITHOUT_ROW, Record, Reject, Unfit
from inhouse.data.shapes.draft import optional_text_of, text_of
from inhouse.data.source import Located, read

if TYPE_CHECKING:
    import polars as pl

    from inhouse.data.operators.around import Around
    from inhouse.data.operators.pii import Pii

EVERY = 1000  # rows between two reports of progress
SINGLE = (str, int, float, bool)


@dataclass(frozen=True, slots=True)
class Item:
    """One row. `id` is made from the text alone, so that it survives a move, a sort and a change of other columns."""

    id: str
    text: str
    label: str | None
    fields: dict[str, Any]


@dataclass(frozen=True)
class Items:
    """What the sources hold: rows, and how many were no use (no text, broken).

    `asked`: the text of each row as a model is asked about it, null where it is not asked; absent: all as they are.
    """

    rows: tuple[Item, ...]
    rejected: int
    asked: tuple[str | None, ...] | None = None

    def for_model(self) -> list[Item]:
        """The rows as a model is asked about them; those that it is not asked about have neither text nor label."""
        if self.asked is None:
            return list(self.rows)
        pairs = zip(self.rows, self.asked, strict=True)
        return [replace(row, text=told or "", label=None if told is None else row.label) for row, told in pairs]


def begin(events: Events, step: str) -> None:
    """Tell a watcher that a step begins, named by the text `step.<name>`."""
    events.stage = step
    events.emit("stage.started")


def text_id(text: str) -> str:
    """16 hex digits of the text's hash."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def items_of(located: Sequence[Located], params: LabelParams, events: Events) -> Items:
    """Every row with a text, in the order of the sources. Raises data.empty, label.no_text, label.unknown_label."""
    rows, rejected = [], 0
    begin(events, "label_read")
    for source in located:
        found = 0
        for record in _records(source, events):
            found += 1
            item = None if record is None else _item(record, params, source.params.name)
            if item is None:
                rejected += 1
            else:
                rows.append(item)
        if not found:
            raise UserError("data.empty", source=source.params.name, place=source.params.from_)
    if not rows:
        raise UserError("label.no_text", column=params.text_column, rows=rejected)
    return Items(tuple(rows), rejected)


def without_personal_data(found: Items, steps: Sequence[Pii], around: Around) -> Items:
    """The same rows; a model is asked about their texts as the project's `pii` steps leave them."""
    import polars as pl

    from inhouse.data.operators.pii import change

    pieces = pl.DataFrame(
        {"row": range(len(found.rows)), "slot": 0, "text": [row.text for row in found.rows]},
        schema={"row": pl.UInt64, "slot": pl.UInt32, "text": pl.String},
    )
    for step in steps:
        pieces = pieces.with_columns(text=change(pieces, step, around)[0]).drop_nulls("text")
    told = dict(pieces.select("row", "text").iter_rows())
    return replace(found, asked=tuple(told.get(row) for row in range(len(found.rows))))


def _records(source: Located, events: Events) -> Iterator[Record | None]:
    for number, (_, record) in enumerate(read(source)):
        if number % EVERY == 0:
            events.progress(number, None, "rows", source=source.params.name)
        if isinstance(record, Reject) and record.reason in WITHOUT_ROW:
            continue
        yield record if isinstance(record, Record) else None


def _item(record: Record, params: LabelParams, source: str) -> Item | None:
    try:
        text = text_of(record.fields, params.text_column)
        label = optional_text_of({params.label_column: None, **record.fields}, params.label_column).strip() or None
    except Unfit:
        return None
    if label is not None and params.labels is not None and label not in params.labels:
        place = f"{source}:{record.offset}"
        if record.line is not None:
            place = say("data.at_line", place=place, line=record.line)
        raise UserError("label.unknown_label", label=label, place=place, labels=", ".join(params.labels))
    return Item(text_id(text), text, label, record.fields)


def labels_of(items: Sequence[Item], params: LabelParams) -> tuple[str, ...]:
    """The labels there are: those stated, else those of the rules and of the rows, sorted."""
    if params.labels is not None:
        return params.labels
    found = {item.label for item in items if item.label is not None}
    for rule in params.rules:
        values = rule.model_dump()
        found |= {values["label"]} if "label" in values else set(values.get("labels", {}).values())
    return tuple(sorted(found))


def columns_of(items: Sequence[Item]) -> list[str]:
    """The columns that hold single values, sorted."""
    return sorted({name for item in items for name, value in item.fields.items() if isinstance(value, SINGLE)})


def frame_of(items: Sequence[Item], names: Sequence[str]) -> pl.DataFrame:
    """What rules see: the column text, and the named columns as text."""
    import polars as pl

    columns = {name: [_shown(item.fields.get(name)) for item in items] for name in names}
    columns["text"] = [item.text for item in items]
    return pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String))


def _shown(value: object) -> str | None:
    """A single value as JSON writes it, without quotes; None for others."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value).encode(errors="replace").decode() if isinstance(value, SINGLE) else None
