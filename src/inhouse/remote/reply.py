"""Check an endpoint's reply against the JSON schema that it was asked to keep."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, create_model

FENCE = re.compile(r"\A\s*```(?:json)?\s*\n(.*?)\n?```\s*\Z", re.DOTALL)
NUMBER = Annotated[float, Field(allow_inf_nan=False)]
SIMPLE: dict[str, Any] = {"string": str, "number": NUMBER, "integer": int, "boolean": bool, "null": None}
BOUNDS = {
    "minimum": "ge", "maximum": "le", "minLength": "min_length", "maxLength": "max_length",
    "minItems": "min_length", "maxItems": "max_length",
}  # fmt: skip
KNOWN = {"type", "enum", "properties", "required", "additionalProperties", "items", "description", "title", *BOUNDS}


def fitting(reply: str, schema: dict[str, Any]) -> str:
    """The reply's JSON without a code fence around it. Raises ValueError that says what does not fit the schema."""
    fenced = FENCE.match(reply)
    body = fenced[1] if fenced else reply.strip()
    try:
        _adapter(json.dumps(schema)).validate_json(body, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{place}: {first['msg']}" if place else first["msg"]) from None
    return body


@cache
def _adapter(schema: str) -> TypeAdapter[Any]:
    return TypeAdapter(type_of(json.loads(schema)))


def type_of(schema: dict[str, Any]) -> Any:
    """The Python type whose JSON a schema describes; a keyword that is not checked here is a ValueError."""
    if unknown := sorted(schema.keys() - KNOWN):
        raise ValueError(f"a reply cannot be checked against {', '.join(unknown)}")
    if "enum" in schema:
        return Literal[tuple(schema["enum"])]
    kind = schema["type"]
    if isinstance(kind, list):
        options = tuple(type_of({**schema, "type": one}) for one in kind)
        union = options[0]
        for option in options[1:]:
            union = union | option
        return union
    if kind == "object":
        return _object(schema)
    found = list[type_of(schema["items"])] if kind == "array" else SIMPLE[kind]  # type: ignore[misc]
    bounds = {BOUNDS[name]: value for name, value in schema.items() if name in BOUNDS}
    return Annotated[found, Field(**bounds)] if bounds and found is not None else found


def _object(schema: dict[str, Any]) -> Any:
    """A model whose fields are named by number: a property's name may be no Python name."""
    needed = set(schema.get("required", ()))
    fields: dict[str, Any] = {}
    for number, (name, inner) in enumerate(schema.get("properties", {}).items()):
        default = ... if name in needed else None
        fields[f"field_{number}"] = (type_of(inner), Field(default, alias=name))
    closed = schema.get("additionalProperties", True) is False
    return create_model("Reply", __config__=ConfigDict(extra="forbid" if closed else "ignore"), **fields)
