"""ShareGPT: conversations with from and value."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any, Literal

from inhouse.data.records import Unfit
from inhouse.data.shapes.draft import Draft, conversation, opened, preference, text_value
from inhouse.data.shapes.messages import TurnsShape, rated, turns_of, up_to_learned

COLUMNS = "conversations: [{from, value}, …]"
SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "function_call": "function_call",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}


class ShareGptShape(TurnsShape):
    """A column conversations with turns from human and gpt; what else a turn may hold is as with messages.

    Beside it may stand LLaMA-Factory's `chosen` and `rejected`, a turn each, or `kto_tag`.
    """

    use: Literal["sharegpt"] = "sharegpt"


def matches(columns: Set[str]) -> bool:
    """Whether a record with these columns has this shape."""
    return "conversations" in columns


def draft(fields: Mapping[str, Any], params: ShareGptShape) -> Draft:
    """The turns with OpenAI's role names; a column `system` comes first."""
    value = fields.get("conversations")
    if not isinstance(value, list):
        raise Unfit("wrong_type", f"conversations: {type(value).__name__}")
    told = [_turn(item, f"conversations[{number}]") for number, item in enumerate(value)]
    if isinstance(fields.get("chosen"), dict) and isinstance(fields.get("rejected"), dict):
        both = ([*told, _turn(fields[column], column)] for column in ("chosen", "rejected"))
        better, worse = (opened(fields, turns_of(turns, "conversations", params)) for turns in both)
        return preference(better, worse)
    turns = opened(fields, turns_of(told, "conversations", params))
    return rated(conversation(up_to_learned(turns)), fields)


def _turn(item: object, place: str) -> dict[str, Any]:
    """The turn with OpenAI's names."""
    if not isinstance(item, dict):
        raise Unfit("wrong_type", f"{place}: {type(item).__name__}")
    speaker = str(item.get("from"))
    if speaker not in SPEAKERS:
        raise Unfit("unknown_role", speaker)
    return {**item, "role": SPEAKERS[speaker], "content": text_value(item.get("value"), place)}
