"""The settings of training: the `train` section of a project file."""

from __future__ import annotations

from math import ceil
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from inhouse.core.params import Needs, OneOf, OnlyHow, Params
from inhouse.engines.rope import RopeScaling
from inhouse.train.batching import BatchingParams
from inhouse.train.forgetting import ForgettingParams
from inhouse.train.parallel.settings import Parallel
from inhouse.train.privacy import Privacy
from inhouse.train.rate_ranges import DEFAULTS, default_rate
from inhouse.train.replay import ReplayParams
from inhouse.train.tokens import OverLength
from inhouse.train.watch import WatchParams

Precision = Literal["auto", "fp32", "bf16", "fp16"]


class TrainParams(WatchParams, BatchingParams):
    """How the base is fine-tuned. Keys are named as in transformers and PEFT."""

    method: Annotated[Params, OneOf("method", default="lora")] = Field(
        default="lora",
        validate_default=True,
        description="what is trained, and its own settings",
    )
    objective: Annotated[Params, OneOf("objective", default="sft")] = Field(
        default="sft", validate_default=True, description="what is learned, and its own settings"
    )
    dataset: Annotated[str, Needs("dataset", "dataset")] = Field(
        "data", description="what is learned from: `data`, or a name of extra_data"
    )
    replay: ReplayParams | None = Field(None, description="rows of another dataset mixed in, so that less is forgotten")
    forgetting: Annotated[ForgettingParams | None, OnlyHow()] = Field(
        None, description="how much worse the model becomes on a general set; measured after training"
    )
    learning_rate: float = Field(
        DEFAULTS["lora"], gt=0,
        description="peak learning rate; absent: 2e-4 for lora and qlora, which take 10 times that of full tuning; "
        "full 2e-5, prompt 1e-2; for dpo, kto and orpo a twentieth of it",
    )  # fmt: skip
    num_train_epochs: float = Field(1, gt=0, le=1000, description="passes over the training rows; may be a fraction")
    max_steps: int | None = Field(None, ge=1, description="stop after this many optimiser steps, whatever the epochs")
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="share of the steps in which the learning rate rises")
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "cosine", description="how the learning rate falls after the warm-up"
    )
    weight_decay: float = Field(0, ge=0, description="AdamW's decay of the trained weights")
    packing: bool = Field(True, description="read the samples of a batch as one row without padding; same result")
    share_prefix: bool = Field(True, description="read what samples of a batch begin with only once; same result")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients longer than this are shortened to it")
    max_length: int = Field(1024, ge=8, description="tokens of a sample at most; documents are cut into windows")
    over_length: OverLength = Field(
        "drop", description="a longer conversation is left out, truncated, or split between questions; all are counted"
    )
    rope_scaling: RopeScaling | None = Field(
        None, description="positions stretched over longer texts than the base was made for; kept in every export"
    )
    attention_window: int | None = Field(
        None, ge=8, description="tokens back that each token sees, where the architecture has a sliding window"
    )
    turns: Literal["last", "all"] = Field("last", description="learn the last answer only, or every assistant turn")
    changes: tuple[Annotated[Params, OneOf("change")], ...] = Field(
        (), description="what alters the model before training, in order: noise on embeddings, layers of a plugin"
    )
    penalties: tuple[Annotated[Params, OneOf("penalty")], ...] = Field(
        (), description="terms that join the loss, such as pulls towards the starting weights"
    )
    parallel: Parallel | None = Field(None, description="several processes for one training; absent: one")
    privacy: Privacy | None = Field(None, description="bound on what any single row can show in the weights (DP-SGD)")
    precision: Precision = Field("auto", description="arithmetic; auto: bf16 where the machine has it, else fp32")
    save_dtype: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="type of the merged weights; auto: fp32 below 1B parameters, else bf16"
    )

    @model_validator(mode="before")
    @classmethod
    def _default_rate(cls, given: Any) -> Any:
        if not isinstance(given, dict) or "learning_rate" in given:
            return given
        names = (_use(given.get(name, default)) for name, default in (("method", "lora"), ("objective", "sft")))
        return {**given, "learning_rate": default_rate(*names)}

    def warmup_steps(self, steps: int) -> int:
        """In how many of a training's steps the learning rate rises, from 0 on: it must not end before it has risen."""
        return min(ceil(steps * self.warmup_ratio), steps - 1)


def _use(given: Any) -> str:
    """The name of a part, however it is given."""
    return str(given.get("use") if isinstance(given, dict) else getattr(given, "use", given))
