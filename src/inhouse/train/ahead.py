"""What a step reads before it learns: a figure that is one of the whole step, however the step is cut into parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from inhouse.train.learning import Learning
from inhouse.train.spans import Sample

if TYPE_CHECKING:
    import torch

    from inhouse.train.batches import Reading

AHEAD = "ahead"  # where a batch's inputs hold it for the objective's loss


def read_ahead(
    model: torch.nn.Module, parts: Sequence[Sequence[Sample]], learning: Learning, reading: tuple[Reading, int]
) -> torch.Tensor | None:
    """How much likelier the samples that the objective reads ahead have become (sum), and how many they are: (2,).

    Without gradients and without dropout, so that neither the order nor the size of `parts` matters. The model must be
    set up to read (`step.reading`); `reading` is how it reads, and the padding id. A part without samples is read all
    the same, as a filler: of several ranks all must run the model equally often. None: the objective reads nothing.
    """
    import torch

    from inhouse.train.batches import collate
    from inhouse.train.preference import sums

    how, pad = reading
    device = next(model.parameters()).device
    found, training = torch.zeros(2, dtype=torch.float64, device=device), model.training
    model.eval()
    try:
        for part in parts:
            wanted = learning.ahead(part)
            if wanted is None:
                return None
            inputs = collate([sample for sample, _ in wanted], pad, how, Learning())
            placed = {name: value.to(device) if name != "batch" else value for name, value in inputs.items()}
            with torch.no_grad():
                likely, _ = sums(model, placed)
            if wanted:
                before = torch.tensor([value for _, value in wanted], device=device)
                found += torch.stack([(likely - before).double().sum(), found.new_tensor(float(len(wanted)))])
    finally:
        model.train(training)
    return found


def mean_of(found: torch.Tensor | None) -> torch.Tensor | None:
    """The mean out of sum and count; 0 of none."""
    return None if found is None else (found[0] / found[1].clamp(min=1)).float()
