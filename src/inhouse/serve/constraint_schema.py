"""What may be asked of a JSON schema before it is compiled: size, depth, references, keywords, an end.

All of it is linear in the size of what was sent, and none of it recurses without a bound.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any
from urllib.parse import unquote

from inhouse.core.messages import text
from inhouse.serve.constraint_rules import check_regex, has_quoted
from inhouse.serve.errors import invalid

SCHEMA_BYTES = 64 * 1024
SCHEMA_DEPTH = 32
JSON_DEPTH = 128  # a level of a schema is up to three of JSON: properties, a name, items
MOST_PROPERTIES = 1000  # in all objects together: each is a state of its own while an answer is written
MOST_ITEMS = 4096
MOST_CHARS = 65_536

TYPES = {"object", "array", "string", "number", "integer", "boolean", "null"}
FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"}
ONE = ("items", "additionalProperties")
MANY = ("anyOf", "oneOf", "allOf", "prefixItems")
NAMED = ("properties", "patternProperties", "$defs", "definitions")
# Keywords that a grammar cannot hold an answer to. With `strict: false` they are left to the model.
NOT_HELD = {
    *("not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems", "additionalItems"),
    *("propertyNames", "dependentRequired", "dependentSchemas", "dependencies", "unevaluatedItems"),
    *("unevaluatedProperties", "$dynamicRef", "$recursiveRef"),
}
DROPPED = ("$schema", "$id", "id", "$comment", "x-guidance")  # they change how references and grammars are read
JOINS = {"$ref", "allOf", "anyOf", "oneOf"}
NO_CONDITION = ("not", "uniqueItems")  # where they are false, they ask for nothing
UNEVALUATED = {"unevaluatedProperties": "additionalProperties", "unevaluatedItems": "items"}
COUNTS = {"minItems": MOST_ITEMS, "maxItems": MOST_ITEMS, "minLength": MOST_CHARS, "maxLength": MOST_CHARS}
Node = dict[str, Any]
Needs = dict[int, list[list[int]]]  # a node ends when of each of these groups one node ends


def check_schema(schema: Any, param: str, strict: bool) -> Node:
    """A copy of a JSON schema that is safe to compile; raises ApiError 400 that says what is wrong with it."""
    if not isinstance(schema, dict):
        raise invalid(text("serve.schema_object"), param)
    _check_depth(schema, param)
    try:
        encoded = json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except ValueError:  # NaN or infinity
        raise invalid(text("serve.schema_object"), param) from None
    if len(encoded.encode("utf-8", "surrogatepass")) > SCHEMA_BYTES:
        raise invalid(text("serve.schema_size", most=SCHEMA_BYTES), param)
    root: Node = json.loads(encoded)
    walk = _Walk(root, param, strict)
    needs = walk.needs()
    if not _terminates(id(root), needs):
        raise invalid(text("serve.schema_endless"), param)
    walk.close_objects()
    return root


def _check_depth(value: Any, param: str) -> None:
    level, left = [value], SCHEMA_BYTES // 2  # each part takes two bytes at least
    for _ in range(JSON_DEPTH):
        level = list(islice((child for node in level for child in _children(node)), left + 1))
        left -= len(level)
        if left < 0:
            raise invalid(text("serve.schema_size", most=SCHEMA_BYTES), param)
        if not level:
            return
    raise invalid(text("serve.schema_depth", most=SCHEMA_DEPTH), param)


def _children(node: Any) -> Iterator[Any]:
    found = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return (child for child in found if isinstance(child, dict | list))


def _simplify(node: Node) -> None:
    """Write what is false in words that grammars know, where that means the same."""
    for key in NO_CONDITION:
        if node.get(key) is False:
            del node[key]
    for key, known in UNEVALUATED.items():
        if node.get(key) is False and not node.keys() & JOINS:  # nothing else tells of properties or items here
            del node[key]
            node.setdefault(known, False)


class _Walk:
    """One pass over every schema inside a schema, those that references lead to included."""

    def __init__(self, root: Node, param: str, strict: bool) -> None:
        self.root = root
        self.param = param
        self.strict = strict
        self.found: Needs = {}
        self._properties = 0
        self._nodes: list[Node] = []
        self._joined: list[Node] = []  # they hold together with others for the same value

    def needs(self) -> Needs:
        """Check every node, and say what each needs to come to an end."""
        todo: list[tuple[Any, int]] = [(self.root, 1)]
        while todo:
            node, depth = todo.pop()
            if id(node) in self.found or isinstance(node, bool):
                continue
            if not isinstance(node, dict):
                raise invalid(text("serve.schema_object"), self.param)
            if depth > SCHEMA_DEPTH:
                raise invalid(text("serve.schema_depth", most=SCHEMA_DEPTH), self.param)
            self._check_node(node)
            self.found[id(node)] = []  # before its children: a schema may refer to itself
            todo += [(child, depth + 1) for child in _subschemas(node)]
            if "$ref" in node:
                todo.append((self._resolve(node["$ref"]), 1))
            self.found[id(node)] = self._groups(node)
            self._nodes.append(node)
            self._joined += [child for child in _sequence(node, "allOf") if isinstance(child, dict)]
        return self.found

    def close_objects(self) -> None:
        """Let objects that name their properties have no others: a small model goes on inventing some until it is cut.

        What matches then still matches the schema as it was. Left open: objects that other schemas add to.
        """
        open_ones: set[int] = set()
        todo = [*self._joined, *(node for node in self._nodes if node.keys() & JOINS and "properties" in node)]
        while todo:
            node = todo.pop()
            if id(node) not in open_ones:
                open_ones.add(id(node))
                target = [self._resolve(node["$ref"])] if "$ref" in node else []
                parts = [part for key in ("allOf", "anyOf", "oneOf") for part in _sequence(node, key)]
                todo += [part for part in [*target, *parts] if isinstance(part, dict)]
        for node in self._nodes:
            required, properties = _sequence(node, "required"), _mapping(node, "properties")
            if properties and id(node) not in open_ones and all(name in properties for name in required):
                node.setdefault("additionalProperties", "patternProperties" in node)

    def _check_node(self, node: Node) -> None:
        for key in DROPPED:
            node.pop(key, None)
        for key in (*MANY, *NAMED, "required"):
            if key in node and not isinstance(node[key], dict if key in NAMED else list):
                raise invalid(text("serve.schema_shape", keyword=key), self.param)
        _simplify(node)
        if self.strict and (held := sorted(NOT_HELD & node.keys())):
            raise invalid(text("serve.schema_keyword", keyword=held[0]), self.param)
        for kind in _listed(node.get("type", [])):
            if not isinstance(kind, str) or kind not in TYPES:
                raise invalid(text("serve.schema_type", type=str(kind)[:64]), self.param)
        self._properties += len(_mapping(node, "properties"))
        if self._properties > MOST_PROPERTIES:
            raise invalid(text("serve.schema_properties", most=MOST_PROPERTIES), self.param)
        self._check_values(node)

    def _check_values(self, node: Node) -> None:
        if not (isinstance(node.get("format"), str) and node["format"] in FORMATS):
            node.pop("format", None)  # by the standard a format that is not known says nothing
        for key, most in COUNTS.items():
            if key in node and not (_is_count(node[key]) and node[key] <= most):
                raise invalid(text("serve.schema_count", keyword=key, most=most), self.param)
        for pattern in [*_listed(node.get("pattern", [])), *_mapping(node, "patternProperties")]:
            if has_quoted(check_regex(pattern, self.param)) and self.strict:
                raise invalid(text("serve.schema_pattern"), self.param)

    def _resolve(self, ref: Any) -> Any:
        if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
            raise invalid(text("serve.schema_ref", ref=str(ref)[:128]), self.param)
        node: Any = self.root
        for part in ref.split("/")[1:]:
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(node, dict) and key in node:
                node = node[key]
            elif isinstance(node, list) and key.isdecimal() and int(key[:6]) < len(node):
                node = node[int(key[:6])]
            else:
                raise invalid(text("serve.schema_ref", ref=ref[:128]), self.param)
        return node

    def _groups(self, node: Node) -> list[list[int]]:
        if "const" in node or "enum" in node:
            return []
        groups = [[id(child)] for child in _sequence(node, "allOf") if isinstance(child, dict)]
        groups += [
            [] if any(isinstance(c, bool) for c in node[key]) else [id(c) for c in node[key]]
            for key in ("anyOf", "oneOf")
            if isinstance(node.get(key), list)
        ]
        groups = [group for group in groups if group]
        if "$ref" in node and isinstance(target := self._resolve(node["$ref"]), dict):
            groups.append([id(target)])
        if node.get("type") == "object":
            properties = _mapping(node, "properties")
            wanted = (properties.get(name) for name in _sequence(node, "required") if isinstance(name, str))
            groups += [[id(child)] for child in wanted if isinstance(child, dict)]
        if node.get("type") == "array":
            first = _sequence(node, "prefixItems")[: node.get("minItems", 0)]
            rest = [node.get("items")] if node.get("minItems", 0) > len(first) else []
            groups += [[id(child)] for child in [*first, *rest] if isinstance(child, dict)]
        return groups


def _subschemas(node: Node) -> Iterator[Any]:
    for key in ONE:
        if key in node:
            yield node[key]
    for key in MANY:
        yield from _sequence(node, key)
    for key in NAMED:
        yield from _mapping(node, key).values()


def _sequence(node: Node, key: str) -> list[Any]:
    found = node.get(key, [])
    return found if isinstance(found, list) else []


def _mapping(node: Node, key: str) -> Node:
    found = node.get(key, {})
    return found if isinstance(found, dict) else {}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _terminates(root: int, needs: Needs) -> bool:
    """Whether a finite answer exists: unit propagation over 'ends when one of each group ends', linear."""
    waiting = {node: len(groups) for node, groups in needs.items()}
    users: dict[int, list[tuple[int, int]]] = {}
    for node, groups in needs.items():
        for number, group in enumerate(groups):
            for child in group:
                users.setdefault(child, []).append((node, number))
    ended = [node for node, count in waiting.items() if count == 0]
    met: set[tuple[int, int]] = set()
    while ended:
        for group_of in users.get(ended.pop(), ()):
            if group_of not in met:
                met.add(group_of)
                waiting[group_of[0]] -= 1
                if waiting[group_of[0]] == 0:
                    ended.append(group_of[0])
    return waiting[root] == 0
