"""Direct preference optimisation: prefer the better of two answers (Rafailov et al. 2023, arXiv:2305.18290)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from inhouse.core.params import Params
from inhouse.core.rows import Row
from inhouse.train.learning import Coding, Loss, Start, each_example
from inhouse.train.objectives.sft import ahead, complete, labels
from inhouse.train.preference import before, encode_preferences, reference_of, sums
from inhouse.train.spans import Sample
from inhouse.train.tokens import Samples

if TYPE_CHECKING:
    import torch

__all__ = ["UNIT", "Dpo", "ahead", "complete", "counted", "encode", "labels", "loss", "prepare"]

UNIT = 2
counted = each_example(UNIT)


class Dpo(Params):
    """Make better answers likelier than worse ones, measured against the model before training."""

    use: Literal["dpo"] = "dpo"
    beta: float = Field(0.1, gt=0, description="how closely the model keeps to what it was; larger is closer")
    loss_type: Literal["sigmoid", "hinge", "ipo"] = Field(
        "sigmoid", description="sigmoid: DPO; hinge: SLiC; ipo: squared distance to a margin, steadier on few pairs"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description="share of pairs that may be the wrong way round (sigmoid only)"
    )


def encode(rows: Sequence[Row], coding: Coding, params: Dpo) -> Samples:
    """The better and the worse conversation of every row, one after the other."""
    return encode_preferences(rows, coding)


def prepare(params: Dpo, start: Start) -> dict[Sample, float]:
    """How likely the model finds each answer before training: one pass over the rows."""
    return reference_of(start)


def loss(model: torch.nn.Module, inputs: dict[str, Any], params: Dpo, state: dict[Sample, float]) -> Loss:
    """A pair is right when training has made the better answer likelier than the worse one."""
    import torch
    from torch.nn.functional import logsigmoid

    likely, lengths = sums(model, inputs)
    gained = likely - before(inputs, state, likely)
    if params.loss_type == "ipo":
        gained = gained / lengths  # a mean per token, as in TRL: long answers would outweigh short ones
    margin = gained[::2] - gained[1::2]
    if params.loss_type == "ipo":
        each = (margin - 1 / (2 * params.beta)) ** 2
    elif params.loss_type == "hinge":
        each = torch.relu(1 - params.beta * margin)
    else:
        wrong = params.label_smoothing
        each = -(1 - wrong) * logsigmoid(params.beta * margin) - wrong * logsigmoid(-params.beta * margin)
    return Loss(each.sum(), (margin.detach() > 0).sum())
