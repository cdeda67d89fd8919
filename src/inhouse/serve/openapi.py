"""The OpenAPI document: made of the table of routes and of the models that check bodies."""

from __future__ import annotations

import json
import sys
from functools import cache
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from inhouse import __version__
from inhouse.serve.openapi_answers import Error, MessageError, PlainError
from inhouse.serve.openapi_operations import BYTES, EVENTS, LINES, OPERATIONS, TEXT, Operation
from inhouse.serve.routes import Route, Routes

Json = dict[str, Any]
JSON = "application/json"
REF = "#/components/schemas/{model}"
OPEN = "/health"
EXAMPLES = {
    EVENTS: 'data: {"object": "chat.completion.chunk", "choices": [...]}\n\ndata: [DONE]\n\n',
    LINES: '{"model": "desk", "done": false}\n{"model": "desk", "done": true}\n',
}
ALWAYS = (401, 403, 500)
ERRORS: dict[str, type[BaseModel]] = {"/api/": PlainError, "/v1/messages": MessageError}
# Fields that are checked in code, and not by the models: how they are meant.
SCHEMA: Json = {"type": "object", "description": "a JSON schema"}
FUNCTION: Json = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "pattern": "^[a-zA-Z0-9_.-]{1,64}$"},
        "description": {"type": "string"},
        "parameters": SCHEMA,
        "strict": {"type": ["boolean", "null"]},
    },
}
TOOL: Json = {
    "type": "object",
    "required": ["type", "function"],
    "properties": {"type": {"const": "function"}, "function": FUNCTION},
}
NAMED: Json = {
    "type": "object",
    "required": ["type", "function"],
    "properties": {
        "type": {"const": "function"},
        "function": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}},
    },
}
FORMAT: Json = {
    "oneOf": [
        {"type": "null"},
        {
            "type": "object",
            "required": ["type"],
            "properties": {"type": {"enum": ["text", "json_object"]}},
        },
        {
            "type": "object",
            "required": ["type", "json_schema"],
            "properties": {
                "type": {"const": "json_schema"},
                "json_schema": {
                    "type": "object",
                    "required": ["name", "schema"],
                    "properties": {
                        "name": {"type": "string"},
                        "schema": SCHEMA,
                        "strict": {"type": ["boolean", "null"]},
                    },
                },
            },
        },
    ]
}
PART: Json = {
    "type": "object",
    "required": ["type", "text"],
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
}
CALL: Json = {
    "type": "object",
    "required": ["id", "type", "function"],
    "properties": {
        "id": {"type": "string", "minLength": 1, "maxLength": 128},
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "required": ["name", "arguments"],
            "properties": {"name": {"type": "string"}, "arguments": {"type": "string"}},
        },
    },
}
TURN: dict[str, Json] = {
    "content": {"anyOf": [{"type": ["string", "null"]}, {"type": "array", "items": PART}]},
    "tool_calls": {"type": ["array", "null"], "maxItems": 128, "items": CALL},
}
MEANT: dict[str, Json] = {
    "tools": {"type": ["array", "null"], "maxItems": 128, "items": TOOL},
    "tool_choice": {"anyOf": [{"enum": ["none", "auto", "required", None]}, NAMED]},
    "parallel_tool_calls": {"type": ["boolean", "null"]},
    "functions": {"type": ["array", "null"], "maxItems": 128, "items": FUNCTION, "deprecated": True},
    "response_format": FORMAT,
    "guided_regex": {"type": ["string", "null"]},
    "guided_grammar": {"type": ["string", "null"]},
    "guided_choice": {"type": ["array", "null"], "items": {"type": "string"}},
    "guided_json": {"anyOf": [SCHEMA, {"type": ["string", "null"]}]},
}


@cache
def encoded() -> bytes:
    """The document as JSON; it does not change while the server runs."""
    return json.dumps(document(), ensure_ascii=False).encode()


def document() -> Json:
    """The OpenAPI 3.1 document of every route."""
    refs, schemas = _schemas()
    paths: Json = {}
    for route in sorted(Routes().all(), key=lambda route: (route.path, route.verb)):
        operation = OPERATIONS.get((route.verb, route.path), Operation(route.path))
        paths.setdefault(route.path, {})[route.verb.lower()] = _operation(route, operation, refs)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "inhouse",
            "version": __version__,
            "description": "OpenAI-compatible endpoint. Unknown fields of a body are ignored, and named in the header "
            "x-inhouse-ignored-fields.",
        },
        "servers": [{"url": "/"}],
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "inhouse keys create"}},
        },
    }


def _schemas() -> tuple[dict[type[BaseModel], Json], Json]:
    """Where each model's schema is found, and all of them by name."""
    used: set[type[BaseModel]] = {Error, *ERRORS.values()}
    used |= {model for each in OPERATIONS.values() for model in (each.body, each.answer) if model is not None}
    models = sorted(used, key=lambda model: model.__name__)
    found, told = models_json_schema([(model, "validation") for model in models], ref_template=REF)
    schemas: Json = told["$defs"]
    for name in ("ChatBody", "CompletionBody"):
        properties = schemas[name]["properties"]
        properties |= {field: meant for field, meant in MEANT.items() if field in properties}
    schemas["ChatMessage"]["properties"] |= TURN
    return {model: found[(model, "validation")] for model in models}, schemas


def _operation(route: Route, operation: Operation, refs: dict[type[BaseModel], Json]) -> Json:
    told: Json = {
        "summary": operation.summary,
        "operationId": _id_of(route),
        "parameters": _parameters(route, operation),
        "responses": {"200": _answer(operation, refs), **_refusals(route, operation, refs)},
        "x-scope": route.scope,
    }
    if operation.body is not None:
        told["requestBody"] = {"required": True, "content": {JSON: {"schema": refs[operation.body]}}}
    if operation.form is not None:
        told["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": operation.form}}}
    if route.path == OPEN:
        told["security"] = []
    return told


def _id_of(route: Route) -> str:
    """A name for generated clients: post_v1_chat_completions."""
    kept = "".join(c if c.isalnum() else "_" for c in route.path)
    return f"{route.verb.lower()}_{'_'.join(part for part in kept.split('_') if part)}"


def _parameters(route: Route, operation: Operation) -> list[Json]:
    parts = [piece.strip("{}") for piece in route.path.split("/") if piece.startswith("{")]
    places = [{"name": n, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}} for n in parts]
    return places + [{"name": name, "in": "query", "schema": schema} for name, schema in operation.queries]


def _answer(operation: Operation, refs: dict[type[BaseModel], Json]) -> Json:
    content: Json = {}
    if operation.answer is not None:
        content[JSON] = {"schema": refs[operation.answer]}
    if operation.also in EXAMPLES:
        content[operation.also] = {"example": EXAMPLES[operation.also]}
    elif operation.also == TEXT:
        content[TEXT] = {"schema": {"type": "string"}}
    elif operation.also == BYTES:
        content[BYTES] = {}
    return {"description": "The answer", "content": content}


def _refusals(route: Route, operation: Operation, refs: dict[type[BaseModel], Json]) -> Json:
    if route.path == OPEN:
        return {}
    error = refs[next((model for begins, model in ERRORS.items() if route.path.startswith(begins)), Error)]
    told: Json = {}
    for status in sorted({*operation.refusals, *ALWAYS}):
        told[str(status)] = {"description": HTTPStatus(status).phrase, "content": {JSON: {"schema": error}}}
        if status in (429, 503):
            told[str(status)]["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}
    return told


if __name__ == "__main__":
    sys.stdout.write(encoded().decode() + "\n")
