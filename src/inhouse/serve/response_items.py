"""The items of the Responses API, as the messages of a chat: what a client sends, and what it got before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from inhouse.core.messages import text
from inhouse.serve.errors import ApiError, invalid, unsupported
from inhouse.serve.tools import choice_unknown

Json = dict[str, Any]
TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
ROLES = ("system", "developer", "user", "assistant")
# What these fields of a chat request are called in a response request: errors name what the client wrote.
NAMES = {
    "messages": "input", "max_tokens": "max_output_tokens", "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format", "reasoning_effort": "reasoning.effort", "logprobs": "top_logprobs",
}  # fmt: skip


def messages_of(items: Sequence[Any], before: int = 0) -> tuple[list[Json], list[int | None]]:
    """Items as chat messages, and the place of the item that each begins with; the first `before` came earlier.

    Raises ApiError 400 for items that this endpoint does not know.
    """
    found: list[Json] = []
    places: list[int | None] = []
    for index, item in enumerate(items):
        where = f"input.{index - before}"
        if not isinstance(item, dict):
            raise invalid(text("serve.bad_item"), where)
        kind = item.get("type", "message")
        read = READERS.get(kind) if isinstance(kind, str) else None
        if read is None:
            raise unsupported(f"{where}.type")
        read(found, item, where)
        places += [index] * (len(found) - len(places))
    return found, places


def _message(found: list[Json], item: Json, where: str) -> None:
    role = item.get("role")
    if role not in ROLES:
        raise invalid(text("serve.bad_role"), f"{where}.role")
    found.append({"role": role, "content": _text(item.get("content"), f"{where}.content")})


def _call(found: list[Json], item: Json, where: str) -> None:
    """A call that the model made. Calls of one turn are one message."""
    call_id, name, arguments = (_string(item, key, where) for key in ("call_id", "name", "arguments"))
    call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    last = found[-1] if found else {}
    if last.get("role") == "assistant":
        last["tool_calls"] = [*last.get("tool_calls", ()), call]
    else:
        found.append({"role": "assistant", "content": None, "tool_calls": [call]})


def _call_output(found: list[Json], item: Json, where: str) -> None:
    said = _text(item.get("output"), f"{where}.output")
    found.append({"role": "tool", "tool_call_id": _string(item, "call_id", where), "content": said})


def _skip(found: list[Json], item: Json, where: str) -> None:
    """What a model thought before is not shown to it again."""


READERS: dict[str, Callable[[list[Json], Json, str], None]] = {
    "message": _message,
    "function_call": _call,
    "function_call_output": _call_output,
    "reasoning": _skip,
}


def _string(item: Json, key: str, where: str) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        raise invalid(text("serve.needs_string", field=key), f"{where}.{key}")
    return value


def _text(content: Any, where: str) -> str:
    """A text, or the texts of a list of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(text("serve.no_content"), where)
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "refusal":
            texts.append(_string(part, "refusal", f"{where}.{index}"))
        elif kind in TEXTS:
            texts.append(_string(part, "text", f"{where}.{index}"))
        else:
            raise unsupported(f"{where}.{index}.type")
    return "\n".join(texts)


def tools_of(tools: Sequence[Any]) -> list[Json]:
    """Functions in chat's nested shape. Tools that run on OpenAI's servers are refused."""
    found = []
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict) or tool.get("type") != "function":
            raise unsupported(f"tools.{index}.type")
        told = {key: tool[key] for key in ("name", "description", "parameters", "strict") if tool.get(key) is not None}
        found.append({"type": "function", "function": told})
    return found


def choice_of(choice: Any) -> Any:
    """The choice of a tool in chat's shape."""
    if isinstance(choice, str):
        return choice
    if not isinstance(choice, dict) or choice.get("type") != "function":
        raise choice_unknown(choice.get("type") if isinstance(choice, dict) else choice, "tool_choice")
    if not isinstance(choice.get("name"), str):
        raise invalid(text("serve.body_missing"), "tool_choice.name")
    return {"type": "function", "function": {"name": choice["name"]}}


def format_of(asked: Any) -> Json | None:
    """`text.format` as chat's `response_format`; None for free text."""
    if asked is None or (isinstance(asked, dict) and asked.get("type") == "text"):
        return None
    if not isinstance(asked, dict):
        raise invalid(text("serve.bad_item"), "text.format")
    if asked.get("type") == "json_schema":
        told = {key: asked[key] for key in ("name", "description", "schema", "strict") if asked.get(key) is not None}
        return {"type": "json_schema", "json_schema": told}
    if asked.get("type") == "json_object":
        return {"type": "json_object"}
    raise unsupported("text.format.type")


def renamed(error: ApiError, places: Sequence[int | None] = (), before: int = 0) -> ApiError:
    """The same refusal, its field under the name that it has in a response request.

    `places`: which item each message came from, of which the first `before` are those of the response before.
    """
    if error.param is None:
        return error
    first, dot, rest = error.param.partition(".")
    at, _, field = rest.partition(".")
    if first == "messages" and at.isdigit() and int(at) < len(places):
        place = places[int(at)]
        if place is None:
            error.param = "instructions"
        elif place < before:
            error.param = "previous_response_id"
        else:
            own = ("input", str(place - before), "call_id" if field == "tool_call_id" else field)
            error.param = ".".join(part for part in own if part)
        return error
    error.param = (NAMES.get(first, first) + dot + rest).replace("text.format.json_schema", "text.format")
    return error
