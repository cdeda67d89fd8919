"""What is learned: an objective, and what it needs to know of the model before training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from inhouse.core.params import Params
from inhouse.core.plugins import operator_of, operators
from inhouse.core.protocols import Input
from inhouse.core.rows import Row
from inhouse.core.run import Events
from inhouse.train.spans import Sample
from inhouse.train.tokens import Limit, Samples

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from inhouse.train.batches import Reading


@dataclass(frozen=True)
class Coding:
    """How rows become samples: tokenizer, end tokens, how long a sample may be, whom to tell; further inputs."""

    tokenizer: PreTrainedTokenizerBase
    ends: frozenset[int]
    limit: Limit
    events: Events
    inputs: Mapping[str, Input] = field(default_factory=dict)
    plain: bool = False  # questions are read as they are, without the template


@dataclass(frozen=True)
class Start:
    """Where training begins: the model with what is trained on it, everything it learns from, and further inputs.

    `compute` is the type that the model computes in; a second model that is only read is loaded in it. A sample may
    have `longest` tokens, virtual ones included. The last `held_out` samples are only measured on.
    """

    model: torch.nn.Module
    compute: torch.dtype
    samples: Sequence[Sample]
    reading: Reading
    pad: int
    inputs: Mapping[str, Input]
    events: Events
    longest: int
    held_out: int = 0


class Loss(NamedTuple):
    """The loss of a batch, summed over what the objective counts; and how many of these the model gets right."""

    total: torch.Tensor
    correct: torch.Tensor


def _plain() -> Params:
    return operators("objective")["sft"].params()  # type: ignore[return-value]


@dataclass(frozen=True)
class Learning:
    """An objective with its settings, and the state that its `prepare` gave."""

    params: Params = field(default_factory=_plain)
    state: Any = None

    def _function(self, name: str) -> Any:
        return operator_of("objective", self.params).function(name)

    @property
    def unit(self) -> int:
        """Samples that make one example; they stand one after the other."""
        unit: int = self._function("UNIT")
        return unit

    @property
    def labels(self) -> tuple[str, ...]:
        """What a classifier is to answer; empty for a model that writes."""
        labels: tuple[str, ...] = self._function("labels")(self.params)
        return labels

    def completed(self, rows: Sequence[Row]) -> Learning:
        """With what the rows to learn from decide, such as which labels there are."""
        return Learning(self._function("complete")(self.params, rows), self.state)

    def encode(self, rows: Sequence[Row], coding: Coding) -> Samples:
        """The samples of rows."""
        samples: Samples = self._function("encode")(rows, coding, self.params)
        return samples

    def prepared(self, start: Start) -> Learning:
        """With what the objective measures before training, such as how likely the untrained model finds an answer."""
        return Learning(self.params, self._function("prepare")(self.params, start))

    def counted(self, samples: Sequence[Sample]) -> list[int]:
        """One entry for each thing that the loss is averaged over: learned tokens, or examples."""
        counted: list[int] = self._function("counted")(samples)
        return counted

    def ahead(self, samples: Sequence[Sample]) -> list[tuple[Sample, float]] | None:
        """What a step reads of these examples before it learns (see `train.ahead`); None: this objective nothing."""
        found: list[tuple[Sample, float]] | None = self._function("ahead")(samples, self.state)
        return found

    def loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> Loss:
        """The loss of a batch."""
        found: Loss = self._function("loss")(model, inputs, self.params, self.state)
        return found


def every_token(samples: Sequence[Sample]) -> list[int]:
    """The learned tokens that something stands before."""
    return [
        token
        for sample in samples
        for token, learned in zip(sample.ids[1:], sample.learned[1:], strict=True)
        if learned
    ]


def each_example(unit: int) -> Callable[[Sequence[Sample]], list[int]]:
    """One entry for every `unit` samples."""

    def counted(samples: Sequence[Sample]) -> list[int]:
        return [0] * (len(samples) // unit)

    return counted


def told_too_long(samples: Samples, rows: int, coding: Coding) -> Samples:
    """The samples, after a note on rows that were left out."""
    if samples.too_long:
        coding.events.note("train.too_long", dropped=samples.too_long, rows=rows, max_length=coding.limit.longest)
    return samples
