"""QLoRA: LoRA on a base whose linear layers are kept in 4 bits (Dettmers et al. 2023, arXiv:2305.14314)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from inhouse.core.errors import UserError
from inhouse.core.plugins import require
from inhouse.train.methods.adapters import ROUTERS, Adapters, adapter_config, fresh_modules

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

BASE = "rounded"


class Qlora(Adapters):
    """Low-rank adapters on a base in 4 bits: less memory than LoRA, for a base that is rounded."""

    use: Literal["qlora"] = "qlora"
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = Field("nf4", description="the sixteen values that weights take")
    bnb_4bit_use_double_quant: bool = Field(True, description="keep the scales of the blocks in 8 bits")


def attach(model: PreTrainedModel, params: Qlora) -> PeftModel:
    """The model with its linear layers in 4 bits and fresh adapters beside them; only these are trainable.

    Raises train.nothing_to_round when it has no plain linear layer (GPT-2's are transposed).
    """
    require("qlora", "bitsandbytes")
    from peft import get_peft_model

    round_base(model, params)
    model.is_loaded_in_4bit = True  # so that PEFT chooses its adapters for 4-bit layers
    adapted: PeftModel = get_peft_model(model, adapter_config(model, params))
    return adapted


def round_base(model: PreTrainedModel, params: Qlora) -> None:
    """Replace every linear layer but the output layer and routers by a 4-bit one, one after the other."""
    import torch

    head = model.get_output_embeddings()
    kept, fresh = (*ROUTERS, "score", "classifier"), fresh_modules(model)
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and module is not head
        and name.rpartition(".")[2] not in kept
        and name not in fresh
    ]
    if not found:
        raise UserError("train.nothing_to_round", architecture=model.config.model_type)
    for name in found:
        model.set_submodule(name, _four_bit(model.get_submodule(name), params))


def _four_bit(linear: Any, params: Qlora) -> torch.nn.Module:
    from bitsandbytes.nn import Linear4bit, Params4bit

    rounded = Linear4bit(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
    settings: dict[str, Any] = {
        "quant_type": params.bnb_4bit_quant_type,
        "compress_statistics": params.bnb_4bit_use_double_quant,
    }
    rounded.weight = Params4bit(linear.weight.data, requires_grad=False, **settings).to(linear.weight.device)
    rounded.bias = linear.bias
    # Read once outside of training, such a layer would repack its weights for a faster bf16 product that has no
    # gradient and coarser scales: training would go on wrongly after the first evaluation, without a word.
    rounded.support_avx512bf16_for_cpu = False
    return rounded


def is_rounded(model: torch.nn.Module) -> bool:
    """Whether a model has layers in 4 bits."""
    return any(type(module).__name__ == "Linear4bit" for module in model.modules())


def unround(model: PreTrainedModel) -> None:
    """Replace 4-bit layers by plain ones that hold the very weights which the 4 bits stand for."""
    import torch
    from bitsandbytes.functional import dequantize_4bit

    for name, module in list(model.named_modules()):
        if type(module).__name__ == "Linear4bit":
            weight = dequantize_4bit(module.weight.data, module.weight.quant_state)
            plain = torch.nn.Linear(*weight.T.shape, bias=module.bias is not None, device="meta")
            plain.weight = torch.nn.Parameter(weight, requires_grad=False)
            plain.bias = module.bias
            model.set_submodule(name, plain)
    model.is_loaded_in_4bit = False
