"""The OpenAPI document of a test's server, narrowed so that generated requests reach the model and stay short."""

from __future__ import annotations

from typing import Any

SHORT = ("max_tokens", "max_completion_tokens", "max_output_tokens")
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "unsupported_method,use_after_free"
)


def narrowed(told: dict[str, Any]) -> dict[str, Any]:
    """The same document for the model 'desk', with short answers: else most requests would say 404."""
    for schema in told["components"]["schemas"].values():
        fields = schema.get("properties", {})
        if "model" in fields and "created" not in fields:
            fields["model"] = {"const": "desk"}
        for name in SHORT:
            if name in fields:
                fields[name] = {"type": "integer", "minimum": 1, "maximum": 4}
                schema["required"] = sorted({*schema.get("required", ()), name})
        _shorten(schema)
    return told


def _shorten(schema: Any) -> None:
    """Lists of a few and not of thousands: how long a thousand embeddings take is not asked here."""
    if isinstance(schema, dict) and "maxItems" in schema:
        schema["maxItems"] = min(4, schema["maxItems"])
    for inner in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        _shorten(inner)
