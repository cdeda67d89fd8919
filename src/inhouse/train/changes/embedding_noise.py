"""Gaussian noise on the input embeddings while training."""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from inhouse.core.params import Params
from inhouse.core.run import Events

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

ROWS = 8192  # tokens whose embeddings are looked at together when their spread is measured


class EmbeddingNoise(Params):
    """Add noise to every token's embedding while training, so that small changes of the input matter less."""

    use: Literal["embedding_noise"] = "embedding_noise"
    sigma: float = Field(
        0.01,
        gt=0,
        description="standard deviation of the noise (mean 0); the run tells its ratio to the embeddings' own",
    )
    per_length: bool = Field(
        False, description="divide sigma by the root of tokens times width, the scale of NEFTune (arXiv:2310.05914)"
    )


def apply(model: PreTrainedModel, params: EmbeddingNoise, events: Events) -> PreTrainedModel:
    """Noise is drawn anew at every step from torch's generator, which checkpoints restore; none in evaluation.

    A prompt beginning that several samples share is read once, so its noise is one draw for all of them.
    """
    import torch

    def disturb(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return output
        scale = params.sigma
        if params.per_length:
            scale /= (output.shape[-2] * output.shape[-1]) ** 0.5
        return output + torch.randn_like(output) * scale

    model.get_input_embeddings().register_forward_hook(disturb)
    found = facts(model, params)
    events.note("train.embedding_noise", sigma=params.sigma, spread=found["embedding_std"], ratio=found["noise_ratio"])
    return model


def facts(model: PreTrainedModel, params: EmbeddingNoise) -> dict[str, float]:
    """The embeddings' own standard deviation, as the model reads them, and how large the noise is beside it."""
    spread = _spread(model.get_input_embeddings())
    return {"embedding_std": float(f"{spread:.4g}"), "noise_ratio": float(f"{params.sigma / max(spread, 1e-12):.4g}")}


def _spread(embeddings: Any) -> float:
    """Standard deviation over all tokens' embeddings; some thousand tokens at a time, so that no copy is made."""
    import torch

    count = embeddings.weight.shape[0]
    first = second = 0.0
    training = embeddings.training
    embeddings.eval()
    with torch.inference_mode():
        for ids in torch.arange(count, device=embeddings.weight.device).split(ROWS):
            values = embeddings(ids).double()
            first, second = first + float(values.sum()), second + float(values.square().sum())
            size = values.shape[-1]
    embeddings.train(training)
    mean = first / (count * size)
    return sqrt(max(0.0, second / (count * size) - mean**2))
