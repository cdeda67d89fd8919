"""Which rows each rank takes: the rows of an optimiser step are those of one process, dealt out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil


@dataclass(frozen=True)
class Shares:
    """The run as the ranks take it: item k * ranks + r is the k-th of rank r, and `turns` items make a step.

    An empty item is a turn without rows: a rank has to be there even so, or the others wait for it.
    """

    items: list[list[int]]
    turns: int


def share_out(plan: Sequence[Sequence[int]], accumulation: int, ranks: int) -> Shares:
    """Deal the batches of every optimiser step to `ranks`; batches are cut where they do not come out even.

    `plan` holds sample indices per batch, `accumulation` batches make one step of one process.
    No item is larger than the largest batch of its step.
    """
    turns = ceil(accumulation / ranks)
    items: list[list[int]] = []
    for at in range(0, len(plan), accumulation):
        step = plan[at : at + accumulation]
        if len(step) == turns * ranks:
            items += [list(batch) for batch in step]
            continue
        rows = [row for batch in step for row in batch]
        parts = turns * ranks
        items += [rows[len(rows) * k // parts : len(rows) * (k + 1) // parts] for k in range(parts)]
    return Shares(items, turns)
