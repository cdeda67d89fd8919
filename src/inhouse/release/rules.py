"""The rules of a deployment: who stays with which arm, when a canary goes on or back, and where overload goes."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import Field, field_validator

from inhouse.core.params import Params

WHOLE = 1000  # weights are parts of a thousand


class CanaryRules(Params):
    """When a canary gets more requests, and when it is taken back."""

    max_error_rate: float = Field(
        0.02,
        ge=0,
        le=1,
        description="share of failures above which it is taken back, if the live arm has fewer",
    )
    max_latency_ratio: float = Field(
        1.5, ge=1, le=100, description="p95 latency, as a multiple of the live arm's, above which it is taken back"
    )
    max_alarm_rate: float = Field(
        0.05, ge=0, le=1, description="share of guard alarms above which it is taken back, if the live arm has fewer"
    )
    min_requests: int = Field(50, ge=1, le=1_000_000, description="requests in the window before it is given more")
    window_s: float = Field(60.0, ge=1, le=86_400, description="seconds that each step lasts at least")
    steps: tuple[int, ...] = Field(
        (50, 250, 500, 1000),
        min_length=1,
        max_length=20,
        description="weights in thousandths; 1000 promotes it",
    )

    @field_validator("steps")
    @classmethod
    def _rising(cls, steps: tuple[int, ...]) -> tuple[int, ...]:
        if list(steps) != sorted(set(steps)) or steps[0] < 1 or steps[-1] > WHOLE:
            raise ValueError("weights that rise, from 1 to 1000")
        return steps


class Overflow(Params):
    """Another endpoint for what the local engines have no room for. Requests with personal data never go there."""

    url: str = Field(pattern=r"^https?://[^\s/]+", max_length=2000, description="base URL of an OpenAI endpoint")
    model: str = Field(min_length=1, max_length=256, description="model to ask for there")
    queue: int = Field(16, ge=0, le=100_000, description="requests that wait here before new ones go there")
    never_with_personal_data: Literal[True] = Field(
        True, description="requests that hold personal data stay here; this cannot be switched off"
    )


class Rules(Params):
    """How a deployment treats its arms."""

    sticky: str = Field(
        "none",
        pattern=r"^(none|user|header:[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64})$",
        description="who stays with one arm: none, user (the request's `user`, else its key), header:NAME",
    )
    canary: CanaryRules = Field(CanaryRules(), description="when a canary goes on or back")
    overflow: Overflow | None = Field(None, description="where requests go when too many wait; absent: nowhere")

    @property
    def sticky_header(self) -> str | None:
        """The header that tells who stays together, in small letters."""
        kind, _, name = self.sticky.partition(":")
        return name.lower() if kind == "header" else None


def read_rules(text: str) -> Rules:
    """Rules as the registry keeps them; what a row leaves out has its default."""
    return Rules.model_validate(json.loads(text))


def write_rules(rules: Rules) -> str:
    """Only what differs from the defaults, so that a default may change with a version."""
    return json.dumps(rules.model_dump(mode="json", exclude_defaults=True), ensure_ascii=True, sort_keys=True)
