"""Log-likelihoods of tokens out of logits, without a float32 copy of all logits."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

ROWS, FEW = 64, 4  # places whose logits are in float32 at a time; on a CPU as many as its own cache holds


def token_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-log p(target) (N) of logits (N, V) in any type, in float32; the gradient has the type of the logits."""
    found: torch.Tensor = TokenLosses.apply(logits, targets)
    return found


class TokenLosses(torch.autograd.Function):  # type: ignore[misc]
    """A few rows at a time: the probabilities are computed again for the gradient, and never all kept."""

    @staticmethod
    def forward(ctx: Any, logits: Any, targets: Any) -> Any:
        ctx.save_for_backward(logits, targets)
        rows = _rows(logits)
        found = [
            torch.log_softmax(part, -1, dtype=torch.float32).gather(-1, target[:, None])[:, 0].neg_()
            for part, target in zip(logits.split(rows), targets.split(rows), strict=True)
        ]
        return torch.cat(found)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, above: Any) -> Any:
        logits, targets = ctx.saved_tensors
        below = torch.empty_like(logits)
        rows = _rows(logits)
        for start in range(0, len(logits), rows):
            here = slice(start, start + rows)
            part = torch.softmax(logits[here], -1, dtype=torch.float32).mul_(above[here, None])
            part.scatter_add_(-1, targets[here, None], -above[here, None])
            below[here] = part
        return below, None


def _rows(logits: torch.Tensor) -> int:
    return FEW if logits.device.type == "cpu" else ROWS
