"""Distillation: a small model learns what a larger one says, or how likely it finds every word.

Hinton et al. 2015, arXiv:1503.02531; from the teacher's texts: Kim and Rush 2016, arXiv:1606.07947.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from inhouse.core.errors import UserError
from inhouse.core.model import ModelParams
from inhouse.core.params import Needs, Params
from inhouse.core.protocols import Input, prompt_of
from inhouse.core.rows import Message, Row
from inhouse.engines.rope import longest_text
from inhouse.train.learning import Coding, Loss, Start, every_token
from inhouse.train.objectives import sft
from inhouse.train.objectives.sft import ahead, complete, labels
from inhouse.train.spans import Coder, Talk
from inhouse.train.tokens import Samples, broken_texts, tell_refused
from inhouse.train.virtual import virtual_ids

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from inhouse.engines.transformers import TransformersEngine

__all__ = ["UNIT", "Distill", "ahead", "complete", "counted", "encode", "labels", "loss", "prepare"]

UNIT = 1
counted = every_token


class Distill(Params):
    """Learn from a teacher model beside the rows' own answers."""

    use: Literal["distill"] = "distill"
    teacher: Annotated[ModelParams, Needs("teacher", "model")] = Field(description="the model that is learned from")
    signal: Literal["logits", "text"] = Field(
        "logits",
        description="logits: how likely the teacher finds every token (same vocabulary); text: the answers it writes",
    )
    temperature: float = Field(2.0, gt=0, description="softens both models' probabilities; logits only")
    alpha: float = Field(0.5, ge=0, le=1, description="weight of the teacher beside the rows' own answers; logits only")
    max_tokens: int = Field(256, ge=1, description="longest answer that the teacher writes; text only")


def encode(rows: Sequence[Row], coding: Coding, params: Distill) -> Samples:
    """The rows as they are, or with the answers that the teacher writes to their questions."""
    if params.signal != "text":
        return sft.encode(rows, coding, sft.Sft())
    from inhouse.engines.transformers import open_model

    engine = open_model(coding.inputs["teacher"])
    asked = _readable(rows, Coder(engine.tokenizer, engine.ends))
    refused = tuple(row.id for place, row in enumerate(rows) if place not in asked)
    tell_refused(refused, len(rows), coding.events)
    told = _answered(asked, coding, params, engine)
    engine.close()
    found, places = sft.encode(list(told.values()), coding, sft.Sft()), list(told)
    seen = found.counts
    counts = replace(seen, rows=seen.rows + len(refused), refused=seen.refused + len(refused))
    origins = [places[origin] for origin in found.origins]
    return replace(found, origins=origins, counts=counts, refused=(*refused, *found.refused))


def _readable(rows: Sequence[Row], coder: Coder) -> dict[int, Row]:
    """Rows by their places, less those whose question holds a text that cannot be made plain for the teacher.

    Raises train.all_refused.
    """
    found = {place: row for place, row in enumerate(rows) if broken_texts(coder, Talk(row.prompt, ())) is not None}
    if not found:
        raise UserError("train.all_refused", rows=len(rows))
    return found


def _answered(rows: Mapping[int, Row], coding: Coding, params: Distill, engine: TransformersEngine) -> dict[int, Row]:
    """Rows by their places; those whose answer the teacher did not end within `max_tokens` are left out.

    Raises train.teacher_silent.
    """
    done = 0

    def tick(count: int) -> None:
        nonlocal done
        done += count
        coding.events.progress(done, len(rows), "answers")

    answers = engine.generate([prompt_of(row) for row in rows.values()], params.max_tokens, tick)
    told = {
        place: row.model_copy(update={"messages": [*row.prompt, Message(role="assistant", content=answer.text)]})
        for (place, row), answer in zip(rows.items(), answers, strict=True)
        if answer.finish == "stop" and answer.text.strip()
    }
    if not told:
        raise UserError("train.teacher_silent", rows=len(rows), max_tokens=params.max_tokens)
    if len(told) < len(rows):
        coding.events.note("train.teacher_cut", left=len(rows) - len(told), rows=len(rows))
    return told


def prepare(params: Distill, start: Start) -> PreTrainedModel | None:
    """The teacher, in the type that training computes in.

    Raises train.teacher_vocabulary, train.teacher_prompt, train.teacher_short, train.teacher_unpacked, and what a base
    is refused for.
    """
    if params.signal == "text":
        return None
    if virtual_ids(start.model):
        raise UserError("train.teacher_prompt")
    from inhouse.engines.transformers import check_finite, facts_of, load_model
    from inhouse.train.setup import NAMES
    from inhouse.train.step import reading_of

    teacher = load_model(start.inputs["teacher"], NAMES[str(start.compute)])
    _refuse_other_words(teacher, start.inputs["teacher"], start.inputs["base"])
    name = facts_of(start.inputs["teacher"]).name
    check_finite(teacher, name)
    most, longest = longest_text(teacher.config), max((len(sample.ids) for sample in start.samples), default=0)
    if most is not None and longest > most:
        raise UserError("train.teacher_short", teacher=name, most=most, longest=longest)
    if reading_of(start.model, start.reading).packs and not reading_of(teacher, start.reading).packs:
        raise UserError("train.teacher_unpacked", teacher=name)
    return teacher.eval().requires_grad_(False).to(next(start.model.parameters()).device)


def _refuse_other_words(model: PreTrainedModel, teacher: Input, student: Input) -> None:
    from inhouse.engines.transformers import check_vocabulary, facts_of, load_tokenizer

    tokenizer = load_tokenizer(teacher)
    check_vocabulary(model, tokenizer, facts_of(teacher).name)
    if tokenizer.get_vocab() != load_tokenizer(student).get_vocab():
        raise UserError("train.teacher_vocabulary", teacher=facts_of(teacher).name, student=facts_of(student).name)


def loss(model: torch.nn.Module, inputs: dict[str, Any], params: Distill, state: PreTrainedModel | None) -> Loss:
    """alpha T² KL(teacher || student) + (1 - alpha) cross entropy, summed over the learned tokens."""
    import torch
    from torch.nn.functional import kl_div

    from inhouse.train.batches import Reading
    from inhouse.train.step import read, reading

    outputs = read(model, inputs)
    own = outputs.losses().sum()
    if state is None:
        return Loss(own, outputs.correct())
    packed = inputs["batch"].packed is not None
    with torch.no_grad(), reading(state, Reading(packed), fuse=False):
        taught = read(state, inputs).logits
    words = min(taught.shape[-1], outputs.logits.shape[-1])  # what pads an embedding to a round size is no word
    soft = kl_div(
        (outputs.logits[:, :words].float() / params.temperature).log_softmax(-1),
        (taught[:, :words].float() / params.temperature).log_softmax(-1),
        reduction="sum",
        log_target=True,
    )
    return Loss(params.alpha * params.temperature**2 * soft + (1 - params.alpha) * own, outputs.correct())
