"""Kahneman-Tversky optimisation: learn from answers that were found good or bad, without pairs.

Ethayarajh et al. 2024, arXiv:2402.01306.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from inhouse.core.errors import UserError
from inhouse.core.params import Params
from inhouse.core.rows import Row
from inhouse.train.learning import Coding, Loss, Start, each_example
from inhouse.train.objectives import sft
from inhouse.train.objectives.sft import complete, labels
from inhouse.train.preference import before, reference_of, sums
from inhouse.train.spans import Sample
from inhouse.train.tokens import Limit, Samples

if TYPE_CHECKING:
    import torch

__all__ = ["UNIT", "Kto", "complete", "counted", "encode", "labels", "loss", "prepare"]

UNIT = 2  # an answer, and the same question with the answer of another row
counted = each_example(UNIT)


class Kto(Params):
    """Make answers with a thumb up likelier and those with a thumb down less likely than before training."""

    use: Literal["kto"] = "kto"
    beta: float = Field(0.1, gt=0, description="how closely the model keeps to what it was; larger is closer")
    desirable_weight: float = Field(1.0, gt=0, description="weight of good answers")
    undesirable_weight: float = Field(1.0, gt=0, description="weight of bad answers; raise it where they are few")


def encode(rows: Sequence[Row], coding: Coding, params: Kto) -> Samples:
    """Conversations whose `desirable` says whether the answer was good; behind each its question, answered wrongly.

    Raises train.no_thumbs.
    """
    for row in rows:
        if row.desirable is None:
            raise UserError("train.no_thumbs", id=row.id, source=row.source, offset=row.offset)
    found = sft.encode(rows, coding, sft.Sft())
    others = [*found.kept[1:], found.kept[0]]
    kept = []
    for sample, other, origin in zip(found.kept, others, found.origins, strict=True):
        kept += [replace(sample, mark=int(bool(rows[origin].desirable))), mismatched(sample, other, coding.limit)]
    return replace(found, kept=kept, origins=[origin for origin in found.origins for _ in range(UNIT)])


def mismatched(sample: Sample, other: Sample, limit: Limit) -> Sample:
    """The question of one sample followed by the answer of another, cut at the longest that is allowed."""
    start = sample.learned.index(True)
    answer = other.ids[other.learned.index(True) :][: max(1, limit.longest - start)]
    return Sample((*sample.ids[:start], *answer), (*[False] * start, *[True] * len(answer)))


def prepare(params: Kto, start: Start) -> dict[Sample, float]:
    """How likely the model finds each answer before training, to its own question and to another.

    Raises train.one_thumb: here, since the rows held back alone may well have been rated alike.
    """
    own = start.samples[::UNIT]
    if len({sample.mark for sample in own}) < 2:
        raise UserError("train.one_thumb", rows=len(own))
    return reference_of(start)


def loss(model: torch.nn.Module, inputs: dict[str, Any], params: Kto, state: dict[Sample, float]) -> Loss:
    """An answer is right when training has moved it the way its thumb points.

    How far the model has drifted is read off the wrong answers: they should be as likely as before.
    """
    import torch

    likely, _ = sums(model, inputs)
    samples = inputs["batch"].samples
    gained = likely - before(inputs, state, likely)
    good = torch.tensor([bool(sample.mark) for sample in samples[::2]], device=likely.device)
    own, drift = gained[::2], gained[1::2].detach().mean().clamp(min=0)
    value = torch.where(good, own - drift, drift - own)
    weight = torch.where(good, params.desirable_weight, params.undesirable_weight)
    each = weight * (1 - torch.sigmoid(params.beta * value))
    return Loss(each.sum(), ((own.detach() > 0) == good).sum())
