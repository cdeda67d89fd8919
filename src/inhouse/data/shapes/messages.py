"""OpenAI messages: a list of turns with role and content, tool calls included."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, ValidationError

from inhouse.core.params import Params
from inhouse.core.rows import Message, Role, after_question
from inhouse.core.thoughts import CLOSE, OPEN
from inhouse.data.records import Unfit
from inhouse.data.shapes.calls import calls_of, spelled
from inhouse.data.shapes.draft import Draft, conversation, opened, preference, text_of, text_value

COLUMNS = "messages: [{role, content}, …]"
KIND = re.compile(r"[A-Za-z_]{1,20}\Z")  # a longer or other one is a value at the wrong place
ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool_call": "assistant",  # ms-swift's, with the call as JSON
    "function_call": "assistant",  # the same in LLaMA-Factory's ShareGPT
    "tool": "tool",
    "tool_response": "tool",
    "function": "tool",
}
RESULT = re.compile(r"\s*<tool_response>\n?((?:(?!</?tool_response>).)*?)\n?</tool_response>\s*", re.S)
CALLERS = ("tool_call", "function_call")

# What a turn may hold that no row can: trained without it, a model would learn what the row does not say.
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
Unheld = Literal["reasoning_content", "reasoning", "thinking", "function_call", "weight"]


class TurnsShape(Params):
    """What is done with fields of turns besides who says what.

    A turn of the assistant with `weight: 0` (or ms-swift's `loss: false`) is read and not learned; what follows the
    last one that is learned is left out. Rows whose turns hold thoughts apart from their content are refused:
    `thoughts` says where thoughts go, `ignore` names fields to leave out.
    """

    thoughts: Literal["content"] | None = Field(
        None, description="content: write reasoning_content before the content, between <think> and </think>"
    )
    ignore: tuple[Unheld, ...] = Field((), description="fields of turns to leave out instead of refusing the row")


class MessagesShape(TurnsShape):
    """A column messages with turns as OpenAI's API takes them.

    Beside it may stand `system`, `tools`, `rejected` (the worse answer: turns or a text), as `inhouse data export` and
    ms-swift (`rejected_response`, `rejected_messages`) write them, and `desirable`, `label` or `kto_tag` (a boolean).
    """

    use: Literal["messages"] = "messages"


PLAIN = TurnsShape()
WORSE = ("rejected", "rejected_response", "rejected_messages")


def matches(columns: Set[str]) -> bool:
    """Whether a record with these columns has this shape."""
    return "messages" in columns


def draft(fields: Mapping[str, Any], params: MessagesShape) -> Draft:
    """The turns as they are, up to the last that is learned, which must be the assistant's."""
    if "messages" not in fields:
        raise Unfit("missing_column", "messages")
    turns = up_to_learned(opened(fields, turns_of(fields["messages"], params=params)))
    found = conversation(turns)
    column = next((name for name in WORSE if fields.get(name)), None)
    if column is not None and "chosen" not in fields:  # beside `chosen` it belongs to the shape preference
        found = preference(turns, _worse(fields, column, turns, params))
    label = fields.get("label")
    if isinstance(label, str) and label == turns[-1].content:  # of a classification that was copied out
        found = replace(found, label=label)
    return rated(found, fields)


def rated(draft: Draft, fields: Mapping[str, Any]) -> Draft:
    """The draft with whether its answer was liked, where a column says so, that of another trainer included."""
    label = fields.get("label")
    told = {"desirable": fields.get("desirable"), "kto_tag": fields.get("kto_tag")}
    if isinstance(label, bool):
        return replace(draft, desirable=label)
    name, liked = next(((name, value) for name, value in told.items() if value is not None), ("", None))
    if liked is not None and not isinstance(liked, bool):
        raise Unfit("wrong_type", f"{name}: {type(liked).__name__}")
    return draft if liked is None else replace(draft, desirable=liked)


def _worse(fields: Mapping[str, Any], column: str, turns: Sequence[Message], params: TurnsShape) -> list[Message]:
    """The conversation with the worse answer: whole, or what follows the last question."""
    if not isinstance(fields[column], list | str):
        raise Unfit("wrong_type", f"{column}: {type(fields[column]).__name__}")
    if isinstance(fields[column], str):
        told = [Message(role="assistant", content=text_of(fields, column))]
    else:
        told = turns_of(fields[column], column, params)
    if told and told[0].role in ("system", "user"):
        return opened(fields, told)
    return [*turns[: after_question(turns)], *told]


def up_to_learned(turns: list[Message]) -> list[Message]:
    """Turns without those that follow the last one that is learned, where the last is the assistant's."""
    if not turns or turns[-1].role != "assistant" or turns[-1].learned:
        return turns
    return turns[: max((at for at, turn in enumerate(turns, 1) if turn.learned), default=0)]


def turns_of(value: object, column: str = "messages", params: TurnsShape = PLAIN) -> list[Message]:
    """Turns of a list of role/content objects; blank system turns are left out."""
    if not isinstance(value, list):
        raise Unfit("wrong_type", f"{column}: {type(value).__name__}")
    turns: list[Message] = []
    for number, item in enumerate(value):
        turn = turn_of(item, f"{column}[{number}]", params)
        if turn is None:
            continue
        alone = item["role"] in CALLERS
        before = turns[-1] if turns else None
        if alone and before and _one_turn(before, turn):
            calls = [*(before.tool_calls or ()), *(turn.tool_calls or ())]
            turns[-1] = before.model_copy(update={"tool_calls": calls})
        else:
            turns.append(turn)
    return turns


def _one_turn(before: Message, call: Message) -> bool:
    """Whether a call in a turn of its own belongs to the turn before: a model says and calls in one."""
    return before.role == "assistant" and call.content is None and before.weight == call.weight


def turn_of(item: object, place: str, params: TurnsShape) -> Message | None:
    """One turn of a list; None for a blank system turn."""
    if not isinstance(item, dict):
        raise Unfit("wrong_type", f"{place}: {type(item).__name__}")
    role = ROLES.get(str(item.get("role")))
    if role is None:
        raise Unfit("unknown_role", str(item.get("role")))
    folded = THOUGHTS if params.thoughts == "content" and role == "assistant" else ()
    for name in THOUGHTS:
        if name not in params.ignore and name not in folded and item.get(name) not in (None, ""):
            raise Unfit("unheld_field", f"{place}.{name}")
    content, calls = _said(item, place, params)
    if not content.strip():
        if role == "system":
            return None
        if role == "user" or (role == "assistant" and calls is None):
            raise Unfit("empty_text", place)
        content = ""
    content = _thoughts(item, place, folded) + content
    fields: dict[str, Any] = {"role": role, "content": content or None}
    fields |= {"tool_calls": calls, "tool_call_id": item.get("tool_call_id")}
    if role == "assistant" and "weight" not in params.ignore:
        fields["weight"] = _weight(item, place)
    text_value(json.dumps([calls, item.get("tool_call_id")], ensure_ascii=False), f"{place}.tool_calls")
    try:
        return Message.model_validate(fields)
    except ValidationError as error:
        raise Unfit("wrong_type", f"{place}.{error.errors()[0]['loc'][0]}") from None


def _said(item: Mapping[str, Any], place: str, params: TurnsShape) -> tuple[str, list[Any] | None]:
    """What is said in a turn, and what is called."""
    content = _content(item.get("content"), place)
    if found := RESULT.fullmatch(content) if ROLES.get(str(item.get("role"))) == "tool" else None:
        content = found[1]  # every template puts its own tags around it
    return ("", spelled(content, place)) if item["role"] in CALLERS else (content, _calls(item, place, params))


def _calls(item: Mapping[str, Any], place: str, params: TurnsShape) -> list[Any] | None:
    """Calls of tools; as JSON, the way that tables of this product's datasets hold them."""
    value = item.get("tool_calls")
    old = None if "function_call" in params.ignore else item.get("function_call")
    if isinstance(value, str) and value.strip():
        return spelled(value, f"{place}.tool_calls")
    if not value and isinstance(old, dict):
        value = [old]
    return calls_of(value, f"{place}.tool_calls") if value else None


def _weight(item: Mapping[str, Any], place: str) -> int | None:
    """0 for a turn that shall not be learned; OpenAI knows the weights 0 and 1."""
    for name in ("weight", "loss"):
        if item.get(name) is not None and item[name] not in (0, 1):  # false and true are these, too
            raise Unfit("wrong_type", f"{place}.{name}")
    return 0 if 0 in (item.get("weight"), item.get("loss")) else None


def _thoughts(item: Mapping[str, Any], place: str, names: Sequence[str]) -> str:
    """Thoughts as the templates of Qwen3 and GLM-4.5 write them before an answer."""
    told = next((text_value(item[name], f"{place}.{name}") for name in names if item.get(name)), "").strip()
    return f"{OPEN}\n{told}\n{CLOSE}\n\n" if told else ""


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
