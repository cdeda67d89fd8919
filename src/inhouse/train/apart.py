"""Losses of rows that are read apart: padded, nothing packed, no prefix shared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from inhouse.train.tokens import Sample

if TYPE_CHECKING:
    import torch

IGNORED = -100  # what torch's cross entropy skips and the trainer does not count


def row_losses(model: torch.nn.Module, samples: Sequence[Sample], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy summed over each sample's learned tokens (B,), and how many those are (B,).

    Every tensor that the model gets begins with the batch, positions too: what is computed for one row can then be
    told from what is computed for another. Rows are padded on the right, where causal attention never looks back.
    """
    import torch

    device = next(model.parameters()).device
    ids, wanted, mask = (tensor.to(device) for tensor in padded(samples, pad))
    places = (wanted != IGNORED).any(0).nonzero().flatten()
    halved = next(model.parameters()).dtype == torch.bfloat16
    with torch.autocast(device.type, torch.bfloat16, enabled=halved):
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=torch.arange(ids.shape[1], device=device).repeat(len(samples), 1),
            use_cache=False,
            logits_to_keep=places - ids.shape[1],  # from the end: a tuned prompt stands before all places
        ).logits
    targets = wanted[:, places]
    each = torch.nn.functional.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")
    return each.sum(1), (targets != IGNORED).sum(1)


def padded(samples: Sequence[Sample], pad: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, the learned token that follows each place (or IGNORED), and the mask; all (B, T)."""
    import torch

    width = max(len(sample.ids) for sample in samples)
    ids = torch.full((len(samples), width), pad, dtype=torch.long)
    wanted = torch.full_like(ids, IGNORED)
    mask = torch.zeros_like(ids)
    for row, sample in enumerate(samples):
        length = len(sample.ids)
        own = torch.tensor(sample.ids, dtype=torch.long)
        ids[row, :length], mask[row, :length] = own, 1
        learned = torch.tensor(sample.learned)[1:]
        wanted[row, : length - 1][learned] = own[1:][learned]
    return ids, wanted, mask
