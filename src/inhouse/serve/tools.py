"""Tools of a request, checked as OpenAI defines them, old `functions` included; and calls matched with results."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from inhouse.core.messages import text
from inhouse.core.serving import Constraint
from inhouse.core.tool_words import defined
from inhouse.serve.constraint_schema import SCHEMA_DEPTH, check_schema
from inhouse.serve.constraints import check_constraint
from inhouse.serve.errors import ApiError, invalid, unsupported
from inhouse.serve.tool_text import calls_schema

TOOLS = 128
TOOLS_BYTES = 256 * 1024
MARKS = re.compile(r"[][{}]")
NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
CALL_ID = 128
ARGUMENTS_DEPTH = SCHEMA_DEPTH  # no schema that is taken describes deeper ones
NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class Tools:
    """What may be called. `choice` is none, auto, required, or the named function in OpenAI's shape.

    `tools` are as the client wrote them: so they stand in the prompt, as in training. `checked` have schemas that are
    safe to compile: to those a forced call is held.
    """

    tools: tuple[dict[str, Any], ...] = ()
    choice: str | dict[str, Any] = "none"
    parallel: bool = True
    old: bool = False  # asked by `functions`: the answer says `function_call`
    constraint: Constraint | None = None  # of the answer, where a call is forced
    checked: tuple[dict[str, Any], ...] = ()

    @property
    def forced(self) -> tuple[dict[str, Any], ...]:
        """The tools one of which must be called; empty when the model is free to answer in words."""
        if isinstance(self.choice, dict):
            name = self.choice["function"]["name"]
            return tuple(tool for tool in self.checked if tool["function"]["name"] == name)
        return self.checked if self.choice == "required" else ()


async def read_tools(body: Mapping[str, Any]) -> Tools:
    """The tools of a body: `tools`, `tool_choice`, `parallel_tool_calls`, or `functions` and `function_call`.

    Every schema goes through the checks of a constraint, and one that is forced must compile. Raises ApiError 400.
    """
    old = body.get("tools") is None and body.get("functions") is not None
    field = "functions" if old else "tools"
    given = body.get(field) or []
    if not isinstance(given, list) or len(given) > TOOLS:
        raise invalid(text("serve.tools_count", most=TOOLS), field)
    if old:
        given = [{"type": "function", "function": function} for function in given]
    checked = tuple(_tool(tool, f"{field}.{place}") for place, tool in enumerate(given))
    tools = tuple(_as_asked(tool) for tool in given)
    names = [tool["function"]["name"] for tool in tools]
    if len(set(names)) < len(names):
        raise invalid(text("serve.tool_twice"), field)
    if sum(len(json.dumps(tool)) for tool in tools) > TOOLS_BYTES:
        raise invalid(text("serve.tools_size", most=TOOLS_BYTES), field)
    parallel = body.get("parallel_tool_calls")
    if parallel is not None and not isinstance(parallel, bool):
        raise invalid(text("serve.tool_parallel"), "parallel_tool_calls")
    choice = _choice(body.get("function_call" if old else "tool_choice"), names, old)
    found = Tools(tools, choice, parallel is not False, old, checked=checked)
    if not found.forced:
        return found
    held = await check_constraint("json_schema", calls_schema(found.forced), field, strict=False)
    return replace(found, constraint=held)


def _tool(tool: Any, place: str) -> dict[str, Any]:
    if not isinstance(tool, Mapping) or tool.get("type") != "function":
        raise unsupported(f"{place}.type")
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise invalid(text("serve.tool_shape"), f"{place}.function")
    name, about = function.get("name"), function.get("description")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise invalid(text("serve.tool_name"), f"{place}.function.name")
    if about is not None and not isinstance(about, str):
        raise invalid(text("serve.tool_shape"), f"{place}.function.description")
    strict = function.get("strict") is True
    asked = function.get("parameters")
    parameters = check_schema(NO_PARAMETERS if asked is None else asked, f"{place}.function.parameters", strict)
    if parameters.setdefault("type", "object") != "object":
        raise invalid(text("serve.tool_arguments"), f"{place}.function.parameters.type")
    described = {"name": name, **({"description": about} if about else {}), "parameters": parameters}
    return {"type": "function", "function": described}


def _as_asked(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool as prompts tell it, and whether its calls must match: of that only other servers are told."""
    told, strict = defined(tool), tool["function"].get("strict")
    return told if strict is None else {**told, "function": {**told["function"], "strict": strict}}


