"""Odds-ratio preference optimisation: learn better answers and avoid worse ones at once, without a reference.

Hong et al. 2024, arXiv:2403.07691. As in the paper, the loss of a better answer is the mean over that answer's tokens;
TRL's trainer takes the mean over the tokens of question and answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from inhouse.core.params import Params
from inhouse.core.rows import Row
from inhouse.train.learning import Coding, Loss, each_example
from inhouse.train.objectives.sft import ahead, complete, labels, prepare
from inhouse.train.preference import encode_preferences, sums
from inhouse.train.tokens import Samples

if TYPE_CHECKING:
    import torch

__all__ = ["UNIT", "Orpo", "ahead", "complete", "counted", "encode", "labels", "loss", "prepare"]

UNIT = 2
counted = each_example(UNIT)


class Orpo(Params):
    """Learn the better answers, and that their odds are higher than those of the worse ones."""

    use: Literal["orpo"] = "orpo"
    beta: float = Field(0.1, gt=0, description="weight of the odds beside the loss of the better answers")


def encode(rows: Sequence[Row], coding: Coding, params: Orpo) -> Samples:
    """The better and the worse conversation of every row, one after the other."""
    return encode_preferences(rows, coding)


def loss(model: torch.nn.Module, inputs: dict[str, Any], params: Orpo, state: None) -> Loss:
    """A pair is right when the better answer is likelier per token than the worse one."""
    from torch.nn.functional import logsigmoid

    likely, lengths = sums(model, inputs)
    mean = likely / lengths
    odds = log_odds(mean)
    ratio = odds[::2] - odds[1::2]
    each = -mean[::2] - params.beta * logsigmoid(ratio)
    return Loss(each.sum(), (ratio.detach() > 0).sum())


def log_odds(logs: torch.Tensor) -> torch.Tensor:
    """log(p / (1 - p)) of log-probabilities; an answer that is certain would have endless odds."""
    import torch

    held = logs.clamp(max=-1e-6)
    return held - torch.log(-torch.expm1(held))  # 1 - exp would lose its digits where p is near 1
