"""Settings outside of what is known to work: told with the range and the reason, never refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from inhouse.core.artifact import Frozen
from inhouse.train.params import TrainParams
from inhouse.train.rate_ranges import PREFERENCES, RATES, usual_range

FEW_STEPS, MANY_EPOCHS = 20, 10

# lora_dropout: 0 to 0.1 in Hu et al. and Dettmers et al.; 0.1 to 0.3 is advised for small sets.
DROPOUT = (0.0, 0.3)
# weight_decay: 0 to 0.1 (Loshchilov and Hutter 2019, arXiv:1711.05101; GPT-3 and LLaMA: 0.1; fine-tuning: 0 to 0.01).
DECAY = (0.0, 0.1)
# r: 4 to 256 (Hu et al. 2021, tables 6 and 18: nothing is gained above 64); lora_alpha / r: 0.5 to 4, usually 1 or 2
# (Hu et al. keep it constant; PEFT's documentation: 2).
RANK, SCALE = (4, 256), (0.5, 4.0)
# warmup_ratio: 0 to 0.2 (Devlin et al. 2019: 0.1; LLaMA recipes: 0.03 to 0.1).
WARMUP = (0.0, 0.2)

Code = Literal[
    "train.lint.learning_rate", "train.lint.lora_dropout", "train.lint.weight_decay", "train.lint.r",
    "train.lint.scale", "train.lint.warmup_ratio", "train.lint.num_train_epochs", "train.lint.few_steps",
    "train.lint.early_stopping",
]  # fmt: skip


class Remark(Frozen):
    """A setting outside of its range; `facts` fill the text of `code`."""

    code: Code
    facts: dict[str, Any] = Field(default_factory=dict)


def remarks(params: TrainParams, steps: int | None = None) -> Iterator[Remark]:
    """What is unusual about these settings; `steps` of the whole run where that is known."""
    method = params.method.model_dump()
    use = str(method["use"])
    if use in RATES:
        yield from _rate(params, use)
    yield from _outside("train.lint.weight_decay", params.weight_decay, DECAY)
    yield from _outside("train.lint.warmup_ratio", params.warmup_ratio, WARMUP)
    if "lora_dropout" in method:
        yield from _outside("train.lint.lora_dropout", method["lora_dropout"], DROPOUT)
    if "r" in method and "lora_alpha" in method:
        yield from _outside("train.lint.r", method["r"], RANK)
        if not method.get("use_rslora"):
            scale = method["lora_alpha"] / method["r"]
            yield from _outside("train.lint.scale", scale, SCALE, r=method["r"], lora_alpha=method["lora_alpha"])
    if params.max_steps is None and params.num_train_epochs > MANY_EPOCHS:
        yield Remark(code="train.lint.num_train_epochs", facts={"value": params.num_train_epochs, "high": MANY_EPOCHS})
    if steps is not None and steps < FEW_STEPS:
        yield Remark(code="train.lint.few_steps", facts={"steps": steps, "low": FEW_STEPS})
    every, patience = params.eval_steps, params.early_stopping_patience
    if steps is not None and every and patience and every * (patience + 1) > steps:
        most = max(1, steps // (patience + 1))
        told = {"steps": steps, "eval_steps": every, "patience": patience, "most": most}
        yield Remark(code="train.lint.early_stopping", facts=told)


def rate_range(params: TrainParams) -> tuple[float, float]:
    """The learning rates that are known to work for a method and what it learns; of a plugin's method, LoRA's."""
    return usual_range(*_names(params))


def _names(params: TrainParams) -> tuple[str, str]:
    told = params.model_dump()
    return str(told["method"]["use"]), str(told["objective"]["use"])


def _rate(params: TrainParams, use: str) -> Iterator[Remark]:
    objective = _names(params)[1]
    named = f"{use} + {objective}" if objective in PREFERENCES else use
    yield from _outside("train.lint.learning_rate", params.learning_rate, rate_range(params), method=named)


def _outside(code: Code, value: float, bounds: tuple[float, float], **more: Any) -> Iterator[Remark]:
    low, high = bounds
    if not low <= value <= high:
        facts = {"value": _short(value), "low": _short(low), "high": _short(high), **more}
        yield Remark(code=code, facts=facts)


def _short(value: float) -> str:
    return f"{value:g}"
