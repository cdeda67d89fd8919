"""How well a model does on single rows held back: the loss of each, and which label it finds the likeliest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import Field

from inhouse.core.artifact import Frozen
from inhouse.core.protocols import Input
from inhouse.core.rows import Row
from inhouse.core.run import Events
from inhouse.dataset import read_rows
from inhouse.train.learning import Learning
from inhouse.train.params import TrainParams
from inhouse.train.tokens import encode
from inhouse.train.virtual import virtual_ids

if TYPE_CHECKING:
    from inhouse.train.setup import Prepared
    from inhouse.train.spans import Sample

MOST_LABELS = 64  # of more, scoring each for every row would take longer than training
BY_EXAMPLE = ("dpo", "orpo", "kto", "classify")  # a row is right or wrong as a whole, not token by token
READ_TOGETHER = 64  # answers; what stands before those of a row is read once


class RowFound(Frozen):
    """One row: its summed loss, what the loss is averaged over, and its label beside the likeliest one."""

    id: str
    loss: float
    count: int = Field(description="learned tokens, or what else the objective counts")
    label: str | None = None
    guess: str | None = None
    right: bool | None = Field(None, description="of an objective that has no labels: whether the row is told rightly")


def row_qualities(ready: Prepared, params: TrainParams, dataset: Input, events: Events) -> list[RowFound]:
    """Every row of the dataset's valid part that is not too long, under the model as it is now.

    `params` must hold the valid part back (eval_steps set, no eval_share).
    """
    import torch

    from inhouse.train.step import reading, reading_of

    rows, model = list(read_rows(dataset.path, "valid")), ready.loaded.model
    answers = answers_of([*ready.texts.rows, *rows]) if params.objective.model_dump()["use"] == "sft" else {}
    labelled = bool(answers) and all(row.label is not None for row in rows)
    found: list[RowFound] = []
    training = model.training
    model.eval()
    with torch.no_grad(), reading(model, reading_of(model, ready.reading)):
        made = _by_label(ready, params, rows, answers) if labelled else _by_loss(ready, rows)
        for number, one in enumerate(made, 1):
            found.append(one)
            events.progress(number, len(rows), "rows", step="held_out")
    model.train(training)
    return found


def answers_of(rows: Sequence[Row]) -> dict[str, str]:
    """The answer of each label; none where rows of a label differ in it, or where there is nothing to choose."""
    found: dict[str, str] = {}
    for row in rows:
        if row.label is not None and found.setdefault(row.label, row.answer) != row.answer:
            return {}
    return dict(sorted(found.items())) if 2 <= len(found) <= MOST_LABELS else {}


def _by_label(
    ready: Prepared, params: TrainParams, rows: Sequence[Row], answers: Mapping[str, str]
) -> Iterator[RowFound]:
    """The likelihood of every label's answer behind each row's question."""
    group = max(1, READ_TOGETHER // len(answers))
    for at in range(0, len(rows), group):
        yield from _labelled(ready, params, rows[at : at + group], answers)


def _labelled(
    ready: Prepared, params: TrainParams, rows: Sequence[Row], answers: Mapping[str, str]
) -> Iterator[RowFound]:
    """The same for rows that are read together."""
    names, tokenizer, ends = list(answers), ready.texts.tokenizer, ready.texts.ends
    coded = [[encode(_answered(row, told), tokenizer, ends, params.turns) for told in answers.values()] for row in rows]
    fitting = [place for place, made in enumerate(coded) if max(len(one.ids) for one in made) <= params.max_length]
    likely, lengths = _sums(ready, [one for place in fitting for one in coded[place]])
    for number, place in enumerate(fitting):
        row, first = rows[place], number * len(names)
        own = first + names.index(row.label or "")
        best = max(range(first, first + len(names)), key=likely.__getitem__)
        yield RowFound(
            id=row.id, loss=-likely[own], count=round(lengths[own]), label=row.label, guess=names[best - first]
        )


def _answered(row: Row, answer: str) -> Row:
    last = row.messages[-1].model_copy(update={"content": answer})
    return row.model_copy(update={"messages": [*row.messages[:-1], last]})


def _sums(ready: Prepared, samples: Sequence[Sample]) -> tuple[list[float], list[float]]:
    """Log-likelihood of each sample's learned tokens, and how many these are."""
    from inhouse.train.preference import sums

    likely: list[float] = []
    lengths: list[float] = []
    for at in range(0, len(samples), READ_TOGETHER):
        part = _with_virtual(ready, samples[at : at + READ_TOGETHER])
        one, two = sums(ready.loaded.model, _inputs(ready, part, Learning()))
        likely += one.tolist()
        lengths += two.tolist()
    return likely, lengths


def _by_loss(ready: Prepared, rows: Sequence[Row]) -> Iterator[RowFound]:
    """The objective's own loss of each row; a row that gives several examples counts with all of them.

    The samples are those that were prepared: objectives know some of them by what the untrained model made of them.
    """
    from inhouse.train.ahead import AHEAD, mean_of, read_ahead
    from inhouse.train.step import reading_of

    unit, model, samples = ready.learning.unit, ready.loaded.model, ready.texts.valid
    parts = [samples[at : at + unit] for at in range(0, len(samples), unit)]
    how = (reading_of(model, ready.reading), ready.texts.pad)
    ahead = mean_of(read_ahead(model, parts, ready.learning, how))
    found: dict[int, list[tuple[float, int, int]]] = {}
    for part, place in zip(parts, ready.texts.valid_origins[::unit], strict=True):
        inputs = _inputs(ready, part, ready.learning)
        loss, correct = ready.learning.loss(model, inputs | {AHEAD: ahead})
        found.setdefault(place, []).append((float(loss), int((inputs["labels"] >= 0).sum()), int(correct)))
    each = ready.learning.params.model_dump()["use"] in BY_EXAMPLE
    for place, made in sorted(found.items()):
        losses, counts, right = zip(*made, strict=True)
        known = sum(right) == sum(counts) if each else None
        yield RowFound(id=rows[place].id, loss=sum(losses), count=sum(counts), right=known)


def _with_virtual(ready: Prepared, samples: Sequence[Sample]) -> list[Sample]:
    """The samples behind the virtual tokens as they are trained; `virtual.with_virtual` would set them anew."""
    ids = virtual_ids(ready.loaded.model)
    unlearned = (False,) * len(ids)
    return [replace(sample, ids=ids + sample.ids, learned=unlearned + sample.learned) for sample in samples]


def _inputs(ready: Prepared, samples: Sequence[Sample], learning: Learning) -> dict[str, Any]:
    from inhouse.train.batches import collate
    from inhouse.train.step import reading_of

    model = ready.loaded.model
    device = next(model.parameters()).device
    made = collate(samples, ready.texts.pad, reading_of(model, ready.reading), learning)
    return {name: value if name == "batch" else value.to(device) for name, value in made.items()}
