"""Hold the weights that what is known already depends on (EWC, Kirkpatrick et al. 2017, arXiv:1612.00796)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from inhouse.core.params import Params
from inhouse.train.tokens import Sample

if TYPE_CHECKING:
    import torch


class Ewc(Params):
    """Half the weight times the squared distance from the start, each weight's by its Fisher information."""

    use: Literal["ewc"] = "ewc"
    weight: float = Field(
        1.0,
        gt=0,
        description="strength; 1 counts what the old rows' mean loss per token would rise by as much as new loss",
    )
    samples: int = Field(64, ge=1, description="rows that the Fisher information is estimated on, drawn by `seed`")
    sources: tuple[str, ...] = Field(
        (), description="data sources whose rows stand for what must be kept, such as a general set; empty: all rows"
    )
    seed: int = Field(0, ge=0, description="which rows are drawn")


@dataclass(frozen=True)
class Importance:
    """For each trained parameter: itself, what it began as, and its Fisher information (float32)."""

    parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def prepare(model: torch.nn.Module, samples: Sequence[Sample], params: Ewc) -> Importance:
    """The diagonal of the empirical Fisher information of the trained parameters, where training begins.

    One sample at a time, dropout off: the squared gradient of its answers' log-likelihood, summed, divided by the
    number of learned tokens; so it has the unit of the loss, and weight 1 is the second-order model of the old loss.
    Takes as many forward and backward passes as samples, and memory for two copies of the trained parameters.
    Of LoRA it weighs the adapters' own numbers: B begins at 0, so A has no information yet and B is held.
    """
    import torch

    from inhouse.train.apart import row_losses

    trained = [p for p in model.parameters() if p.requires_grad]
    fisher = [torch.zeros_like(p, dtype=torch.float32) for p in trained]
    chosen = random.Random(params.seed).sample(list(samples), min(params.samples, len(samples)))
    tokens, training = 0, model.training
    model.eval()
    for sample in chosen:
        losses, counts = row_losses(model, [sample], pad=0)
        found = torch.autograd.grad(losses.sum(), trained, allow_unused=True)
        tokens += int(counts.sum())
        for total, gradient in zip(fisher, found, strict=True):
            if gradient is not None:  # an expert that no token of this sample went to
                total.addcmul_(gradient.float(), gradient.float())
    model.train(training)
    return Importance([(p, p.detach().clone(), f.div_(tokens)) for p, f in zip(trained, fisher, strict=True)])


def term(model: torch.nn.Module, state: Importance, params: Ewc) -> torch.Tensor:
    """weight / 2 times the sum of Fisher times squared distance; float32, a single number."""
    import torch

    squares = [(fisher * (now.float() - start.float()).square()).sum() for now, start, fisher in state.parts]
    return params.weight / 2 * torch.stack(squares).sum()
