"""Label rows: given labels stay, rules vote on the rest, a model answers for what is left."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from inhouse.core.agreement import Agreement, agreement
from inhouse.core.artifact import Frozen
from inhouse.core.errors import UserError
from inhouse.core.store import disk_errors, write_durably
from inhouse.data.label.items import Item, Items, begin, labels_of
from inhouse.data.label.model import ModelFigures, Opinion, Place, ask_model
from inhouse.data.label.settings import LabelParams
from inhouse.data.label.vote import RuleFigures, Voted, vote

By = Literal["given", "rules", "model"]


@dataclass(frozen=True, slots=True)
class Labelled:
    """A row with what was found: no label when nobody knew one."""

    item: Item
    label: str | None
    by: By | None
    opinion: Opinion | None = None


class LabelFigures(Frozen):
    """What came of labelling. `agreement` compares the rules' decisions with given labels."""

    rows: int
    rejected: int
    given: int
    by_rules: int
    by_model: int
    open: int
    ties: int
    labels: dict[str, int]
    rules: tuple[RuleFigures, ...]
    agreement: Agreement | None = None
    model: ModelFigures | None = None


def label_rows(found: Items, params: LabelParams, place: Place) -> tuple[list[Labelled], LabelFigures]:
    """Label every row that has none. Raises label.nothing_to_do, label.few_labels rules' and the model's."""
    if not params.rules and params.ask is None:
        raise UserError("label.nothing_to_do")
    labels = labels_of(found.rows, params)
    if len(labels) < 2:
        raise UserError("label.few_labels", found=", ".join(labels) or "-")
    begin(place.events, "label_rules")
    voted = vote(found.rows, labels, params, place.events)
    open_rows = [row for row, item in enumerate(found.rows) if item.label is None and voted.decided[row] is None]
    if params.ask is not None:
        begin(place.events, "label_model")
    shown = found.for_model()
    open_rows = [row for row in open_rows if shown[row].text]
    asked = None if params.ask is None else ask_model(shown, open_rows, labels, params.ask, place)
    opinions = {} if asked is None else asked.opinions
    rows = [_labelled(item, voted.decided[row], opinions.get(row)) for row, item in enumerate(found.rows)]
    return rows, _figures(found, rows, voted, None if asked is None else asked.figures)


def _labelled(item: Item, decided: str | None, opinion: Opinion | None) -> Labelled:
    if item.label is not None:
        return Labelled(item, item.label, "given")
    if decided is not None:
        return Labelled(item, decided, "rules")
    if opinion is not None:
        return Labelled(item, opinion.label, "model", opinion)
    return Labelled(item, None, None)


def _figures(found: Items, rows: Sequence[Labelled], voted: Voted, model: ModelFigures | None) -> LabelFigures:
    by = Counter(row.by for row in rows)
    pairs = zip(found.rows, voted.decided, strict=True)
    judged = [(item.label, label) for item, label in pairs if item.label is not None and label is not None]
    return LabelFigures(
        rows=len(rows), rejected=found.rejected, given=by["given"], by_rules=by["rules"], by_model=by["model"],
        open=by[None], ties=voted.ties, labels=dict(sorted(Counter(r.label for r in rows if r.label).items())),
        rules=voted.figures, agreement=agreement(judged), model=model,
    )  # fmt: skip


def write_labelled(path: Path, rows: Sequence[Labelled], params: LabelParams) -> int:
    """Write the rows that have a label as JSON lines with all their columns, to be a source of a dataset."""
    lines = [json_line(line) for line in _lines(rows, params)]
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, "".join(lines))
    return len(lines)


def json_line(value: dict[str, Any]) -> str:
    """One line of JSON; a lone surrogate in some column stays the escape that it was in the source."""
    line = json.dumps(value, ensure_ascii=False, default=str)
    try:
        line.encode()
    except UnicodeEncodeError:
        line = json.dumps(value, default=str)
    return line + "\n"


def _lines(rows: Sequence[Labelled], params: LabelParams) -> Iterator[dict[str, Any]]:
    for row in rows:
        if row.label is None:
            continue
        line = {**row.item.fields, params.label_column: row.label, "label_by": row.by}
        if row.opinion is not None and row.opinion.confidence is not None:
            line["label_confidence"] = row.opinion.confidence
        if row.opinion is not None and row.opinion.why is not None:
            line["label_why"] = row.opinion.why
        yield line
