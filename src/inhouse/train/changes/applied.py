"""Apply a project's changes to the model, in order.

A change is a file here, or a third party's entry point `inhouse.change`, with a frozen Params class and two functions:
`apply(model, params, events) -> model`, called once before anything is attached or trained, and
`facts(model, params) -> dict`, what the record of the tuned model says of it. A change may register hooks, replace
modules or add layers; parameters that it adds are trained by method full only (PEFT freezes what is not its own), and
a penalty may read them. What it alters beyond training must be part of the saved weights and settings as transformers
reads them: the stage compares the saved model with the one in memory and fails where they differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from inhouse.core.params import Params, deciding
from inhouse.core.plugins import operator_of
from inhouse.core.run import Events

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def apply_changes(
    model: PreTrainedModel, changes: Sequence[Params], events: Events
) -> tuple[PreTrainedModel, list[dict[str, Any]]]:
    """The changed model, and one mapping per change for the record: its settings and what it found."""
    said = []
    for params in changes:
        operator = operator_of("change", params)
        model = operator.function("apply")(model, params, events)
        said.append({**deciding(params), **operator.function("facts")(model, params)})
    return model, said
