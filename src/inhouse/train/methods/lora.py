"""LoRA: train two small matrices beside each frozen weight (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from inhouse.train.methods.adapters import Adapters, adapter_config

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

BASE = "frozen"


class Lora(Adapters):
    """Low-rank adapters beside the model's linear layers; the base stays frozen."""

    use: Literal["lora"] = "lora"


def attach(model: PreTrainedModel, params: Lora) -> PeftModel:
    """The model with fresh adapters (float32, drawn from torch's seeded generator); only they are trainable."""
    from peft import get_peft_model

    adapted: PeftModel = get_peft_model(model, adapter_config(model, params))
    return adapted
