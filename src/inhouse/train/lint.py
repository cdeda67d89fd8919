"""Settings outside of what is known to work: told with the range and the reason, never refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from inhouse.core.artifact import Frozen
from inhouse.train.params import TrainParams

FEW_STEPS, MANY_EPOCHS = 20, 10

# Peak learning rates of AdamW. full: 1e-5 to 5e-5 (Devlin et al. 2019, arXiv:1810.04805, A.3: 2e-5 to 5e-5; Alpaca,
# Vicuna, Tulu: 1e-5 to 2e-5). lora: 1e-4 to 2e-3, ten times that of full tuning, whatever the rank (Hu et al. 2021,
# arXiv:2106.09685, table 11: 2e-4 to 5e-4; Schulman et al. 2025, "LoRA Without Regret"). qlora: the same (Dettmers et
# al. 2023, arXiv:2305.14314, table 9: 1e-4 to 2e-4). prompt: 1e-3 to 0.3 (Lester et al. 2021, arXiv:2104.08691: 0.3;
# PEFT's examples: 1e-3 to 3e-2).
RATES = {"full": (1e-5, 5e-5), "lora": (1e-4, 2e-3), "qlora": (1e-4, 2e-3), "prompt": (1e-3, 0.3)}
# Preferences are learned with a twentieth of that (Rafailov et al. 2023, arXiv:2305.18290, appendix B: 1e-6; TRL's
# recipes: 5e-7 to 5e-6 full, 5e-6 to 5e-5 LoRA; orpo: Hong et al. 2024, arXiv:2403.07691: 5e-6 to 8e-6).
PREFERENCES, PREFERENCE_SHARE = frozenset({"dpo", "kto", "orpo"}), 20
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
    low, high = RATES.get(str(params.method.model_dump()["use"]), RATES["lora"])
    return (low / PREFERENCE_SHARE, high / PREFERENCE_SHARE) if _preference(params) else (low, high)


def _preference(params: TrainParams) -> str | None:
    objective = params.model_dump().get("objective")
    use = objective.get("use") if isinstance(objective, dict) else None
    return use if use in PREFERENCES else None


def _rate(params: TrainParams, use: str) -> Iterator[Remark]:
    named = " + ".join(filter(None, (use, _preference(params))))
    yield from _outside("train.lint.learning_rate", params.learning_rate, rate_range(params), method=named)


def _outside(code: Code, value: float, bounds: tuple[float, float], **more: Any) -> Iterator[Remark]:
    low, high = bounds
    if not low <= value <= high:
        facts = {"value": _short(value), "low": _short(low), "high": _short(high), **more}
        yield Remark(code=code, facts=facts)


def _short(value: float) -> str:
    return f"{value:g}"
