"""Log-likelihoods of tokens out of logits, without a float32 copy of all logits.

In bf16 on a CPU it is a compiled loop (see `team`) over the logits as they are; else a few rows at a time in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from inhouse.train import team

ROWS, FEW = 64, 4  # places whose logits are in float32 at a time; on a CPU as many as its own cache holds


def token_losses(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """-log p(target) (N), float32, of logits (N, V) in any type; and whether the target is the likeliest token (N).

    The likeliest of several alike is the first, as `argmax` has it. The gradient has the type of the logits.
    """
    losses, right = TokenLosses.apply(logits, targets)
    return losses, right


class TokenLosses(torch.autograd.Function):  # type: ignore[misc]
    """The probabilities are computed again for the gradient, and never all kept."""

    @staticmethod
    def forward(ctx: Any, logits: Any, targets: Any) -> Any:
        targets = targets.contiguous()
        ctx.looped = team.fits(logits) and logits.numel() > 0
        if ctx.looped:
            losses, right, totals = _losses(logits, targets)
        else:
            losses, right, totals = *_in_parts(logits, targets), None
        ctx.save_for_backward(logits, targets, totals)
        ctx.mark_non_differentiable(right)
        return losses, right

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, above: Any, _: Any) -> Any:
        logits, targets, totals = ctx.saved_tensors
        below = torch.empty_like(logits, memory_format=torch.contiguous_format)
        if ctx.looped:
            given = (targets, totals, above.to(torch.float32).contiguous(), below)
            team.run("likelihood_back", *_rows_of(logits), *[one.data_ptr() for one in given])
            return below, None
        rows = _rows(logits)
        for start in range(0, len(logits), rows):
            here = slice(start, start + rows)
            part = torch.softmax(logits[here], -1, dtype=torch.float32).mul_(above[here, None])
            part.scatter_add_(-1, targets[here, None], -above[here, None])
            below[here] = part
        return below, None


def _losses(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Losses, whether the target is the likeliest, and the logarithm of all exponentials' sum, of every row."""
    losses, totals = torch.empty(2, len(logits)).unbind()
    right = torch.empty(len(logits), dtype=torch.int64)
    given = (targets, losses, totals, right)
    team.run("likelihood", *_rows_of(logits), *[one.data_ptr() for one in given])
    return losses, right.bool(), totals


def _in_parts(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows = _rows(logits)
    losses, right = [], []
    for part, target in zip(logits.split(rows), targets.split(rows), strict=True):
        found = torch.log_softmax(part, -1, dtype=torch.float32)
        losses.append(found.gather(-1, target[:, None])[:, 0].neg_())
        right.append(part.argmax(-1) == target)
    return torch.cat(losses), torch.cat(right)


def _rows_of(logits: torch.Tensor) -> tuple[int, int, int, int]:
    """Rows, their width, where they lie, and the stride from one to the next."""
    return len(logits), logits.shape[1], logits.data_ptr(), logits.stride(0)


def _rows(logits: torch.Tensor) -> int:
    return FEW if logits.device.type == "cpu" else ROWS
