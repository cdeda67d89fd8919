"""Prompt tuning and its kin: train a few virtual tokens that stand before every text; no weight changes.

prompt: their embeddings (Lester et al. 2021, arXiv:2104.08691). p_tuning: the same through a small network (Liu et al.
2021, arXiv:2103.10385). prefix: their keys and values in every layer (Li and Liang 2021, arXiv:2101.00190).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from inhouse.core.errors import UserError
from inhouse.core.messages import text as say
from inhouse.core.params import Params

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

BASE = "frozen"


class Prompt(Params):
    """Train virtual tokens that are put before every text. The result is an adapter that cannot be merged."""

    use: Literal["prompt"] = "prompt"
    kind: Literal["prompt", "prefix", "p_tuning"] = Field(
        "prompt", description="what is trained: embeddings; keys and values of every layer; embeddings via a network"
    )
    num_virtual_tokens: int = Field(10, ge=1, le=512, description="virtual tokens before every text")
    prompt_tuning_init_text: str | None = Field(
        None, min_length=1, description="text to begin from, repeated or cut to fit; default: tokens drawn at random"
    )
    encoder_hidden_size: int = Field(64, ge=1, description="width of p_tuning's network; it is not kept afterwards")

    @model_validator(mode="after")
    def _text_is_used(self) -> Prompt:
        if self.kind == "p_tuning" and self.prompt_tuning_init_text is not None:
            raise ValueError(say("problem.p_tuning_text"))
        return self


def attach(model: PreTrainedModel, params: Prompt) -> PreTrainedModel:
    """The model with virtual tokens of its own ids (see `train.virtual`); only these are trainable.

    They begin as tokens drawn with torch's seeded generator. Raises train.prefix_family where a model's keys and
    values come out of one matrix (GPT-2, Falcon), and train.prompt_task for a model that does not write text.
    """
    from inhouse.train.virtual import add_virtual_tokens, begin_with

    if not model.can_generate():
        raise UserError("train.prompt_task", architecture=model.config.model_type)
    if params.kind == "prefix":
        add_virtual_tokens(model, _layers(model, params.num_virtual_tokens), params.prompt_tuning_init_text)
        begin_with(model, _drawn(model, params.num_virtual_tokens))
    else:
        add_virtual_tokens(model, {"encoder": _encoder(model, params)}, params.prompt_tuning_init_text)
    return model


def _encoder(model: PreTrainedModel, params: Prompt) -> torch.nn.Module:
    """PEFT's own module that makes the virtual tokens' embeddings."""
    from peft import PromptEmbedding, PromptEncoder, PromptEncoderConfig, PromptTuningConfig

    embedding: Any = model.get_input_embeddings()
    shape = {
        "num_virtual_tokens": params.num_virtual_tokens,
        "token_dim": embedding.embedding_dim,
        "num_transformer_submodules": 1,
    }
    if params.kind == "prompt":
        made: Any = PromptEmbedding(PromptTuningConfig(prompt_tuning_init="SAMPLE_VOCAB", **shape), embedding)
        return made.float()
    config = PromptEncoderConfig(encoder_hidden_size=params.encoder_hidden_size, **shape)
    encoder: torch.nn.Module = PromptEncoder(config).float()
    return encoder


def _layers(model: PreTrainedModel, count: int) -> dict[str, torch.nn.Module]:
    """One row of keys or values per virtual token, for every layer's k_proj and v_proj."""
    import torch

    found = {
        name: module.out_features
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.rpartition(".")[2] in ("k_proj", "v_proj")
    }
    if not found:
        raise UserError("train.prefix_family", architecture=model.config.model_type)
    return {name.replace(".", "/"): torch.nn.Embedding(count, width) for name, width in found.items()}


def _drawn(model: PreTrainedModel, count: int) -> list[int]:
    import torch

    embedding: Any = model.get_input_embeddings()
    drawn: list[int] = torch.randint(0, embedding.num_embeddings, (count,)).tolist()
    return drawn
