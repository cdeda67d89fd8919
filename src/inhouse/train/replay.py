"""Mix rows of a general dataset into training, so that what the base knew is practised too.

Rehearsal: Robins 1995, Catastrophic forgetting, rehearsal and pseudorehearsal, Connection Science 7(2).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import TYPE_CHECKING, Annotated, Generic, NamedTuple, TypeVar

from pydantic import Field

from inhouse.core.errors import UserError
from inhouse.core.params import Needs, Params
from inhouse.core.protocols import Input
from inhouse.core.rows import Row
from inhouse.core.run import Events
from inhouse.dataset import read_rows

if TYPE_CHECKING:
    from inhouse.train.learning import Coding, Learning
    from inhouse.train.tokens import Sample, Samples

T = TypeVar("T")
Encode = Callable[[Sequence[Row]], tuple[list[T], int]]
LEAST_ROWS = 64  # encoded at once: tokenizers are quicker with many
# What encoding raises where rows give no sample.
NOTHING = ("train.all_dropped", "train.all_empty", "train.all_masked", "train.all_refused")


class Mixed(NamedTuple):
    """The samples of an epoch, those of the general set last, and the counts for the record."""

    samples: Samples
    facts: dict[str, float | int]


class ReplayParams(Params):
    """Rows of a general dataset among those that are learned."""

    dataset: Annotated[str, Needs("replay", "dataset")] = Field(
        description="a name of extra_data: the dataset whose training rows are mixed in"
    )
    share: float = Field(0.1, gt=0, lt=1, description="their share of all samples of an epoch")


@dataclass(frozen=True)
class Drawn(Generic[T]):
    """Examples to mix in, how many different ones there were, and how many rows were too long to give one."""

    examples: list[T]
    different: int
    too_long: int


def wanted(own: int, share: float) -> int:
    """How many examples make `share` of all, beside `own` ones: the nearest whole number, and at least one."""
    return max(1, round(own * share / (1 - share)))


def draw(
    rows: Sequence[Row], count: int, encode: Callable[[Sequence[Row]], tuple[list[T], int]], seed: int
) -> Drawn[T]:
    """So many examples of rows in an order drawn by the seed, encoded only until there are enough.

    `encode` gives the examples of some rows, and how many of these were too long. Where all rows give too few, they
    are repeated, each as often as another or once more. No examples where no row gives one.
    """
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    kept: list[T] = []
    too_long = at = 0
    while at < len(order) and len(kept) < count:
        some = order[at : at + max(LEAST_ROWS, count - len(kept))]
        found, dropped = encode([rows[place] for place in some])
        kept += found
        too_long += dropped
        at += len(some)
    kept = kept[:count]
    return Drawn(list(islice(cycle(kept), count)), len(kept), too_long)


def mix_in(samples: Samples, general: Input, work: tuple[Learning, Coding], params: ReplayParams, seed: int) -> Mixed:
    """The samples with those of the general dataset after them. Raises train.replay_empty."""
    learning, coding = work
    unit = learning.unit
    quiet = replace(coding, events=Events())  # rows that are too long are counted, and more are drawn in their place

    def encode(rows: Sequence[Row]) -> tuple[list[list[Sample]], int]:
        try:
            found = learning.encode(rows, quiet)
        except UserError as error:
            if error.code not in NOTHING:
                raise
            return [], len(rows)
        return [found.kept[at : at + unit] for at in range(0, len(found.kept), unit)], found.too_long

    rows = list(read_rows(general.path, "train"))
    own = len(samples.kept) // unit
    drawn = draw(rows, wanted(own, params.share), encode, seed)
    if not drawn.examples:
        raise UserError("train.replay_empty", dataset=params.dataset, rows=len(rows))
    count = len(drawn.examples)
    if drawn.different < count:
        coding.events.note(
            "train.replay_repeated", dataset=params.dataset, share=params.share, rows=drawn.different, samples=count
        )
    facts = {"samples": count, "share": count / (own + count), "different": drawn.different, "too_long": drawn.too_long}
    added = [sample for example in drawn.examples for sample in example]
    return Mixed(replace(samples, kept=[*samples.kept, *added]), facts)
