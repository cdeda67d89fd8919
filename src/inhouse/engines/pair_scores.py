"""How well a document fits a query, by a cross-encoder: a classifier of BERT's kind that reads both at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from inhouse.core.serving import PairScores

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOGETHER = 16
MOST_LABELS = 2
# Names of labels that say a pair fits, as models of search, inference and paraphrase have them.
FITS = frozenset({"relevant", "entailment", "entailed", "duplicate", "paraphrase", "equivalent", "similar", "match"})
# What sentence-transformers writes into the settings of its cross-encoders, now and before its version 4.
MARKS = ("sentence_transformers", "sbert_ce_default_activation_function")


def scores_pairs(model: PreTrainedModel) -> bool:
    """Whether it is an encoder whose output says how well a pair fits."""
    from inhouse.engines.classifier import reads_both_ways

    return reads_both_ways(model) and fitting_label(model) is not None


def fitting_label(model: PreTrainedModel) -> int | None:
    """The place of the output that says how well a pair fits: the only one, or of two labels the one that says so.

    None for more, and for two that are of no pairs, as of sentiment or spam: what they say is no relevance.
    """
    config = model.config
    if config.num_labels == 1:
        return 0
    if config.num_labels > MOST_LABELS:
        return None
    fits = [place for place in range(2) if str(config.id2label[place]).strip().lower() in FITS]
    if len(fits) == 1:
        return fits[0]
    return 1 if any(mark in config.to_dict() for mark in MARKS) else None


def pair_scores(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]], most: int
) -> PairScores:
    """A score between 0 and 1 for each (query, document): the sigmoid of one output, else the fitting label's share.

    A pair of more than `most` tokens is cut, token by token from the longer of its two texts, and told.
    """
    rows = [_read(tokenizer, pair) for pair in pairs]
    cut = tuple(place for place, row in enumerate(rows) if len(row["input_ids"]) > most)
    for place in cut:
        rows[place] = _read(tokenizer, pairs[place], most)
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]["input_ids"]))
    found = [0.0] * len(rows)
    for start in range(0, len(order), TOGETHER):
        places = order[start : start + TOGETHER]
        for place, score in zip(places, _scores(model, tokenizer, [rows[p] for p in places]), strict=True):
            found[place] = score
    return PairScores(found, sum(len(row["input_ids"]) for row in rows), cut)


def _read(tokenizer: PreTrainedTokenizerBase, pair: tuple[str, str], most: int | None = None) -> dict[str, list[int]]:
    """Ids and kinds of a pair. Control tokens that a text spells out stay text: none can end the query early."""
    told: Any = tokenizer(
        *pair,
        split_special_tokens=True,
        truncation="longest_first" if most else False,
        max_length=most,
        return_attention_mask=False,
        verbose=False,
    )
    return {name: list(told[name]) for name in ("input_ids", "token_type_ids") if name in told}


def _scores(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, list[int]]]
) -> list[float]:
    import torch

    width = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": tokenizer.pad_token_id or 0, "token_type_ids": 0}
    told = {name: _padded([row[name] for row in rows], width, fill[name], model) for name in rows[0]}
    mask = _padded([[1] * len(row["input_ids"]) for row in rows], width, 0, model)
    with torch.inference_mode():
        found: Any = model(**told, attention_mask=mask)
        logits: torch.Tensor = found.logits.float()
        fits = fitting_label(model) or 0
        # Of two labels, the softmax of one is the sigmoid of how far it is ahead.
        ahead = logits[:, 0] if logits.shape[1] == 1 else logits[:, fits] - logits[:, 1 - fits]
        scores: list[float] = ahead.sigmoid().tolist()
    return scores


def _padded(rows: Sequence[list[int]], width: int, fill: int, model: PreTrainedModel) -> torch.Tensor:
    import torch

    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], device=model.device)
