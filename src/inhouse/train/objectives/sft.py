"""Supervised fine-tuning: learn the answers of conversations, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from inhouse.core.params import Params
from inhouse.core.rows import Row
from inhouse.train.learning import Coding, Loss, Start, every_token, told_too_long
from inhouse.train.spans import Sample
from inhouse.train.tokens import Samples, encode_rows

if TYPE_CHECKING:
    import torch

UNIT = 1
counted = every_token


class Sft(Params):
    """Learn to write the answers; questions, tool results and system turns are read and not learned."""

    use: Literal["sft"] = "sft"


def complete(params: Params, rows: Sequence[Row]) -> Params:
    """The settings as they are."""
    return params


def labels(params: Params) -> tuple[str, ...]:
    """None: the model writes."""
    return ()


def encode(rows: Sequence[Row], coding: Coding, params: Sft) -> Samples:
    """Conversations through the model's template; plain documents as they are."""
    disliked = sum(row.desirable is False for row in rows)
    if disliked:
        coding.events.note("train.disliked", rows=disliked)
    return conversations(rows, coding)


def conversations(rows: Sequence[Row], coding: Coding) -> Samples:
    """All of them, whatever is known of their answers."""
    samples = encode_rows(rows, coding.tokenizer, coding.ends, coding.limit, coding.events)
    return told_too_long(samples, len(rows), coding)


def prepare(params: Sft, start: Start) -> None:
    """Nothing need be known before."""


def ahead(samples: Sequence[Sample], state: Any) -> None:
    """Nothing is read before a step."""


def loss(model: torch.nn.Module, inputs: dict[str, Any], params: Sft, state: None) -> Loss:
    """Cross entropy of the learned tokens."""
    from inhouse.train.step import read

    outputs = read(model, inputs)
    return Loss(outputs.losses().sum(), outputs.correct())
