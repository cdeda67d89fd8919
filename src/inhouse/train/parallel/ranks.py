"""Which rows each rank takes: the rows of an optimiser step are those of one process, dealt out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil


@dataclass(frozen=True)
class Shares:
    """The run as the ranks take it: item k * ranks + r is the k-th of rank r, and `turns` items make a step.

    An empty item is a turn without rows: a rank has to be there even so, or the others wait for it.
    """

    items: list[list[int]]
    turns: int


def share_out(plan: Sequence[Sequence[int]], accumulation: int, ranks: int, unit: int = 1) -> Shares:
    """Deal the batches of every optimiser step to `ranks`; batches are cut where they do not come out even.

    `plan` holds sample indices per batch, `accumulation` batches make one step of one process, and every `unit`
    samples are one example, which is not cut. No item is larger than the largest batch of its step.
    """
    turns = ceil(accumulation / ranks)
    items: list[list[int]] = []
    for at in range(0, len(plan), accumulation):
        step = plan[at : at + accumulation]
        parts = turns * ranks
        if len(step) == parts and all(step):
            items += [list(batch) for batch in step]
            continue
        rows = [row for batch in step for row in batch]
        borders = [len(rows) // unit * k // parts * unit for k in range(parts + 1)]
        items += [rows[start:end] for start, end in pairwise(borders)]
    return Shares(items, turns)
