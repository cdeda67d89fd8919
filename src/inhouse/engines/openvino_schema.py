"""Which constraints the OpenVINO engine takes: those that its grammar compiler is known to take, and no others.

openvino_genai compiles a grammar inside a step of the whole batch. One that it cannot compile leaves the pipeline
unusable for everybody, and one that is slow to compile holds everybody up (2026.4). So nothing reaches it but a
bounded subset of JSON schema, written anew by us; what lies outside goes to another engine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from inhouse.core.serving import Ask, Constraint, EngineRefused, Limit

HELD: frozenset[Limit] = frozenset({"json_object", "json_schema", "choice"})
MOST_NODES = 300
MOST_DEPTH = 16
MOST_NAMES = 100
MOST_REPEATS = 100
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
SAID_ONLY = {"title", "description", "default", "examples", "$schema", "$defs", "definitions", "strict", "deprecated"}
COUNTS = {"array": ("minItems", "maxItems"), "string": ("minLength", "maxLength")}
KEYS = {
    "object": {"properties", "required", "additionalProperties"},
    "array": {"items", "minItems", "maxItems"},
    "string": {"minLength", "maxLength"},
}
Node = dict[str, Any]


def schema_of(constraint: Constraint) -> str:
    """The JSON schema to compile for a constraint. Raises EngineRefused("unsupported")."""
    if constraint.kind == "json_object":
        return json.dumps({"type": "object"})
    if constraint.kind == "json_schema" and isinstance(constraint.value, Mapping):
        return json.dumps(_Copy(constraint.value).whole())
    raise EngineRefused("unsupported")


def grammar_of(choices: Any) -> str:
    """A choice of texts as EBNF."""
    texts = list(choices)
    if not 0 < len(texts) <= MOST_NAMES or sum(map(len, texts)) > 10_000:
        raise EngineRefused("unsupported")
    return "root ::= " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)


def forced_call(ask: Ask) -> str:
    """The schema of an answer that must be a call: of the named tool, or of one of all. Raises EngineRefused."""
    name = ask.tool_choice.get("function", {}).get("name") if isinstance(ask.tool_choice, Mapping) else None
    functions = [tool.get("function", {}) for tool in ask.tools]
    wanted = [each for each in functions if name is None or each.get("name") == name]
    if not wanted:
        raise EngineRefused("invalid")
    calls = [_call(each) for each in wanted]
    return json.dumps(calls[0] if len(calls) == 1 else {"anyOf": calls})


def _call(function: Mapping[str, Any]) -> Node:
    arguments = _Copy(function.get("parameters") or {"type": "object"}).whole()
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


class _Copy:
    """Copies a schema node by node; references are put in place. Whatever is not understood is refused."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._root = schema
        self._nodes = 0

    def whole(self) -> Node:
        """The copy."""
        return self._node(self._root, 0)

    def _node(self, node: Any, depth: int) -> Node:
        self._nodes += 1
        _demand(isinstance(node, Mapping) and depth < MOST_DEPTH and self._nodes <= MOST_NODES)
        said = {key: value for key, value in node.items() if key not in SAID_ONLY}
        for key, copy in (("$ref", self._reference), ("enum", _enum), ("const", _const), ("anyOf", self._any)):
            if key in said:
                _known(said, {key, "type"})
                return copy(said[key], depth)
        kind = said.pop("type", None)
        if isinstance(kind, list):
            return self._any([{**said, "type": each} if each in KEYS else {"type": each} for each in kind], depth)
        _demand(kind in TYPES, "type")
        _known(said, KEYS.get(kind, set()))
        return {"type": kind, **self._details(kind, said, depth)}

    def _details(self, kind: str, said: Node, depth: int) -> Node:
        for key in COUNTS.get(kind, ()):
            if key in said:
                _demand(type(said[key]) is int and 0 <= said[key] <= MOST_REPEATS, key)
        _demand(said.get(f"min{_unit(kind)}", 0) <= said.get(f"max{_unit(kind)}", MOST_REPEATS), f"max{_unit(kind)}")
        if "items" in said:
            said = {**said, "items": self._node(said["items"], depth + 1)}
        return self._object(said, depth) if kind == "object" else said

    def _object(self, said: Node, depth: int) -> Node:
        named = said.get("properties", {})
        required = said.get("required", [])
        more = said.get("additionalProperties", True)
        _demand(isinstance(named, Mapping) and len(named) <= MOST_NAMES, "properties")
        _demand(isinstance(more, bool), "additionalProperties")
        known = isinstance(required, list) and all(isinstance(name, str) and name in named for name in required)
        _demand(known, "required")
        if not named:
            return {"additionalProperties": more}
        properties = {str(name): self._node(each, depth + 1) for name, each in named.items()}
        # Closed unless it has nothing else: small models otherwise add names until they are cut off.
        return {"properties": properties, "required": list(dict.fromkeys(required)), "additionalProperties": False}

    def _any(self, each: Any, depth: int) -> Node:
        _demand(isinstance(each, list) and 0 < len(each) <= MOST_NAMES, "anyOf")
        return {"anyOf": [self._node(one, depth + 1) for one in each]}

    def _reference(self, path: Any, depth: int) -> Node:
        _demand(isinstance(path, str) and path.startswith("#/"), "$ref")
        node: Any = self._root
        for step in path[2:].split("/"):
            _demand(isinstance(node, Mapping) and step in node, "$ref")
            node = node[step]
        return self._node(node, depth + 1)  # one that comes back to itself grows too deep, and is refused


def _unit(kind: str) -> str:
    return "Items" if kind == "array" else "Length"


def _enum(values: Any, _: int) -> Node:
    _demand(isinstance(values, list) and 0 < len(values) <= MOST_NAMES and all(map(_plain, values)), "enum")
    return {"enum": list(values)}


def _const(value: Any, _: int) -> Node:
    _demand(_plain(value), "const")
    return {"const": value}


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= 1000)


def _known(said: Node, known: set[str]) -> None:
    """Refuse the first keyword of a node that is none of these."""
    for key in said:
        _demand(key in known, key)


def _demand(holds: bool, keyword: str | None = None) -> None:
    if not holds:
        raise EngineRefused("unsupported", keyword=keyword)
