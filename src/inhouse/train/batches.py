"""Samples as batches of token ids: the loss stands on the answers' tokens only."""

from __future__ import annotations

import random
from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

from inhouse.train.tokens import Sample

if TYPE_CHECKING:
    import torch

IGNORED = -100  # what torch's cross entropy skips
LEAST_PREFIX = 8  # a shorter shared beginning costs more to read apart than it saves


def plan_batches(samples: Sequence[Sample], size: int, epochs: float, seed: int) -> list[list[int]]:
    """Which samples stand in each batch of the whole run: shuffled, then of like length so that padding stays small.

    The last part of an epoch may give a smaller batch. A fraction of an epoch takes that share of its batches.
    """
    chooser = random.Random(seed)
    plan: list[list[int]] = []
    for epoch in range(ceil(epochs)):
        order = list(range(len(samples)))
        chooser.shuffle(order)
        near = size * 64  # sorting everything would make the order of lengths the order of training
        grouped = [
            sorted(order[at : at + near], key=lambda i: (len(samples[i].ids), i)) for at in range(0, len(order), near)
        ]
        batches = [group[at : at + size] for group in grouped for at in range(0, len(group), size)]
        chooser.shuffle(batches)
        share = min(1.0, epochs - epoch)
        plan += batches[: max(1, ceil(len(batches) * share))]
    return plan


def collate(samples: Sequence[Sample], pad: int, share_prefix: bool) -> dict[str, torch.Tensor]:
    """Tensors of one batch: what all samples begin with (1, P), and the rest padded on the left (B, W).

    `places` are the positions in the rest whose logits predict a learned token; `shift_labels` (B, places) are those
    tokens, -100 where a sample learns nothing. So the large output matrix is multiplied at few positions only.
    """
    import torch

    held = common_prefix(samples) if share_prefix else 0
    width = max(len(sample.ids) for sample in samples) - held
    rows = len(samples)
    ids = torch.full((rows, width), pad, dtype=torch.long)
    mask = torch.ones((rows, held + width), dtype=torch.long)
    wanted = torch.full((rows, width), IGNORED, dtype=torch.long)
    for row, sample in enumerate(samples):
        rest = torch.tensor(sample.ids[held:], dtype=torch.long)
        start = width - len(rest)
        ids[row, start:] = rest
        mask[row, held : held + start] = 0
        learned = torch.tensor(sample.learned[held:])
        wanted[row, start:][learned] = rest[learned]
    targets = wanted.roll(-1, dims=1)  # position p predicts token p + 1; nothing learned stands first
    places = (targets != IGNORED).any(0).nonzero().flatten()
    prefix = torch.tensor([samples[0].ids[:held]], dtype=torch.long)
    learned_at = targets[:, places]
    # Two names for one thing: the trainer counts tokens of `shift_labels` when there are `labels`.
    named = {"labels": learned_at, "shift_labels": learned_at}
    return {"prefix": prefix, "input_ids": ids, "attention_mask": mask, "places": places, **named}


def common_prefix(samples: Sequence[Sample]) -> int:
    """How many tokens all samples share before the first answer, keeping one unshared; 0 when it is not worth it."""
    most = min(sample.learned.index(True) - 1 for sample in samples)
    first = samples[0].ids
    same: Any = (i for i in range(most) if any(sample.ids[i] != first[i] for sample in samples))
    length = max(0, next(same, most))
    return length if len(samples) > 1 and length >= LEAST_PREFIX else 0
