"""Settings of the `evaluate:` section."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from inhouse.core.params import OneOf, Params
from inhouse.evaluate.stats import BootstrapParams

Mode = Literal["generate", "constrained"]
METRICS = ("accuracy", "macro_f1", "valid_answers", "exact_match", "tool_calls", "perplexity")
EngineName = Literal["transformers", "llamacpp", "remote"]


class SpeedParams(Params):
    """How latency and tokens per second are measured: one request at a time, after one that is not counted."""

    requests: int = Field(16, ge=0, le=1000, description="requests timed for latency and time to first token; 0 = off")
    decode_prompts: int = Field(6, ge=0, le=1000, description="prompts timed for tokens per second; 0 = off")
    decode_tokens: int = Field(24, ge=2, le=4096, description="tokens written for each of those prompts")


class EvaluateParams(Params):
    """What is asked of a model, and what is measured."""

    max_tokens: int = Field(32, ge=1, le=8192, description="longest answer in free generation, in tokens")
    limit: int | None = Field(None, ge=1, description="use so many test rows, chosen by row id; None = all")
    modes: tuple[Mode, ...] = Field(
        ("generate", "constrained"),
        min_length=1,
        description="'generate': the model writes freely; 'constrained': the likeliest label (needs labels)",
    )
    likelihoods: tuple[EngineName, ...] = Field(
        ("transformers",),
        description="engines asked how likely answers are (label-constrained accuracy, perplexity); llamacpp takes one"
        " request per token of every label: about four times as long as its free answers",
    )
    metrics: tuple[Annotated[Params, OneOf("metric")], ...] = Field(
        METRICS,
        validate_default=True,
        description="what is measured; a metric that does not apply (accuracy without labels) is left out",
    )
    bootstrap: BootstrapParams = BootstrapParams()
    speed: SpeedParams = SpeedParams()


class EvaluateNode(Params):
    """One model measured through one engine."""

    engine: EngineName
    settings: EvaluateParams = EvaluateParams()
