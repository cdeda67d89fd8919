"""The same training by other methods, each with a learning rate of its own kind: what a comparison trains."""

from __future__ import annotations

from math import exp, log
from typing import Any, Literal

from inhouse.train.lint import rate_range
from inhouse.train.params import TrainParams

Method = Literal["lora", "full", "qlora", "prompt"]
METHODS: tuple[Method, ...] = ("lora", "full", "qlora", "prompt")
CHECKPOINTED = "lora_checkpointed"


def with_method(params: TrainParams, method: Method) -> TrainParams:
    """The training with this method. The project's own settings stay where the method is its own.

    Another method's settings are its defaults, and those that the project's method has too (rank, target modules); its
    learning rate stands where the project's stands in the range that is known to work, on a scale of logarithms.
    """
    own = params.method.model_dump(mode="json")
    if own["use"] == method:
        return params
    plain: dict[str, Any] = {"use": method}
    empty = TrainParams.model_validate({"method": plain}).method
    shared = {name: own[name] for name in type(empty).model_fields if name in own and name != "use"}
    changed = TrainParams.model_validate({"method": plain | shared}).method
    found = params.model_copy(update={"method": changed})
    return found.model_copy(update={"learning_rate": _rate(params, found)})


def _rate(own: TrainParams, other: TrainParams) -> float:
    low, high = rate_range(own)
    if rate_range(other) == (low, high):  # also where the project's lies outside: the methods alone are to differ
        return own.learning_rate
    place = min(1.0, max(0.0, (log(own.learning_rate) - log(low)) / (log(high) - log(low))))
    low, high = rate_range(other)
    return float(f"{exp(log(low) + place * (log(high) - log(low))):.3g}")


def checkpointed(params: TrainParams, on: bool) -> TrainParams:
    """The training with activations computed twice, or kept."""
    return params.model_copy(update={"gradient_checkpointing": on})
