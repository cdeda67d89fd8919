"""Classification: a head above the model names one of the labels, in place of an answer in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from inhouse.core.errors import UserError
from inhouse.core.messages import text as say
from inhouse.core.params import Params
from inhouse.core.rows import Message, Row
from inhouse.train.learning import Coding, Loss, each_example, told_too_long
from inhouse.train.objectives.sft import ahead, prepare
from inhouse.train.spans import Coder, Sample, Talk
from inhouse.train.tokens import Counts, Samples, broken_texts, tell_refused

if TYPE_CHECKING:
    import torch

    from inhouse.train.batches import Batch

__all__ = ["UNIT", "Classify", "ahead", "complete", "counted", "encode", "labels", "loss", "prepare"]

UNIT = 1
counted = each_example(UNIT)


class Classify(Params):
    """Name one of several labels through a head above the model: an encoder such as BERT, or a decoder.

    Encoders read the question's text as it is; decoders read what their template makes of it, and are pooled at the
    last token. The result answers with a label and writes nothing else.
    """

    use: Literal["classify"] = "classify"
    labels: Literal["auto"] | tuple[str, ...] = Field(
        "auto", description="the labels in the order of the head's outputs; auto: those of the training rows, sorted"
    )

    @field_validator("labels")
    @classmethod
    def _several(cls, labels: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not isinstance(labels, str) and (len(labels) < 2 or len(set(labels)) < len(labels)):
            raise ValueError(say("problem.two_labels"))
        return labels


def complete(params: Classify, rows: Sequence[Row]) -> Classify:
    """The settings with the labels named. Raises train.no_label, train.one_label."""
    if params.labels != "auto":
        return params
    found = sorted({label_of(row) for row in rows})
    if len(found) < 2:
        raise UserError("train.one_label", rows=len(rows), label=found[0])
    return params.model_copy(update={"labels": tuple(found)})


def labels(params: Classify) -> tuple[str, ...]:
    """What the head's outputs stand for; `complete` has named them."""
    return () if isinstance(params.labels, str) else params.labels


def label_of(row: Row) -> str:
    """A row's label, else the text of its answer. Raises train.no_label."""
    found = row.label if row.label is not None else row.answer.strip()
    if not found or row.messages[-1].role != "assistant":
        raise UserError("train.no_label", id=row.id, source=row.source, offset=row.offset)
    return found


def encode(rows: Sequence[Row], coding: Coding, params: Classify) -> Samples:
    """The question of every row, marked with its label's place; nothing is learned token by token.

    Too long questions are left out, or cut (over_length: truncate) where no template surrounds them; so are those
    with a text that cannot be made plain. Raises train.no_label, train.unknown_label, train.no_question,
    train.classify_cut, train.all_refused, train.all_dropped.
    """
    rule, longest = coding.limit.over_length, coding.limit.longest
    if rule == "split" or (rule == "truncate" and not coding.plain):
        raise UserError("train.classify_cut", rule=rule)
    marks = [_mark(row, labels(params)) for row in rows]
    broken = _broken(rows, coding)
    places, refused = list(broken), [row.id for place, row in enumerate(rows) if place not in broken]
    read, used = _read([rows[place].prompt for place in places], coding)
    kept, origins = [], []
    for place, ids in zip(places, used, strict=True):
        if len(ids) <= longest:
            kept.append(Sample(tuple(ids), (False,) * len(ids), marks[place]))
            origins.append(place)
    least, over = min(map(len, read)), sum(len(ids) > longest for ids in read)
    if not kept:
        raise UserError("train.all_dropped", rows=len(places), max_length=longest, least=least)
    counts = Counts(
        rows=len(rows),
        samples=len(kept),
        tokens=sum(len(sample.ids) for sample in kept),
        longest=max(len(sample.ids) for sample in kept),
        shortest=least,
        over_length=over,
        dropped=len(places) - len(kept),
        truncated=over if rule == "truncate" else 0,
        control_texts=sum(broken.values()),
        refused=len(refused),
    )
    _tell(counts, refused, coding)
    return told_too_long(Samples(kept, counts.dropped, origins, counts, tuple(refused)), len(rows), coding)


