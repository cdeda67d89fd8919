"""Kahneman-Tversky optimisation: learn from answers that were found good or bad, without pairs.

Ethayarajh et al. 2024, arXiv:2402.01306.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from inhouse.core.errors import UserError
from inhouse.core.params import Params
from inhouse.core.rows import Row
from inhouse.train.ahead import AHEAD
from inhouse.train.learning import Coding, Loss, Start, each_example
from inhouse.train.objectives import sft
from inhouse.train.objectives.sft import complete, labels
from inhouse.train.preference import before, reference_of, sums
from inhouse.train.spans import Sample
from inhouse.train.tokens import Samples

if TYPE_CHECKING:
    import torch

__all__ = ["UNIT", "Kto", "ahead", "complete", "counted", "encode", "labels", "loss", "prepare"]

UNIT = 1
counted = each_example(UNIT)


@dataclass(frozen=True)
class Known:
    """Of an example before training: how likely its answer was; its question answered wrongly, and how likely that."""

    own: float
    wrong: Sample
    wrong_likely: float


class Kto(Params):
    """Make answers with a thumb up likelier and those with a thumb down less likely than before training."""

    use: Literal["kto"] = "kto"
    beta: float = Field(0.1, gt=0, description="how closely the model keeps to what it was; larger is closer")
    desirable_weight: float = Field(1.0, gt=0, description="weight of good answers")
    undesirable_weight: float = Field(1.0, gt=0, description="weight of bad answers; raise it where they are few")


def encode(rows: Sequence[Row], coding: Coding, params: Kto) -> Samples:
    """Conversations whose `desirable` says whether the answer was good. Raises train.no_thumbs."""
    for row in rows:
        if row.desirable is None:
            raise UserError("train.no_thumbs", id=row.id, source=row.source, offset=row.offset)
    found = sft.conversations(rows, coding)
    marked = zip(found.kept, found.origins, strict=True)
    return replace(found, kept=[replace(sample, mark=int(bool(rows[origin].desirable))) for sample, origin in marked])


def mismatched(sample: Sample, other: Sample, longest: int) -> Sample:
    """The question of one sample followed by the answers of another, cut at the longest that is allowed.

    Of several answers of a conversation all are learned, and what stands between them is read, as in `other` itself.
    """
    start, begin = sample.learned.index(True), other.learned.index(True)
    kept = slice(begin, begin + max(1, longest - start))
    return Sample((*sample.ids[:start], *other.ids[kept]), (*[False] * start, *other.learned[kept]))


def prepare(params: Kto, start: Start) -> dict[Sample, Known]:
    """How likely the model finds each answer before training, to its own question and to another (the next row's).

    Rows held back are paired among themselves: measuring on them changes nothing that is learned.

    Raises train.one_thumb: here, since the rows held back alone may well have been rated alike.
    """
    learned = len(start.samples) - start.held_out
    own, held = start.samples[:learned], start.samples[learned:]
    if len({sample.mark for sample in own}) < 2:
        raise UserError("train.one_thumb", rows=len(own))
    others = [*_next(own), *(_next(held) if len(held) > 1 else own[: len(held)])]
    own = [*own, *held]
    wrong = [mismatched(sample, other, start.longest) for sample, other in zip(own, others, strict=True)]
    both = [sample for pair in zip(own, wrong, strict=True) for sample in pair]  # neighbours share their question
    likely = reference_of(replace(start, samples=both))
    known = [(one, Known(likely[one], other, likely[other])) for one, other in zip(own, wrong, strict=True)]
    return dict(reversed(known))  # of a sample that is held back too, what it is to training


def _next(samples: Sequence[Sample]) -> list[Sample]:
    return [*samples[1:], *samples[:1]]


def ahead(samples: Sequence[Sample], state: dict[Sample, Known]) -> list[tuple[Sample, float]]:
    """The wrong answers to the questions of a step: they tell how far the model has drifted."""
    return [(state[sample].wrong, state[sample].wrong_likely) for sample in samples]


def loss(model: torch.nn.Module, inputs: dict[str, Any], params: Kto, state: dict[Sample, Known]) -> Loss:
    """An answer is right when training has moved it the way its thumb points.

    How far the model has drifted (the paper's z0) is read ahead off the wrong answers of the whole step, which should
    be as likely as before; no gradient goes through it.
    """
    import torch

    likely, _ = sums(model, inputs)
    samples = inputs["batch"].samples
    known = {sample: state[sample].own for sample in inputs["batch"].own}
    own, drift = likely - before(inputs, known, likely), inputs[AHEAD].clamp(min=0)
    good = torch.tensor([bool(sample.mark) for sample in samples], device=likely.device)
    value = torch.where(good, own - drift, drift - own)
    weight = torch.where(good, params.desirable_weight, params.undesirable_weight)
    each = weight * (1 - torch.sigmoid(params.beta * value))
    return Loss(each.sum(), ((own.detach() > 0) == good).sum())
