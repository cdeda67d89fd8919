"""Anthropic's messages as the messages of a chat."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from inhouse.core.messages import text
from inhouse.serve.errors import invalid, unsupported

Json = dict[str, Any]
# What these fields of a chat request are called here: errors name what the client wrote.
NAMES = {
    "stop": "stop_sequences", "max_completion_tokens": "max_tokens", "user": "metadata.user_id",
    "response_format": "output_config.format",
}  # fmt: skip


def chat_messages(messages: Sequence[Any], system: Any) -> list[Json]:
    """The system prompt and the turns, as chat has them. Raises ApiError 400."""
    found: list[Json] = []
    if system is not None:
        found.append({"role": "system", "content": _texts(system, "system")})
    for index, message in enumerate(messages):
        where = f"messages.{index}"
        if not isinstance(message, dict):
            raise invalid(text("serve.bad_item"), where)
        if message.get("role") not in ("user", "assistant"):
            raise invalid(text("serve.message_role"), f"{where}.role")
        found += _turn(message, where)
    return found


def _turn(message: Json, where: str) -> list[Json]:
    content = message.get("content")
    if isinstance(content, str):
        return [{"role": message["role"], "content": content}]
    if not isinstance(content, list):
        raise invalid(text("serve.no_content"), f"{where}.content")
    texts: list[str] = []
    calls: list[Json] = []
    results: list[Json] = []
    for index, block in enumerate(content):
        place = f"{where}.content.{index}"
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "text":
            texts.append(_string(block, "text", place))
        elif kind == "tool_use" and message["role"] == "assistant":
            calls.append(_call(block, place))
        elif kind == "tool_result" and message["role"] == "user":
            results.append(_result(block, place))
        elif kind not in ("thinking", "redacted_thinking"):  # thoughts are not shown to the model again
            raise unsupported(f"{place}.type")
    said: Json = {"role": message["role"], "content": "\n".join(texts) if texts or not calls else None}
    if calls:
        said["tool_calls"] = calls
    return [*results, said] if texts or calls or not results else results


def _call(block: Json, where: str) -> Json:
    arguments = json.dumps(block.get("input") or {}, ensure_ascii=False)
    named = {"name": _string(block, "name", where), "arguments": arguments}
    return {"id": _string(block, "id", where), "type": "function", "function": named}


def _result(block: Json, where: str) -> Json:
    content = block.get("content")
    said = "" if content is None else _texts(content, f"{where}.content")
    return {"role": "tool", "tool_call_id": _string(block, "tool_use_id", where), "content": said}


def _texts(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise invalid(text("serve.no_content"), where)
    for index, block in enumerate(content):
        if not isinstance(block, dict) or block.get("type") != "text":
            raise unsupported(f"{where}.{index}.type")
    return "\n".join(_string(block, "text", f"{where}.{index}") for index, block in enumerate(content))


def _string(block: Json, key: str, where: str) -> str:
    value = block.get(key)
    if not isinstance(value, str):
        raise invalid(text("serve.needs_string", field=key), f"{where}.{key}")
    return value


def chat_tools(tools: Sequence[Any]) -> list[Json]:
    """Functions in chat's nested shape. Tools that run on Anthropic's servers are refused."""
    found = []
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict) or tool.get("type", "custom") != "custom":
            raise unsupported(f"tools.{index}.type")
        function = {"name": tool.get("name"), "parameters": tool.get("input_schema") or {"type": "object"}}
        if tool.get("description") is not None:
            function["description"] = tool["description"]
        found.append({"type": "function", "function": function})
    return found


def chat_choice(choice: Json | None) -> Any:
    """The choice of a tool in chat's words."""
    kind = "auto" if choice is None else choice.get("type")
    if kind == "tool" and choice is not None:
        return {"type": "function", "function": {"name": choice.get("name")}}
    known = {"auto": "auto", "any": "required", "none": "none"}
    if kind not in known:
        raise unsupported("tool_choice.type")
    return known[kind]
