"""What a request needs of an engine, and which of it an engine lacks."""

from __future__ import annotations

from inhouse.core.serving import Ask, Capabilities, Constraint

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
