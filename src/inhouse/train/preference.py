"""What objectives on better and worse answers share: pairs as samples, and how likely whole answers are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from inhouse.core.rows import Row
from inhouse.train.learning import Coding, Learning, Start, told_too_long
from inhouse.train.spans import Sample
from inhouse.train.tokens import Counts, Samples, encode_pairs

if TYPE_CHECKING:
    import torch

TOGETHER = 8  # samples read together for the reference; neighbours share their prompt


def encode_preferences(rows: Sequence[Row], coding: Coding) -> Samples:
    """Chosen and rejected of every row, one after the other. Raises what `tokens.encode_pairs` raises."""
    found = encode_pairs(rows, coding.tokenizer, coding.ends, coding.limit, coding.events)
    kept = [sample for pair in found.kept for sample in (pair.chosen, pair.rejected)]
    counts = Counts(
        rows=len(rows),
        samples=len(kept),
        tokens=sum(len(sample.ids) for sample in kept),
        learned=sum(sum(sample.learned) for sample in kept),
        longest=max(len(sample.ids) for sample in kept),
        over_length=found.too_long,
        dropped=found.too_long,
        refused=len(found.refused),
    )
    origins = [origin for origin in found.origins for _ in range(2)]
    return told_too_long(Samples(kept, found.too_long, origins, counts), len(rows), coding)


def sums(model: torch.nn.Module, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-likelihood of each sample's learned tokens (B), float32, and how many these are (B)."""
    import torch

    from inhouse.train.step import read

    outputs = read(model, inputs)
    zeros = torch.zeros(len(inputs["batch"].samples), device=outputs.owners.device)
    lengths = zeros.index_add(0, outputs.owners, torch.ones_like(outputs.owners, dtype=zeros.dtype))
    return zeros.index_add(0, outputs.owners, -outputs.losses()), lengths


def before(inputs: dict[str, Any], reference: dict[Sample, float], like: torch.Tensor) -> torch.Tensor:
    """The reference's log-likelihood (B) of the samples of a batch; zeros for a batch that only fills a step up."""
    import torch

    batch = inputs["batch"]
    return torch.tensor([reference[s] if batch.own else 0.0 for s in batch.samples], device=like.device)


def reference_of(start: Start) -> dict[Sample, float]:
    """The log-likelihood of every sample's answer under the model as it is now."""
    import torch

    from inhouse.train import team
    from inhouse.train.batches import collate
    from inhouse.train.step import reading, reading_of

    how, plain = reading_of(start.model, start.reading), Learning()
    device = next(start.model.parameters()).device
    found: dict[Sample, float] = {}
    training = start.model.training
    start.model.eval()
    with team.apart(), torch.no_grad(), reading(start.model, how):
        for at in range(0, len(start.samples), TOGETHER):
            start.events.progress(at, len(start.samples), "reference")
            samples = start.samples[at : at + TOGETHER]
            inputs = collate(samples, start.pad, how, plain)
            placed = {name: value.to(device) if name != "batch" else value for name, value in inputs.items()}
            found.update(zip(samples, sums(start.model, placed)[0].tolist(), strict=True))
    start.model.train(training)
    return found
