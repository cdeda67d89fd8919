"""Preferences: a prompt with a better and a worse answer, in the formats of TRL."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any, Literal

from inhouse.core.rows import Message
from inhouse.data.shapes.draft import Draft, opened, preference, text_of
from inhouse.data.shapes.messages import TurnsShape, turns_of

COLUMNS = "chosen, rejected [, prompt, system]"


class PreferenceShape(TurnsShape):
    """Columns chosen and rejected, with prompt where they do not hold the whole conversation."""

    use: Literal["preference"] = "preference"


def matches(columns: Set[str]) -> bool:
    """Whether a record with these columns has this shape."""
    return {"chosen", "rejected"} <= columns


def draft(fields: Mapping[str, Any], params: PreferenceShape) -> Draft:
    """Both conversations: prompt and answers as text or as turns, or whole conversations that begin alike."""
    prompt = fields.get("prompt")
    better, worse = (_turns(fields, column, params) for column in ("chosen", "rejected"))
    # Published data sets repeat the prompt in whole conversations beside it; an answer alone begins with its own turn.
    if prompt is None or (better and better[0].role != "assistant"):
        return preference(opened(fields, better), opened(fields, worse))
    asked = opened(fields, _prompt(fields, params))
    return preference([*asked, *better], [*asked, *worse])


def _turns(fields: Mapping[str, Any], column: str, params: PreferenceShape) -> list[Message]:
    if isinstance(fields.get(column), list):
        return turns_of(fields[column], column, params)
    return [Message(role="assistant", content=text_of(fields, column))]


def _prompt(fields: Mapping[str, Any], params: PreferenceShape) -> list[Message]:
    if isinstance(fields["prompt"], list):
        return turns_of(fields["prompt"], "prompt", params)
    return [Message(role="user", content=text_of(fields, "prompt"))]
