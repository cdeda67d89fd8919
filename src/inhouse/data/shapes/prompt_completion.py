"""Prompt and completion: one question, one answer, as text or as lists of messages."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any, Literal

from inhouse.core.rows import Message
from inhouse.data.shapes.draft import Draft, conversation, opened, text_of
from inhouse.data.shapes.messages import TurnsShape, turns_of, up_to_learned

COLUMNS = "prompt, completion [, system]"


class PromptCompletionShape(TurnsShape):
    """Columns prompt and completion."""

    use: Literal["prompt_completion"] = "prompt_completion"


def matches(columns: Set[str]) -> bool:
    """Whether a record with these columns has this shape."""
    return {"prompt", "completion"} <= columns


def draft(fields: Mapping[str, Any], params: PromptCompletionShape) -> Draft:
    """The prompt as the question, the completion as the answer."""
    if isinstance(fields.get("prompt"), list) and isinstance(fields.get("completion"), list):
        turns = turns_of([*fields["prompt"], *fields["completion"]], params=params)
        return conversation(up_to_learned(opened(fields, turns)))
    question = Message(role="user", content=text_of(fields, "prompt"))
    return conversation(opened(fields, [question, Message(role="assistant", content=text_of(fields, "completion"))]))
