"""RMSNorm on a CPU in fewer passes over its input, for as long as a model is trained.

transformers computes it in six steps, of which autograd keeps three results in float32. Here it is one autograd
function that keeps the input as it is and a figure per row, and computes the rest again; a gradient is rounded once
instead of several times. The result is the same to the last bit, except in bf16: there it is a compiled loop (see
`team`), which adds the squares up in another order, and one figure in a few hundred is the neighbouring bf16.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from inhouse.train import team
from inhouse.train.instead import instead, layers_of

# Classes of transformers that compute weight * (x / rms(x)), rounded before the product. Gemma's, for one, is another.
KINDS = frozenset(
    f"{family}RMSNorm"
    for family in ("Llama", "Mistral", "Mixtral", "Qwen2", "Qwen3", "Qwen2Moe", "Qwen3Moe", "Glm", "Glm4", "Phi3")
) | {"SmolLM3RMSNorm", "GraniteRMSNorm"}


def fused_norms(model: torch.nn.Module) -> AbstractContextManager[int]:
    """Let a model's frozen norms on a CPU compute fused; gives how many do. Those on a GPU or trained stay."""
    return instead([norm for norm in layers_of(model, KINDS) if _frozen_on_cpu(norm)], _fused)


def _frozen_on_cpu(norm: Any) -> bool:
    return norm.weight.device.type == "cpu" and not norm.weight.requires_grad


def _fused(norm: Any) -> Any:
    usual = norm.forward

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        """Rows (…, D) divided by their root mean square, times the weight (D)."""
        if hidden.shape[-1] != len(norm.weight):
            return usual(hidden)
        found: torch.Tensor = FusedNorm.apply(hidden, norm.weight, norm.variance_epsilon)
        return found

    return forward


class FusedNorm(torch.autograd.Function):  # type: ignore[misc]
    """(…, D), (D) -> (…, D) of the type that both have together; the weight has no gradient."""

    @staticmethod
    def forward(ctx: Any, hidden: Any, weight: Any, epsilon: float) -> Any:
        if team.fits(hidden, weight):
            hidden = hidden.contiguous()
            out, root = torch.empty_like(hidden), torch.empty((*hidden.shape[:-1], 1))
            _run("norm", (hidden, weight, out, root), team.bits(epsilon))
        else:
            wide = hidden.to(torch.float32, copy=True)
            root = (wide * wide).mean(-1, keepdim=True).add_(epsilon).rsqrt_()
            out = weight * wide.mul_(root).to(hidden.dtype)
        ctx.save_for_backward(hidden, weight, root)
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, above: Any) -> Any:
        hidden, weight, root = ctx.saved_tensors
        if team.fits(hidden, weight, above):
            above, found = above.contiguous(), torch.empty_like(hidden)
            _run("norm_back", (hidden, weight, found, root), above.data_ptr())
            return found, None, None
        wide = hidden.float()
        below = above.float() * weight.float()
        shares = torch.linalg.vecdot(below, wide).unsqueeze(-1).mul_(root.square().div_(-wide.shape[-1]))
        return below.addcmul_(wide, shares).mul_(root).to(hidden.dtype), None, None


def _run(loop: str, tensors: tuple[torch.Tensor, ...], last: int) -> None:
    """A loop over rows of hidden states; the tensors that both loops take, and what one of them takes."""
    width = len(tensors[1])
    team.run(loop, tensors[0].numel() // width, width, *[tensor.data_ptr() for tensor in tensors], last)
