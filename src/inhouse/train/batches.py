"""Samples as batches of token ids: the loss stands on the answers' tokens only."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from inhouse.train.apart import IGNORED, padded
from inhouse.train.learning import Learning
from inhouse.train.segments import Packed, pack
from inhouse.train.spans import Sample


@dataclass(frozen=True)
class Reading:
    """How a model reads a batch: packed into one row or padded; shared beginnings once; computing in bf16."""

    packs: bool = True
    shares: bool = True
    halves: bool = False


def plan_batches(samples: Sequence[Sample], size: int, epochs: float, seed: int) -> list[list[int]]:
    """Which samples stand in each batch of the whole run: shuffled, then of like length so that padding stays small.

    The last part of an epoch may give a smaller batch. A fraction of an epoch takes that share of its batches.
    """
    chooser = random.Random(seed)
    plan: list[list[int]] = []
    for epoch in range(_at_least(epochs)):
        order = list(range(len(samples)))
        chooser.shuffle(order)
        near = size * 64  # sorting everything would make the order of lengths the order of training
        grouped = [
            sorted(order[at : at + near], key=lambda i: (len(samples[i].ids), i)) for at in range(0, len(order), near)
        ]
        batches = [group[at : at + size] for group in grouped for at in range(0, len(group), size)]
        chooser.shuffle(batches)
        share = min(1.0, epochs - epoch)
        plan += batches[: _at_least(len(batches) * share)]
    return plan


def _at_least(count: float) -> int:
    """A count rounded up, 1 or more."""
    return max(1, ceil(round(count, 6)))  # 20 x (1.1 - 1) is a little more than 2


@dataclass(frozen=True)
class Batch:
    """Samples that are read together: as one packed row, or padded on the right where a model cannot read that.

    `own` of them are learned from: all, or none where a batch only fills a step up. `halved`: activations are bf16.
    """

    samples: tuple[Sample, ...]
    packed: Packed | None
    own: tuple[Sample, ...]
    halved: bool = False


def collate(samples: Sequence[Sample], pad: int, reading: Reading, learning: Learning) -> dict[str, Any]:
    """What the trainer hands to the model: token ids, and the batch that they were made of.

    Packed: `input_ids` (1, T). Padded: `input_ids` and `attention_mask` (B, W). `labels` (N) has an entry for each
    thing that the loss is averaged over: the trainer counts them over all parts of a step. A batch without samples has
    one label, -100, which does not count.
    """
    import torch

    labels = learning.counted(samples) or [IGNORED]
    read = tuple(samples) or (Sample((pad, pad), (False, True)),) * learning.unit
    batch = Batch(read, pack(read, reading.shares) if reading.packs else None, tuple(samples), reading.halves)
    counted = torch.tensor(labels)
    # Two names for one thing: of `labels` alone the trainer would not count the first.
    found: dict[str, Any] = {"labels": counted, "shift_labels": counted, "batch": batch}
    if batch.packed:
        return {"input_ids": torch.tensor([batch.packed.ids]), **found}
    ids, _, mask = padded(read, pad)
    return {"input_ids": ids, "attention_mask": mask, **found}
