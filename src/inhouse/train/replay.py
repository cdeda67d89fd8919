"""Mix rows of a general dataset into training, so that what the base knew is practised too.

Rehearsal: Robins 1995, Catastrophic forgetting, rehearsal and pseudorehearsal, Connection Science 7(2).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Annotated, Generic, TypeVar

from pydantic import Field

from inhouse.core.errors import UserError
from inhouse.core.params import Needs, Params
from inhouse.core.rows import Row

T = TypeVar("T")


class ReplayParams(Params):
    """Rows of a general dataset among those that are learned."""

    dataset: Annotated[str, Needs("replay", "dataset")] = Field(
        description="a name of extra_data: the dataset whose training rows are mixed in"
    )
    share: float = Field(0.1, gt=0, lt=1, description="their share of all samples of an epoch")


@dataclass(frozen=True)
class Mixed(Generic[T]):
    """The samples of an epoch: `own` ones, then the replayed ones; `rows` different rows gave them."""

    samples: list[T]
    own: int
    rows: int
    too_long: int

    @property
    def facts(self) -> dict[str, float | int]:
        """Counts for the record. `rows` below `samples`: the dataset was too small, and its rows are repeated."""
        replayed = len(self.samples) - self.own
        return {
            "samples": replayed,
            "share": replayed / len(self.samples),
            "rows": self.rows,
            "too_long": self.too_long,
        }


def mix(
    own: Sequence[T], rows: Sequence[Row], encode: Callable[[Row], T | None], params: ReplayParams, seed: int
) -> Mixed[T]:
    """Add samples of `rows` so that they are the asked share of all, to the nearest sample and at least one.

    Rows are drawn without replacement by the seed and encoded only until there are enough; `encode` returns None for
    one that is too long. A dataset that is too small is repeated, every row as often as another or once more.
    Raises train.replay_empty.
    """
    wanted = max(1, round(len(own) * params.share / (1 - params.share)))
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    kept: list[T] = []
    too_long = 0
    for at in order:
        sample = encode(rows[at])
        if sample is None:
            too_long += 1
            continue
        kept.append(sample)
        if len(kept) == wanted:
            break
    if not kept:
        raise UserError("train.replay_empty", dataset=params.dataset, rows=len(rows))
    return Mixed([*own, *islice(cycle(kept), wanted)], len(own), len(kept), too_long)
