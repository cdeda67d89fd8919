"""Full fine-tuning: every weight of the base is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from inhouse.core.params import Params

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BASE = "trained"


class Full(Params):
    """Train every weight. Needs about 16 bytes a parameter and a tenth of LoRA's learning rate."""

    use: Literal["full"] = "full"
    freeze_embeddings: bool = Field(False, description="leave the token embeddings (and an output layer tied to them)")


def attach(model: PreTrainedModel, params: Full) -> PreTrainedModel:
    """The model itself, trainable."""
    model.requires_grad_(True)
    if params.freeze_embeddings:
        model.get_input_embeddings().requires_grad_(False)
    return model
