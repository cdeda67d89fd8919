"""ShareGPT: conversations with from and value."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any, Literal

from inhouse.core.params import Params
from inhouse.core.rows import Message, Role
from inhouse.data.records import Unfit
from inhouse.data.shapes.draft import Draft, conversation, optional_text_of, text_value

COLUMNS = "conversations: [{from, value}, …]"
SPEAKERS: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}


class ShareGptShape(Params):
    """A column conversations with turns from human and gpt."""

    use: Literal["sharegpt"] = "sharegpt"


def matches(columns: Set[str]) -> bool:
    """Whether a record with these columns has this shape."""
    return "conversations" in columns


def draft(fields: Mapping[str, Any], params: ShareGptShape) -> Draft:
    """The turns with OpenAI's role names; a column `system` comes first."""
    turns = []
    if "system" in fields and (system := optional_text_of(fields, "system")).strip():
        turns.append(Message(role="system", content=system))
    value = fields.get("conversations")
    if not isinstance(value, list):
        raise Unfit("wrong_type", f"conversations: {type(value).__name__}")
    for number, item in enumerate(value):
        turns.append(_turn(item, f"conversations[{number}]"))
    return conversation(turns)


def _turn(item: object, place: str) -> Message:
    if not isinstance(item, dict):
        raise Unfit("wrong_type", f"{place}: {type(item).__name__}")
    speaker = str(item.get("from"))
    if speaker not in SPEAKERS:
        raise Unfit("unknown_role", speaker)
    content = text_value(item.get("value"), place)
    if not content.strip():
        raise Unfit("empty_text", place)
    return Message(role=SPEAKERS[speaker], content=content)
