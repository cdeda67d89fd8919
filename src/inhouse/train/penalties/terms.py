"""Add a project's penalties to the loss.

A penalty is a file here, or a third party's entry point `inhouse.penalty`, with a frozen Params class and two
functions: `prepare(model, samples, params) -> state`, called once when everything trained is attached and no checkpoint
is loaded yet, so that a resumed run prepares the same; and `term(model, state, params) -> Tensor`, one number with a
gradient. The loop takes the gradient of the sum of all terms on its own, at each micro-batch, divided by the
micro-batches of a step: so the sum joins the step's mean loss once. A term reads weights, which stand still within a
step; a loss on logits or hidden states is an objective's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inhouse.core.errors import UserError
from inhouse.core.params import Params
from inhouse.core.plugins import operator_of
from inhouse.train.tokens import Sample

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Prepared:
    """A penalty that is ready: its settings, and what it measured before training."""

    params: Params
    state: Any


def prepare_penalties(
    model: torch.nn.Module, penalties: Iterable[Params], samples_of: Callable[[tuple[str, ...]], Sequence[Sample]]
) -> list[Prepared]:
    """Measure what each penalty needs. `samples_of(sources)` gives the samples of these data sources; () means all."""
    return [
        Prepared(p, operator_of("penalty", p).function("prepare")(model, samples_of(sources_of(p)), p))
        for p in penalties
    ]


def total(model: torch.nn.Module, prepared: Sequence[Prepared]) -> torch.Tensor:
    """The sum of all terms: what joins the mean loss per learned token of a whole step once."""
    terms: list[torch.Tensor] = [
        operator_of("penalty", each.params).function("term")(model, each.state, each.params) for each in prepared
    ]
    return sum(terms[1:], terms[0])


def sources_of(params: Params) -> tuple[str, ...]:
    """The data sources that a penalty names in its setting `sources`, if it has one."""
    return tuple(params.sources) if "sources" in type(params).model_fields else ()  # type: ignore[attr-defined]


def samples_from(samples: Sequence[Sample], places: Sequence[str], sources: tuple[str, ...]) -> list[Sample]:
    """The samples of these data sources, all when none is named; `places[i]` is the source of `samples[i]`.

    Raises train.no_source where a source has no sample.
    """
    missing = [name for name in sources if name not in places]
    if missing:
        raise UserError("train.no_source", asked=", ".join(missing), known=", ".join(sorted(set(places))))
    return [sample for sample, place in zip(samples, places, strict=True) if not sources or place in sources]
