"""Unpaired preferences: one answer and whether it was liked, in the formats of TRL."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Any, Literal

from inhouse.data.records import Unfit
from inhouse.data.shapes.draft import Draft
from inhouse.data.shapes.messages import TurnsShape
from inhouse.data.shapes.prompt_completion import PromptCompletionShape
from inhouse.data.shapes.prompt_completion import draft as pair_of

COLUMNS = "prompt, completion, label: true or false"
LIKED: dict[str, bool] = {"true": True, "1": True, "false": False, "0": False}  # as tables of text write them


class UnpairedShape(TurnsShape):
    """Columns prompt, completion and label, which is true for a good answer and false for a bad one."""

    use: Literal["unpaired"] = "unpaired"


def matches(columns: Set[str]) -> bool:
    """Whether a record with these columns can have this shape."""
    return {"prompt", "completion", "label"} <= columns


def draft(fields: Mapping[str, Any], params: UnpairedShape) -> Draft:
    """The question, the answer, and whether it was liked."""
    if "label" not in fields:
        raise Unfit("missing_column", "label")
    liked = LIKED.get(str(fields["label"]).strip().lower())
    if liked is None:
        raise Unfit("wrong_type", f"label: {type(fields['label']).__name__}")
    return replace(
        pair_of(fields, PromptCompletionShape(thoughts=params.thoughts, ignore=params.ignore)), desirable=liked
    )
