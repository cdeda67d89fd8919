"""Pull the trained weights towards where they began (L2-SP, Li et al. 2018, arXiv:1802.01483)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from inhouse.core.params import Params
from inhouse.train.tokens import Sample

if TYPE_CHECKING:
    import torch


class L2Sp(Params):
    """Half the weight times the squared distance between the trained and the starting weights."""

    use: Literal["l2_sp"] = "l2_sp"
    weight: float = Field(0.01, gt=0, description="strength: weight / 2 times the squared distance joins the loss")


@dataclass(frozen=True)
class Start:
    """Pairs of adapter matrices with their scale, and other trained parameters with what they began as."""

    pairs: list[tuple[torch.Tensor, torch.Tensor, float]]
    others: list[tuple[torch.Tensor, torch.Tensor]]


def prepare(model: torch.nn.Module, samples: Sequence[Sample], params: L2Sp) -> Start:
    """Where training begins. Of LoRA nothing is copied: its update B·A is the distance from the base itself.

    Other trained parameters (full fine-tuning, heads, prompts, DoRA's magnitudes) are copied once, in their own type.
    """
    pairs = list(_pairs(model))
    paired = {id(matrix) for a, b, _ in pairs for matrix in (a, b)}
    trained = [p for p in model.parameters() if p.requires_grad and id(p) not in paired]
    return Start(pairs, [(p, p.detach().clone()) for p in trained])


def term(model: torch.nn.Module, state: Start, params: L2Sp) -> torch.Tensor:
    """weight / 2 times (sum of |scale B A|^2, plus sum of |now - start|^2); float32, a single number.

    |B A|^2 is the sum of the products of B'B and AA', two matrices of r by r instead of one as large as the layer.
    """
    import torch

    squares = [scale**2 * _square(a.float(), b.float()) for a, b, scale in state.pairs]
    squares += [(now.float() - start.float()).square().sum() for now, start in state.others]
    return params.weight / 2 * torch.stack(squares).sum()


def _square(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return ((b.T @ b) * (a @ a.T)).sum()


def _pairs(model: torch.nn.Module) -> Iterator[tuple[torch.Tensor, torch.Tensor, float]]:
    """A (r, in), B (out, r) and the scale of every trained adapter of a linear layer."""
    import torch
    from peft.tuners.lora import LoraLayer, ParamWrapper

    for module in model.modules():
        if not isinstance(module, LoraLayer) or isinstance(module, ParamWrapper):
            continue  # adapters of stacked experts are no single pair: they are compared with their start
        for name, first in module.lora_A.items():
            second = module.lora_B[name]
            if isinstance(first, torch.nn.Linear) and first.weight.requires_grad and second.weight.requires_grad:
                yield first.weight, second.weight, float(module.scaling[name])
