"""Rows held back from training, and the loss on them while it runs."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from math import ceil
from typing import TYPE_CHECKING, Any

from inhouse.core.errors import UserError
from inhouse.core.protocols import Input
from inhouse.core.rows import Row
from inhouse.dataset import read_rows
from inhouse.train.watch import WatchParams

if TYPE_CHECKING:
    import torch
    from transformers import EvalPrediction, Trainer


def hold_out(rows: list[Row], dataset: Input, params: WatchParams, seed: int) -> tuple[list[Row], list[Row]]:
    """The rows to train on and those to measure on while training: never the test part.

    With eval_share a share of the training rows, drawn by row id and seed, copies and rows augmented from one another
    together; else the dataset's valid part. No rows to measure on when eval_steps is not set.
    Raises train.no_valid, train.no_rows.
    """
    if params.eval_steps is None:
        return rows, []
    if params.eval_share is None:
        valid = list(read_rows(dataset.path, "valid"))
        if not valid:
            raise UserError("train.no_valid")
        return rows, valid
    kept, held = share_of(rows, params.eval_share, seed)
    if not kept or not held:
        raise UserError("train.share_takes_all", rows=len(rows), share=params.eval_share)
    return kept, held


def share_of(rows: Sequence[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Rows in their order as (kept, held): rows of one origin, or with the same words, stay on one side."""
    families = _families(rows)
    sizes = Counter(families)
    wanted, held = ceil(len(rows) * share), set[str]()
    for family in sorted(sizes, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest()):
        if wanted <= 0:
            break
        held.add(family)
        wanted -= sizes[family]
    sides = list(zip(rows, families, strict=True))
    return [row for row, name in sides if name not in held], [row for row, name in sides if name in held]


def _families(rows: Sequence[Row]) -> list[str]:
    """A name for each row; equal for rows tied by a parent, by a mix's repeats, or by equal texts."""
    tied: dict[str, str] = {}

    def root(name: str) -> str:
        while (above := tied.setdefault(name, name)) != name:
            name = above
        return name

    origins = [f"id {(row.parent or row.id).partition('#')[0]}" for row in rows]
    for row, origin in zip(rows, origins, strict=True):
        words = "\n".join(message.content or "" for message in row.messages)
        low, high = sorted((root(origin), root(f"text {words}")))
        tied[high] = low
    return [root(origin) for origin in origins]


def measure(trainer: Trainer, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    """Figures (1, 3) of one batch: summed loss, how much is learned, and how much of it the model gets right."""
    import torch

    count = (inputs["labels"] >= 0).sum()
    with torch.no_grad():
        loss, more = trainer.compute_loss(model, inputs, return_outputs=True, num_items_in_batch=count)
    return torch.stack([loss.double() * count, count.double(), more["correct"].double()]).unsqueeze(0)


def pooled(found: EvalPrediction) -> dict[str, float]:
    """Loss and accuracy over all batches, each token counting once; for the trainer's `compute_metrics`."""
    loss, count, correct = found.predictions.sum(axis=0)
    return {"loss": float(loss / count), "accuracy": float(correct / count)}
