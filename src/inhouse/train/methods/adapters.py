"""Low-rank adapters beside linear layers: the settings and the PEFT configuration that LoRA and QLoRA share."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from inhouse.core.errors import UserError
from inhouse.core.messages import text as say
from inhouse.core.params import Params

if TYPE_CHECKING:
    from peft import LoraConfig, TaskType
    from transformers import PreTrainedModel

ROUTERS = ("gate", "shared_expert_gate", "router")  # training them unbalances the experts


class Adapters(Params):
    """Low-rank adapters (LoRA): their size, place and variant."""

    r: int = Field(16, ge=1, le=1024, description="rank of the adapters")
    lora_alpha: float = Field(32, gt=0, description="scale: the update is multiplied by lora_alpha / r")
    lora_dropout: float = Field(
        0.0, ge=0, lt=1, description="share of adapter inputs zeroed while training; above 0 the fused path is off"
    )
    target_modules: Literal["all-linear"] | tuple[str, ...] = Field(
        "all-linear", description="'all-linear' (but for the output layer), or names such as [q_proj, v_proj]"
    )
    use_rslora: bool = Field(False, description="scale by lora_alpha / sqrt(r), steadier at high ranks")
    use_dora: bool = Field(False, description="train magnitude and direction apart (DoRA); slower")
    experts: bool = Field(
        False, description="adapt the experts of a mixture too, whose weights are no modules; needs lora_dropout: 0"
    )

    @model_validator(mode="after")
    def _experts_are_plain(self) -> Self:
        if self.experts and (self.lora_dropout or self.use_dora):
            raise ValueError(say("problem.plain_experts"))
        return self


def adapter_config(model: PreTrainedModel, params: Adapters) -> LoraConfig:
    """PEFT's settings for adapters on this model.

    Raises train.no_target when a name matches no linear module, train.tied_target when one matches an output layer
    that is the embeddings too, train.no_experts when there are none to adapt.
    """
    from peft import LoraConfig
    from transformers.pytorch_utils import Conv1D

    linear = {name: module for name, module in model.named_modules() if has_weights(module)}
    targets = _targets(model, linear, params)
    chosen = [module for name, module in linear.items() if targets == "all-linear" or _matches(name, targets)]
    if params.experts and not _experts(model):
        raise UserError("train.no_experts", architecture=model.config.model_type)
    routers = {name.rpartition(".")[2] for name in linear} & set(ROUTERS)
    return LoraConfig(
        task_type=task_type(model),
        r=params.r,
        lora_alpha=params.lora_alpha,  # type: ignore[arg-type, unused-ignore]
        lora_dropout=params.lora_dropout,
        target_modules=targets,
        modules_to_save=fresh_modules(model) or None,
        target_parameters=_experts(model) if params.experts else None,
        exclude_modules=sorted(routers) or None,
        use_rslora=params.use_rslora,
        use_dora=params.use_dora,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in chosen),  # GPT-2 keeps its weights transposed
    )


def task_type(model: PreTrainedModel) -> TaskType | None:
    """What PEFT calls the model's task; with SEQ_CLS it trains and saves the classification head too."""
    from peft import TaskType

    named = type(model).__name__
    if named.endswith("ForSequenceClassification"):
        return TaskType.SEQ_CLS
    # A masked language model has no task there: PEFT then adds the adapters and nothing else.
    return TaskType.CAUSAL_LM if model.can_generate() else None


def fresh_modules(model: PreTrainedModel) -> list[str]:
    """What a classifier has that its base has not, besides the head that PEFT knows: it is trained and saved whole."""
    fresh: tuple[str, ...] = getattr(model, "fresh_modules", ())
    return [name for name in fresh if name.partition(".")[0] not in ("classifier", "score")]


def has_weights(module: Any) -> bool:
    """Whether this is a linear layer, GPT-2's transposed kind included."""
    import torch
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, torch.nn.Linear | Conv1D)


def _targets(model: PreTrainedModel, linear: dict[str, Any], params: Adapters) -> str | list[str]:
    if params.target_modules == "all-linear":
        return _all_beside_experts(model, linear) if _experts(model) else "all-linear"
    missing = [asked for asked in params.target_modules if not any(_matches(name, [asked]) for name in linear)]
    if missing or not params.target_modules:
        raise UserError("train.no_target", asked=", ".join(missing) or "[]", known=_offered(model, linear))
    tied = [name for name, module in linear.items() if is_tied(model, module)]
    if shared := [asked for asked in params.target_modules if any(_matches(name, [asked]) for name in tied)]:
        raise UserError("train.tied_target", asked=", ".join(shared), known=_offered(model, linear))
    return list(params.target_modules)


def _offered(model: PreTrainedModel, linear: dict[str, Any]) -> str:
    """Names of layers that can be adapted."""
    free = {name.rpartition(".")[2] for name, module in linear.items() if not is_tied(model, module)}
    return ", ".join(sorted(free - set(ROUTERS)))


def is_tied(model: PreTrainedModel, module: Any) -> bool:
    """Whether this layer's weights are the input embeddings: merging an adapter into one would change the other."""
    embedding: Any = model.get_input_embeddings()
    return module.weight is embedding.weight


def _all_beside_experts(model: PreTrainedModel, linear: dict[str, Any]) -> list[str]:
    """Every linear layer of a mixture but the output layer and routers.

    PEFT would read 'all-linear' as what these names meant in transformers 4: experts and routers included.
    """
    head = model.get_output_embeddings()
    names = {name.rpartition(".")[2] for name, module in linear.items() if module is not head}
    return sorted(names - set(ROUTERS))


def _experts(model: PreTrainedModel) -> list[str]:
    """Ends of the names of experts' weights: one tensor (experts, out, in) holds all of a layer."""
    found = {re.sub(r".*\.experts\.", "experts.", n) for n, p in model.named_parameters() if p.ndim == 3}
    return sorted(name for name in found if name.startswith("experts."))


def _matches(name: str, asked: str | list[str]) -> bool:
    """PEFT's rule for a list of names: the whole path of a module, or its end after a dot."""
    return any(name == one or name.endswith(f".{one}") for one in asked)