def _choice(asked: Any, names: Sequence[str], old: bool) -> str | dict[str, Any]:
    field = "function_call" if old else "tool_choice"
    if asked is None:
        return "auto" if names else "none"
    if asked in ("none", "auto") or (asked == "required" and not old):
        if not names and asked == "required":
            raise invalid(text("serve.tool_none"), field)
        return str(asked) if names else "none"
    named = asked if old else asked.get("function") if isinstance(asked, Mapping) else None
    if isinstance(asked, Mapping) and not old and asked.get("type") != "function":
        raise choice_unknown(asked.get("type"), f"{field}.type")
    if not isinstance(named, Mapping) or not isinstance(named.get("name"), str):
        raise invalid(text("serve.tool_choice"), field)
    if named["name"] not in names:
        raise invalid(text("serve.tool_unknown", name=named["name"][:64]), field)
    return {"type": "function", "function": {"name": named["name"]}}


def choice_unknown(kind: Any, param: str) -> ApiError:
    """A choice of tools that is not served, `allowed_tools` for one."""
    told = text("serve.tool_choice_kind", kind=str(kind)[:64])
    return ApiError(400, "unsupported_parameter", told, param)


def check_turns(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages with their calls in OpenAI's present shape; each result must answer a call that was made before it.

    `content` is taken as it is. Old `function_call` and role `function` become `tool_calls` and role `tool`. Raises
    ApiError 400 that names the message.
    """
    made: dict[str, str] = {}  # call id -> function
    out = []
    for place, message in enumerate(messages):
        turn = dict(message)
        if turn.get("role") == "assistant":
            calls = _calls(turn, f"messages.{place}")
            turn = {key: value for key, value in turn.items() if key not in ("tool_calls", "function_call")}
            if calls:
                turn["tool_calls"] = calls
                made |= {call["id"]: call["function"]["name"] for call in calls}
        elif turn.get("role") in ("tool", "function"):
            turn = _result(turn, made, f"messages.{place}")
        elif turn.get("tool_calls"):
            raise invalid(text("serve.tool_role"), f"messages.{place}.tool_calls")
        out.append(turn)
    return out


def _calls(turn: Mapping[str, Any], place: str) -> list[dict[str, Any]]:
    asked = turn.get("tool_calls")
    if asked is None:
        old = turn.get("function_call")
        if old is None:
            return []
        name = old.get("name") if isinstance(old, Mapping) else None
        asked = [{"id": f"call_{name}", "type": "function", "function": old}]
    if not isinstance(asked, list) or len(asked) > TOOLS:
        raise invalid(text("serve.tools_count", most=TOOLS), f"{place}.tool_calls")
    return [_call(call, f"{place}.tool_calls.{number}") for number, call in enumerate(asked)]


def _call(call: Any, place: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or call.get("type", "function") != "function":
        raise invalid(text("serve.tool_shape"), place)
    name, arguments, name_of_call = function.get("name"), function.get("arguments"), call.get("id")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise invalid(text("serve.tool_name"), f"{place}.function.name")
    if not isinstance(name_of_call, str) or not 0 < len(name_of_call) <= CALL_ID:
        raise invalid(text("serve.tool_id"), f"{place}.id")
    if not isinstance(arguments, str):
        raise invalid(text("serve.tool_arguments_text"), f"{place}.function.arguments")
    if _nests_too_deep(arguments):
        raise invalid(text("serve.tool_arguments_depth", most=ARGUMENTS_DEPTH), f"{place}.function.arguments")
    told = arguments if arguments.strip() else "{}"  # as OpenAI has a call without arguments
    return {"id": name_of_call, "type": "function", "function": {"name": name, "arguments": told}}


def _nests_too_deep(arguments: str) -> bool:
    """Whether a call's arguments open too many lists and objects inside each other.

    Counted in the text, for what Python takes for no JSON an engine may still parse, and die of.
    """
    if arguments.count("[") + arguments.count("{") <= ARGUMENTS_DEPTH:
        return False
    plain = "".join(arguments.replace("\\\\", "").replace('\\"', "").split('"')[::2])
    depth = 0
    for mark in MARKS.findall(plain):
        depth = depth + 1 if mark in "[{" else max(0, depth - 1)
        if depth > ARGUMENTS_DEPTH:
            return True
    return False


def _result(turn: Mapping[str, Any], made: Mapping[str, str], place: str) -> dict[str, Any]:
    wanted: Any
    if turn["role"] == "function":
        field, wanted = "name", f"call_{turn.get('name')}"
    else:
        field, wanted = "tool_call_id", turn.get("tool_call_id")
    if not isinstance(wanted, str) or wanted not in made:
        raise invalid(text("serve.tool_result"), f"{place}.{field}")
    return {"role": "tool", "tool_call_id": wanted, "name": made[wanted], "content": turn.get("content")}
