"""What a request needs of an engine, which of it an engine lacks, and our words where it refuses."""

from __future__ import annotations

from inhouse.core.messages import text
from inhouse.core.serving import Ask, Capabilities, Constraint, EngineRefused
from inhouse.serve.errors import ApiError, invalid, overloaded, too_long, unheld

FIELDS = {"json_object": "response_format", "json_schema": "response_format"}  # others are named as they are


def lacking(ask: Ask, able: Capabilities) -> str | None:
    """The first field of the request that an engine with these capabilities cannot serve; None when it can."""
    asked, limit = ask.sampling, ask.constraint
    if ask.messages is not None and not able.chat:
        return "messages"
    if ask.forced is not None and able.tools != "auto" and "json_schema" not in able.constraints:
        return "tools"
    if asked.logprobs is not None and not able.logprobs:
        return "logprobs"
    if asked.logit_bias and not able.logit_bias:
        return "logit_bias"
    if asked.n > able.most_parallel:
        return "n"
    if ask.adapter is not None and ask.adapter not in able.adapters:
        return "model"
    if limit is not None and limit.kind not in able.constraints:
        return field_of(limit)
    return None


def field_of(limit: Constraint) -> str:
    """The field of the request that names a constraint, as far as clients know it: the schema is inside of it."""
    told = limit.param or FIELDS.get(limit.kind, limit.kind)
    return "response_format" if told.startswith("response_format") else told


def refused_field(ask: Ask) -> str | None:
    """The field that an engine most likely means that refuses a request as not supported; None where none stands out.

    `lacking` has looked at all else before.
    """
    if ask.forced is not None:
        return "tools"
    if ask.constraint is not None:
        return field_of(ask.constraint)
    return "tools" if ask.tools else None


def refusal(refused: EngineRefused, context: int, ask: Ask | None = None) -> ApiError:
    """Our words for what an engine does not do, under the name of the field that asks for it.

    Without a request it was asked for vectors.
    """
    if refused.reason == "context":
        found = text("serve.tokens", count="?" if refused.tokens is None else refused.tokens)
        field = "input" if ask is None else "prompt" if ask.messages is None else "messages"
        return too_long(found, context, field)
    if refused.reason == "invalid" and refused.keyword == "logit_bias":
        return invalid(text("serve.bias_unknown"), "logit_bias")
    if refused.reason == "invalid":
        numbers = ask is not None and not isinstance(ask.prompt, str | None)
        return invalid(text("serve.bad_tokens"), "prompt") if numbers else invalid(text("serve.refused_by_engine"))
    if refused.reason == "unsupported":
        return unheld(None if ask is None else refused_field(ask), refused.keyword)
    if refused.reason == "busy":
        return overloaded(503)
    return ApiError(500, "engine_error", text("serve.engine_error"))
