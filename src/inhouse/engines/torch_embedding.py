"""Texts as vectors: the mean of a model's last states, for encoders and for models that write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOGETHER = 16


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str, special: bool) -> list[int]:
    """Token ids; with `special`, special tokens are parsed and added.

    It sets how the tokenizer reads texts: threads that read at the same time need one each.
    """
    ids: list[int] = tokenizer(text, add_special_tokens=special, split_special_tokens=not special)["input_ids"]
    return ids


def mean_vectors(model: PreTrainedModel, ids: Sequence[Sequence[int]]) -> list[list[float]]:
    """One unit vector a text: the mean over its tokens of the states that the last layer leaves (no output head)."""
    import torch

    body: Any = _body(model)
    order = sorted(range(len(ids)), key=lambda place: len(ids[place]))
    found: list[list[float]] = [[] for _ in ids]
    for start in range(0, len(order), TOGETHER):
        places = order[start : start + TOGETHER]
        width = len(ids[places[-1]])
        told = torch.zeros((len(places), width), dtype=torch.long)
        mask = torch.zeros_like(told)
        for row, place in enumerate(places):
            told[row, : len(ids[place])] = torch.tensor(list(ids[place]))
            mask[row, : len(ids[place])] = 1
        told, mask = told.to(model.device), mask.to(model.device)
        with torch.inference_mode():
            states = body(input_ids=told, attention_mask=mask).last_hidden_state.float()
        means = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        for place, vector in zip(places, torch.nn.functional.normalize(means, dim=-1).tolist(), strict=True):
            found[place] = vector
    return found


def _body(model: Any) -> Any:
    """The layers without the output head, adapters (PEFT wraps the model) included."""
    from peft import PeftModel

    return (model.get_base_model() if isinstance(model, PeftModel) else model).base_model
