"""What a request needs of an engine, and which of it an engine lacks."""

from __future__ import annotations

from inhouse.core.serving import Ask, Capabilities

FIELDS = {"json_object": "response_format", "json_schema": "response_format"}  # others are named as they are


def lacking(ask: Ask, able: Capabilities) -> str | None:
    """The first field of the request that an engine with these capabilities cannot serve; None when it can."""
    asked = ask.sampling
    checks = (
        ("messages", ask.messages is not None and not able.chat),
        ("tools", ask.forced is not None and able.tools != "auto" and "json_schema" not in able.constraints),
        ("logprobs", asked.logprobs is not None and not able.logprobs),
        ("logit_bias", bool(asked.logit_bias) and not able.logit_bias),
        ("n", asked.n > able.most_parallel),
        ("model", ask.adapter is not None and ask.adapter not in able.adapters),
    )
    missing = next((field for field, lacks in checks if lacks), None)
    if missing is None and ask.constraint is not None and ask.constraint.kind not in able.constraints:
        return FIELDS.get(ask.constraint.kind, ask.constraint.kind)
    return missing
