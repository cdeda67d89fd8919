"""LoRA: train two small matrices beside each frozen weight (Hu et al. 2021, arXiv:2106.09685)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from inhouse.core.errors import UserError
from inhouse.core.params import Params

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


class Lora(Params):
    """Low-rank adapters beside the model's linear layers; the base stays frozen."""

    use: Literal["lora"] = "lora"
    r: int = Field(16, ge=1, le=1024, description="rank of the adapters")
    lora_alpha: float = Field(32, gt=0, description="scale: the update is multiplied by lora_alpha / r")
    lora_dropout: float = Field(0.05, ge=0, lt=1, description="share of adapter inputs zeroed while training")
    target_modules: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear", description="'all-linear', or names of modules such as [q_proj, v_proj]"
    )
    use_rslora: bool = Field(False, description="scale by lora_alpha / sqrt(r), steadier at high ranks")
    use_dora: bool = Field(False, description="train magnitude and direction apart (DoRA); slower")


def attach(model: PreTrainedModel, params: Lora) -> PeftModel:
    """The model with fresh adapters (float32, drawn from torch's seeded generator); only they are trainable."""
    from peft import LoraConfig, TaskType, get_peft_model

    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=params.r,
        lora_alpha=params.lora_alpha,  # type: ignore[arg-type, unused-ignore]
        lora_dropout=params.lora_dropout,
        target_modules=_targets(model, params),
        exclude_modules=_routers(model) or None,
        use_rslora=params.use_rslora,
        use_dora=params.use_dora,
    )
    adapted: PeftModel = get_peft_model(model, config)
    return adapted


def _targets(model: PreTrainedModel, params: Lora) -> str | list[str]:
    if params.target_modules == "all-linear":
        return "all-linear"
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if _has_weights(module)}
    missing = [name for name in params.target_modules if name.rpartition(".")[2] not in names]
    if missing or not params.target_modules:
        raise UserError("train.no_target", asked=", ".join(missing) or "[]", known=", ".join(sorted(names)))
    return list(params.target_modules)


def _has_weights(module: Any) -> bool:
    import torch
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, torch.nn.Linear | Conv1D)


def _routers(model: PreTrainedModel) -> list[str]:
    """Routers of expert layers: training them unbalances the experts."""
    return sorted({"gate" for name, module in model.named_modules() if name.endswith(".gate") and _has_weights(module)})
