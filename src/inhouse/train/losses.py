"""Log-likelihoods of tokens out of logits, without a float32 copy of all logits."""

from __future__ import annotations

from typing import Any

import torch

ROWS = 64  # places whose logits are in float32 at the same time: 12 MB for a vocabulary of 49,152


def token_losses(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """-log p(target) (N) of logits (N, V) in any type, in float32; the gradient has the type of the logits."""
    found: torch.Tensor = TokenLosses.apply(logits, targets)
    return found


class TokenLosses(torch.autograd.Function):  # type: ignore[misc]
    """A few rows at a time: the probabilities are computed again for the gradient, and never all kept."""

    @staticmethod
    def forward(ctx: Any, logits: Any, targets: Any) -> Any:
        norms = torch.cat([part.float().logsumexp(-1) for part in logits.split(ROWS)])
        ctx.save_for_backward(logits, targets, norms)
        return norms - logits.gather(-1, targets[:, None])[:, 0].float()

    @staticmethod
    def backward(ctx: Any, above: Any) -> Any:
        logits, targets, norms = ctx.saved_tensors
        below = torch.empty_like(logits)
        for start in range(0, len(logits), ROWS):
            here = slice(start, start + ROWS)
            part = logits[here].float().sub_(norms[here, None]).exp_().mul_(above[here, None])
            part.scatter_add_(-1, targets[here, None], -above[here, None])
            below[here] = part
        return below, None
