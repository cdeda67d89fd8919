"""OpenAI messages: a list of turns with role and content, tool calls included."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence, Set
from typing import Any, Literal

from pydantic import Field, ValidationError

from inhouse.core.params import Params
from inhouse.core.rows import Message
from inhouse.data.records import Unfit
from inhouse.data.shapes.draft import Draft, conversation, text_value

COLUMNS = "messages: [{role, content}, …]"
KIND = re.compile(r"[A-Za-z_]{1,20}\Z")  # a longer or other one is a value at the wrong place
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


# What a turn may hold that no row can: trained without it, a model would learn what the row does not say.
UNHELD = ("reasoning_content", "reasoning", "function_call", "weight")
Unheld = Literal["reasoning_content", "reasoning", "function_call", "weight"]


class MessagesShape(Params):
    """A column messages with turns as OpenAI's API takes them.

    Rows whose turns hold thoughts apart from their content, an old function call or a weight of 0 are refused: write
    thoughts into the content, as the model's template does, or name the field in `ignore`.
    """

    use: Literal["messages"] = "messages"
    ignore: tuple[Unheld, ...] = Field((), description="fields of turns to leave out instead of refusing the row")


def matches(columns: Set[str]) -> bool:
    """Whether a record with these columns has this shape."""
    return "messages" in columns


def draft(fields: Mapping[str, Any], params: MessagesShape) -> Draft:
    """The turns as they are; the last one must be the assistant's."""
    if "messages" not in fields:
        raise Unfit("missing_column", "messages")
    return conversation(turns_of(fields["messages"], ignore=params.ignore))


def turns_of(value: object, column: str = "messages", ignore: Collection[str] = ()) -> list[Message]:
    """Turns of a list of role/content objects; blank system turns are left out. `ignore`: of UNHELD."""
    if not isinstance(value, list):
        raise Unfit("wrong_type", f"{column}: {type(value).__name__}")
    held = [name for name in UNHELD if name not in ignore]
    turns = [_turn(item, f"{column}[{number}]", held) for number, item in enumerate(value)]
    return [turn for turn in turns if turn is not None]


def _turn(item: object, place: str, held: Sequence[str]) -> Message | None:
    if not isinstance(item, dict):
        raise Unfit("wrong_type", f"{place}: {type(item).__name__}")
    for name in held:
        if (value := item.get(name)) is not None and (value == 0 if name == "weight" else value != ""):
            raise Unfit("unheld_field", f"{place}.{name}")
    role = ROLES.get(str(item.get("role")))
    if role is None:
        raise Unfit("unknown_role", str(item.get("role")))
    content = _content(item.get("content"), place)
    calls = item.get("tool_calls") or None
    if not content.strip():
        if role == "system":
            return None
        if role != "assistant" or calls is None:
            raise Unfit("empty_text", place)
    fields = {"role": role, "content": content if content.strip() else None}
    fields |= {"tool_calls": calls, "tool_call_id": item.get("tool_call_id")}
    text_value(json.dumps([calls, item.get("tool_call_id")], ensure_ascii=False), f"{place}.tool_calls")
    try:
        return Message.model_validate(fields)
    except ValidationError as error:
        raise Unfit("wrong_type", f"{place}.{error.errors()[0]['loc'][0]}") from None


def _content(value: object, place: str) -> str:
    """Plain content, or the text parts of a content list joined; a picture or sound cannot be used."""
    if not isinstance(value, list):
        return text_value(value, f"{place}.content")
    texts = []
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text":
            kind = str(part.get("type")) if isinstance(part, dict) else type(part).__name__
            raise Unfit("wrong_type", f"{place}.content: {kind if KIND.match(kind) else 'unknown'}")
        texts.append(text_value(part.get("text"), f"{place}.content"))
    return "".join(texts)
