"""The rules of a deployment: who stays with which arm, when a canary goes on or back, and where overload goes."""

from __future__ import annotations

import json
import re
from typing import Literal

from pydantic import Field, field_validator

from inhouse.core.messages import text
from inhouse.core.params import Params
from inhouse.guard.answers import Alarm

STICKY = r"none|user|header:[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}"
WHOLE = 1000  # weights are parts of a thousand; people say percent


def weight_of(share: float) -> int | None:
    """The weight of a share in percent: 0.1 to 100 in steps of 0.1; None for any other."""
    weight = round(share * 10) if 0 < share <= 100 else 0
    return weight if weight >= 1 and abs(weight - share * 10) < 1e-6 else None


class CanaryRules(Params):
    """When a canary gets more requests, and when it is taken back."""

    max_error_rate: float = Field(
        0.05,
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
    steps: tuple[float, ...] = Field(
        (5, 25, 50, 100),
        min_length=1,
        max_length=20,
        description="its shares in percent, one after the other; 100 promotes it",
    )

    @field_validator("steps")
    @classmethod
    def _rising(cls, steps: tuple[float, ...]) -> tuple[float, ...]:
        weights = [weight_of(step) for step in steps]
        if None in weights or list(steps) != sorted(set(steps)):
            raise ValueError(text("release.steps"))
        return steps

    def after(self, weight: int) -> int | None:
        """The weight of the step after the one with `weight`; None after the last."""
        return next((step for share in self.steps if (step := weight_of(share) or 0) > weight), None)


class ExperimentRules(Params):
    """When a comparison of arms may stop."""

    alpha: float = Field(0.05, gt=0, lt=1, description="chance of ever naming a winner where there is no difference")
    min_score_difference: float = Field(
        0.1, gt=0, le=2, description="mean scores (-1 to 1) that are surely closer than this count as equal"
    )
    min_error_difference: float = Field(
        0.02, gt=0, le=1, description="error rates that are surely closer than this count as equal"
    )


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
        description="who stays with one arm: none, user (the request's `user`, else its key), header:NAME",
    )
    canary: CanaryRules = Field(CanaryRules(), description="when a canary goes on or back")
    experiment: ExperimentRules = Field(ExperimentRules(), description="when a comparison of arms may stop")
    guard: tuple[Alarm, ...] = Field(
        (),
        max_length=2,
        description="personal-data, prompt-leak: answers that hold some count as alarms of their release",
    )
    overflow: Overflow | None = Field(None, description="where requests go when too many wait; absent: nowhere")

    @field_validator("sticky")
    @classmethod
    def _known(cls, sticky: str) -> str:
        if not re.fullmatch(STICKY, sticky):
            raise ValueError(text("release.sticky"))
        return sticky

    @property
    def sticky_header(self) -> str | None:
        """The header that tells who stays together, in small letters."""
        kind, _, name = self.sticky.partition(":")
        return name.lower() if kind == "header" else None


def read_rules(kept: str) -> Rules:
    """Rules as the registry keeps them; what a row leaves out has its default."""
    return Rules.model_validate(json.loads(kept))


def write_rules(rules: Rules) -> str:
    """Only what differs from the defaults, so that a default may change with a version."""
    return json.dumps(rules.model_dump(mode="json", exclude_defaults=True), ensure_ascii=True, sort_keys=True)