def _broken(rows: Sequence[Row], coding: Coding) -> dict[int, int]:
    """By the places of rows that can be read: how many of their texts hold control tokens, which are broken.

    Raises train.all_refused where none can be.
    """
    coder = Coder(coding.tokenizer, coding.ends)
    counted = {place: broken_texts(coder, Talk(row.prompt, ())) for place, row in enumerate(rows)}
    found = {place: texts for place, texts in counted.items() if texts is not None}
    if not found:
        raise UserError("train.all_refused", rows=len(rows))
    return found


def _read(prompts: Sequence[Sequence[Message]], coding: Coding) -> tuple[list[list[int]], list[list[int]]]:
    """Ids of whole questions, and of what is read of them: under over_length: truncate no more than may be."""
    from inhouse.engines.classifier import question_ids

    longest = coding.limit.longest
    whole = question_ids(coding.tokenizer, prompts, coding.plain)
    if coding.limit.over_length != "truncate" or all(len(ids) <= longest for ids in whole):
        return whole, whole
    return whole, question_ids(coding.tokenizer, prompts, True, longest)


def _tell(counts: Counts, refused: Sequence[str], coding: Coding) -> None:
    events, rows = coding.events, counts.rows
    if counts.truncated:
        events.note(
            "train.truncated", truncated=counts.truncated, rows=rows, max_length=coding.limit.longest, answers=0
        )
    if counts.control_texts:
        events.note("train.control_tokens", texts=counts.control_texts, rows=rows)
    tell_refused(refused, rows, events)


def _mark(row: Row, known: Sequence[str]) -> int:
    label = label_of(row)
    if not any(turn.content for turn in row.prompt):
        raise UserError("train.no_question", id=row.id, source=row.source, offset=row.offset)
    if label not in known:
        told = ", ".join(known[:12]) + (" …" if len(known) > 12 else "")
        raise UserError("train.unknown_label", label=label, id=row.id, source=row.source, offset=row.offset, known=told)
    return known.index(label)


def loss(model: torch.nn.Module, inputs: dict[str, Any], params: Classify, state: None) -> Loss:
    """Cross entropy of the labels; a text is right when its own label is the likeliest."""
    import torch
    from torch.nn.functional import cross_entropy

    logits = class_logits(model, inputs)
    marks = torch.tensor([sample.mark for sample in inputs["batch"].samples], device=logits.device)
    return Loss(cross_entropy(logits, marks, reduction="sum"), (logits.detach().argmax(-1) == marks).sum())


def class_logits(model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    """Logits (B, labels) float32 of the samples of a batch that `collate` made."""
    import torch

    batch: Batch = inputs["batch"]
    ids: torch.Tensor = inputs["input_ids"]
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=batch.halved):
        if batch.packed is None:
            found: Any = model(input_ids=ids, attention_mask=inputs["attention_mask"])
            logits: torch.Tensor = found.logits
        else:
            logits = _packed(model, ids, batch)
    return logits.float()


def _packed(model: torch.nn.Module, ids: torch.Tensor, batch: Batch) -> torch.Tensor:
    """A decoder over a packed row; its head at the last token of every sample."""
    import torch

    from inhouse.engines.classifier import head_of_decoder
    from inhouse.train import attention
    from inhouse.train.segments import layout
    from inhouse.train.step import unwrapped

    packed, inner = batch.packed, unwrapped(model)
    head = head_of_decoder(inner)
    assert packed is not None and head is not None  # step.reading_of: packs only where there is one
    attention.use_layout(layout(packed, ids.device))
    positions = torch.tensor([packed.positions], device=ids.device)
    hidden = inner.base_model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state[0]
    logits: torch.Tensor = head(hidden[torch.tensor(packed.lasts, device=ids.device)])
    return logits
