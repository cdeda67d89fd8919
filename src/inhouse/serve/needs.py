"""What a request needs of an engine, and which of it an engine lacks."""

from __future__ import annotations

from inhouse.core.serving import Ask, Capabilities

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
        return FIELDS.get(limit.kind, limit.kind)
    return None
