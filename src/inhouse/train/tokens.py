"""Rows as token ids through the model's own template, and which of them are learned."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from inhouse.core.errors import UserError
from inhouse.core.rows import Row
from inhouse.core.run import Events

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Turns = Literal["last", "all"]


@dataclass(frozen=True)
class Sample:
    """One conversation: token ids, and which of them are answers (1) that the model learns to write."""

    ids: tuple[int, ...]
    learned: tuple[bool, ...]


@dataclass(frozen=True)
class Samples:
    """The conversations that are trained on, and how many were longer than the limit."""

    kept: list[Sample]
    too_long: int


def encode_rows(
    rows: Iterable[Row],
    tokenizer: PreTrainedTokenizerBase,
    ends: frozenset[int],
    limit: tuple[int, Turns],
    events: Events,
) -> Samples:
    """Tokens of every row through the model's template; rows of more than `limit[0]` tokens are left out and counted.

    `limit[1]` says whose tokens are learned: the last answer (as evaluation asks for), or every assistant turn.
    Raises train.no_rows, train.all_dropped, train.no_answer.
    """
    longest, turns = limit
    found = [encode(row, tokenizer, ends, turns) for row in events.track(rows, None, "rows")]
    if not found:
        raise UserError("train.no_rows")
    kept = [sample for sample in found if len(sample.ids) <= longest]
    if not kept:
        raise UserError("train.all_dropped", rows=len(found), max_length=longest, least=min(len(s.ids) for s in found))
    return Samples(kept, len(found) - len(kept))


def encode(row: Row, tokenizer: PreTrainedTokenizerBase, ends: frozenset[int], turns: Turns = "last") -> Sample:
    """A row's token ids up to its last answer's end of turn; end-of-turn tokens are learned too."""
    from inhouse.engines.torch_chat import answer_span

    answers = [at for at, message in enumerate(row.messages) if message.role == "assistant" and at > 0]
    if not answers or answers[-1] != len(row.messages) - 1:
        raise UserError("train.no_answer", id=row.id, source=row.source, offset=row.offset)
    ids, start = answer_span(tokenizer, row.messages, answers[-1], ends)
    learned = [place >= start for place in range(len(ids))]
    if turns == "all":
        for at in answers[:-1]:
            before, begin = answer_span(tokenizer, row.messages, at, ends)
            if ids[: len(before)] != before:
                raise UserError("torch.template_shifts", turn=at + 1)
            learned[begin : len(before)] = [True] * (len(before) - begin)
    return Sample(tuple(ids), tuple(learned))
