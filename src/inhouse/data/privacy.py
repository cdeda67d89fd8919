"""With a `pii` step in the project no value that the step hides may reach any other file, event or message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from inhouse.core.errors import UserError
from inhouse.data.batch import read_frame
from inhouse.data.records import Reason, Reject

if TYPE_CHECKING:
    from pydantic import BaseModel

    from inhouse.data.build import Built
    from inhouse.data.operators.pii import Pii

# Reasons whose detail names a column, a place or a kind, and nothing that stood in the row.
ABOUT_FORM: frozenset[Reason] = frozenset((
    "missing_column", "empty_text", "wrong_type", "no_answer", "invalid_encoding", "not_an_object", "no_text",
    "column_count", "broken_json", "broken_csv", "unheld_field",
))  # fmt: skip


def pii_steps(steps: Sequence[BaseModel]) -> list[tuple[int, Pii]]:
    """The steps that take personal data out, with their places."""
    return [(place, step) for place, step in enumerate(steps) if step.use == "pii"]  # type: ignore[attr-defined, misc]


def may_quote(steps: Sequence[BaseModel], place: int) -> bool:
    """Whether what the step at this place sees may be shown: no personal data is to be hidden, or it is already."""
    found = pii_steps(steps)
    return not found or found[0][0] < place


def figures_of(told: dict[str, Any]) -> dict[str, Any]:
    """What a step tells of all rows, less what quotes them."""
    return {name: value for name, value in told.items() if isinstance(value, bool | int | float)}


def about_form(item: Reject) -> str:
    """A reject's detail, when it can be no part of the row."""
    return item.detail if item.reason in ABOUT_FORM else ""


def refuse_personal_labels(built: Built) -> None:
    """Raise data.personal_labels when a label of any row holds what a pii step looks for.

    Labels are not masked, for that would make other classes of them. Those that the project file states are allowed.
    """
    from inhouse.data.shapes.classification import ClassificationShape

    shape = built.params.shape
    steps = pii_steps(built.params.steps)
    if not steps or (isinstance(shape, ClassificationShape) and shape.labels is not None):
        return
    labels = _labels(built)
    if not labels:
        return
    from inhouse.guard.pii import Wanted, find_many

    types: set[str] = set()
    bad: set[int] = set()
    for _, step in steps:
        wanted = Wanted(frozenset(step.types), step.private_addresses, step.at_least)
        for number, spans in enumerate(find_many(labels, wanted)):
            types |= {span.type for span in spans}
            bad |= {number} if spans else set()
    if bad:
        column = shape.label_column if isinstance(shape, ClassificationShape) else "label"
        shown = ", ".join(sorted(types))
        raise UserError("data.personal_labels", column=column, found=len(bad), labels=len(labels), types=shown)


def _labels(built: Built) -> list[str]:
    """Every label of the rows that are left, once."""
    import polars as pl

    found = [pl.Series("label", [], dtype=pl.String)]
    for number in built.index["shard"].unique():
        shard = built.shards[number]
        rows = read_frame(shard.folder / f"{shard.name}.rows.arrow", "row", "label")
        found.append(rows.join(built.index.select("row"), on="row", how="semi")["label"].drop_nulls().unique())
    return pl.concat(found).unique().sort().to_list()
