"""Tools for templates that know none: told in the system message, called and answered in plain words.

The notation is Hermes' (https://github.com/NousResearch/Hermes-Function-Calling), which Qwen's templates write too.
Training, evaluation and serving put tools before a model in the same way: by its own template where that writes this
notation, for then answers are read alike, and else in these words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

OPEN, CLOSE = "<tool_call>", "</tool_call>"
# How a template that takes tools spells a call; the quotes of its own texts may be escaped.
HERMES = re.compile(r'<tool_call>(?:\\n|\n)\{\\?"name\\?": ')
Turn = dict[str, Any]
Call = tuple[str, dict[str, Any]]  # name, arguments


def writes_tools(template: str | None) -> bool:
    """Whether a chat template takes tools and writes calls in the notation that answers are read in."""
    return template is not None and "tools" in template and HERMES.search(template) is not None


def as_prompted(
    template: str | None, turns: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None
) -> tuple[list[Mapping[str, Any]], list[dict[str, Any]] | None]:
    """Turns and tools as the template gets them: as they are where it writes them, else the turns alone, in words."""
    about = tools or any(turn["role"] == "tool" or turn.get("tool_calls") for turn in turns)
    if not about or writes_tools(template):
        return list(turns), [defined(tool) for tool in tools] if tools else None
    return list(in_words(turns, tools or (), False)), None


def describe(tools: Sequence[Mapping[str, Any]], forced: bool) -> str:
    """What a system message tells a model whose template does not: the tools, and how to call one."""
    lines = "\n".join(json.dumps(defined(tool), ensure_ascii=False) for tool in tools)
    shape = '{"name": <function-name>, "arguments": <args-json-object>}'
    how = (
        f"Answer with one function call and nothing else, as a json object:\n{shape}"
        if forced
        else f"For each function call, return a json object with function name and arguments within {OPEN}{CLOSE} "
        f"XML tags:\n{OPEN}\n{shape}\n{CLOSE}"
    )
    return (
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n"
        f"<tools>\n{lines}\n</tools>\n\n{how}"
    )


def in_words(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], forced: bool) -> list[Turn]:
    """A conversation with tools as one without: for templates that would leave tools and calls out.

    Calls become an assistant's text, results a user's, and the tools are told in the system message.
    """
    turns = [_in_words(message) for message in messages]
    if not tools:
        return turns
    told = describe(tools, forced)
    if turns and turns[0]["role"] == "system":
        return [{**turns[0], "content": f"{turns[0]['content']}\n\n{told}"}, *turns[1:]]
    return [{"role": "system", "content": told}, *turns]


def _in_words(message: Mapping[str, Any]) -> Turn:
    content = message.get("content") or ""
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    return {"role": message["role"], "content": said(content, message.get("tool_calls") or ())}


def defined(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A function as every prompt tells it: name, description, parameters, in this order, what is missing empty.

    llama.cpp orders and fills definitions so before its template sees them; what else one holds does not reach it.
    """
    function = tool.get("function") or tool
    if tool.get("type", "function") != "function" or not isinstance(function.get("name"), str):
        return dict(tool)
    told = {
        "name": function["name"],
        "description": function.get("description") or "",
        "parameters": function.get("parameters") or {"type": "object", "properties": {}},
    }
    return {"type": "function", "function": told}


def said(content: str | None, calls: Sequence[Mapping[str, Any]]) -> str:
    """A turn of the assistant as text: what it says, and then its calls."""
    told = [_call_in_words(call.get("function") or call) for call in calls]
    return "\n".join([*([content] if content else []), *told])


def read_call(inside: str) -> Call | None:
    """The name and the arguments of what stands between the tags; None where that is no call."""
    try:
        found = json.loads(inside)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        return None
    arguments = found.get("arguments", {})
    return (found["name"], arguments) if isinstance(arguments, dict) else None


def before_calls(text: str) -> str:
    """What an answer says before its calls, without spaces around it."""
    return text.split(OPEN, 1)[0].strip()


def read_calls(text: str) -> list[Call]:
    """The calls in an answer, in their order; the last one's closing tag may be missing, as in serving."""
    inside = (part.split(CLOSE, 1)[0] for part in text.split(OPEN)[1:])
    return [call for part in inside if (call := read_call(part)) is not None]


def _call_in_words(function: Mapping[str, Any]) -> str:
    arguments = function.get("arguments") or {}
    try:
        told = json.loads(arguments) if isinstance(arguments, str) else arguments
        arguments = json.dumps(told, ensure_ascii=False)  # as templates write them
    except (ValueError, RecursionError):
        pass  # not JSON, or nested too deep: as it is written
    return f'{OPEN}\n{{"name": {json.dumps(function.get("name"))}, "arguments": {arguments}}}\n{CLOSE}'
