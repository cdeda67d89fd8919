"""Tool calls for models and engines that know nothing of them: asked for, answered in JSON, and read back.

The notation is that of core.tool_words. A call that is forced is a JSON answer held to a schema; one that is free
stands between tags.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from inhouse.core.serving import Ask, Constraint, Delta
from inhouse.core.tool_words import CLOSE, OPEN, in_words, read_call

HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*', re.S)


def calls_schema(tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The JSON schema of one call of one of the tools: `{"name": …, "arguments": …}`, in this order.

    Each tool's schema stands under its own name, and its references are led there.
    """
    definitions = {
        f"tool{place}": _moved(tool["function"]["parameters"], f"#/$defs/tool{place}")
        for place, tool in enumerate(tools)
    }
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool["function"]["name"]},
                "arguments": {"$ref": f"#/$defs/tool{place}"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for place, tool in enumerate(tools)
    ]
    whole = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return {**whole, "$defs": definitions}


def _moved(node: Any, home: str) -> Any:
    if isinstance(node, list):
        return [_moved(child, home) for child in node]
    if not isinstance(node, Mapping):
        return node
    return {
        key: home + value[1:] if key == "$ref" and isinstance(value, str) else _moved(value, home)
        for key, value in node.items()
    }


def new_call_id() -> str:
    """An id that results refer to."""
    return "call_" + secrets.token_hex(12)


def without_tools(ask: Ask, forced: Constraint | None) -> Ask:
    """The same request for an engine that knows nothing of tools; `forced` is `read_tools(…).constraint`.

    Its answer goes through a ForcedCallReader when `forced`, else through a FreeCallReader, one for each choice.
    """
    tools = () if ask.tool_choice == "none" else ask.tools
    if isinstance(ask.tool_choice, Mapping):
        name = ask.tool_choice["function"]["name"]
        tools = tuple(tool for tool in tools if tool["function"]["name"] == name)
    messages = in_words(ask.messages or (), tools, forced is not None)
    return replace(ask, messages=messages, tools=(), tool_choice="none", constraint=forced or ask.constraint)


class ForcedCallReader:
    """Turn the JSON of one forced call, as it arrives, into deltas of `tool_calls`. One for each choice."""

    def __init__(self) -> None:
        self._kept = ""  # up to where the name is known
        self._id: str | None = None
        self._depth = 0
        self._quoted = self._escaped = self._over = False

    def read(self, delta: Delta) -> Delta:
        """The same delta with calls in place of text; `stop` becomes `tool_calls` where a whole call was made."""
        calls = self._calls(delta.text)
        finish = "tool_calls" if delta.finish == "stop" and self._over else delta.finish
        return replace(delta, text="", tool_calls=calls or None, finish=finish)

    def _calls(self, piece: str) -> list[dict[str, Any]]:
        if self._id is not None:
            return [_more(told)] if (told := self._arguments(piece)) else []
        self._kept += piece
        found = HEAD.match(self._kept)
        # The value may go on to be matched by the last \s*: wait until the arguments have begun.
        if found is None or found.end() == len(self._kept):
            return []
        self._id = new_call_id()
        first = _first(self._id, json.loads(found[1]))
        first["function"]["arguments"] = self._arguments(self._kept[found.end() :])
        self._kept = ""
        return [first]

    def _arguments(self, piece: str) -> str:
        """What of `piece` belongs to the arguments: all until their last bracket closes."""
        if self._over:
            return ""
        for place, character in enumerate(piece):
            if self._quoted:
                self._quoted = self._escaped or character != '"'
                self._escaped = character == "\\" and not self._escaped
            elif character == '"':
                self._quoted, self._escaped = True, False
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self._over = True
                    return piece[: place + 1]
        return piece


class FreeCallReader:
    """Pass on an answer's text, and turn `<tool_call>…</tool_call>` in it into deltas of `tool_calls`.

    What may be the beginning of a tag is held back until it is known; a call is told whole, once it is valid. What
    looks like a call and is none stays text. Where calls are not to be `parallel`, what follows the first is left out.
    One for each choice.
    """

    def __init__(self, names: Sequence[str], parallel: bool = True) -> None:
        self._names = frozenset(names)
        self._parallel = parallel
        self._kept = ""
        self._made = 0

    def read(self, delta: Delta) -> Delta:
        """The same delta without its calls' text; `stop` becomes `tool_calls` when there were calls."""
        quiet = not self._kept and not self._made and delta.finish is None
        if quiet and "<" not in delta.text and not delta.text.endswith("\n"):
            return delta  # nearly every token: nothing to look for
        over = self._made > 0 and not self._parallel
        self._kept = "" if over else self._kept + delta.text
        said, calls = "", []
        for words, call in self._pieces(last=delta.finish is not None):
            said += words
            if call is not None:
                calls.append(call)
                if not self._parallel:
                    break
        finish = "tool_calls" if delta.finish == "stop" and self._made else delta.finish
        return replace(delta, text=said, tool_calls=calls or None, finish=finish)

    def _pieces(self, last: bool) -> Iterator[tuple[str, dict[str, Any] | None]]:
        while (begin := self._kept.find(OPEN)) >= 0:
            end = self._kept.find(CLOSE, begin)
            if end < 0 and not last:
                yield self._take(begin).rstrip("\n"), None
                return
            inside = self._kept[begin + len(OPEN) : end if end >= 0 else len(self._kept)]
            after = end + len(CLOSE) if end >= 0 else len(self._kept)
            call = self._call(inside)
            before = self._take(begin)
            tagged = self._take(after - begin)
            yield (before + tagged, None) if call is None else (before.rstrip("\n"), call)
        hold = 0 if last else _held(self._kept)
        words = self._take(len(self._kept) - hold)
        yield (words.strip("\n") if self._made else words), None

    def _take(self, count: int) -> str:
        taken, self._kept = self._kept[:count], self._kept[count:]
        return taken

    def _call(self, inside: str) -> dict[str, Any] | None:
        found = read_call(inside)
        if found is None or found[0] not in self._names:
            return None
        name, arguments = found
        call = _first(new_call_id(), name, self._made)
        call["function"]["arguments"] = json.dumps(arguments, ensure_ascii=False)
        self._made += 1
        return call


def _held(words: str) -> int:
    """How many characters at the end may be the beginning of a tag, line ends before it included."""
    for count in range(min(len(OPEN) - 1, len(words)), 0, -1):
        if words.endswith(OPEN[:count]):
            return len(words) - len(words[:-count].rstrip("\n"))
    return len(words) - len(words.rstrip("\n"))


def _first(name_of_call: str, function: str, index: int = 0) -> dict[str, Any]:
    return {"index": index, "id": name_of_call, "type": "function", "function": {"name": function, "arguments": ""}}


def _more(arguments: str) -> dict[str, Any]:
    return {"index": 0, "function": {"arguments": arguments}}
