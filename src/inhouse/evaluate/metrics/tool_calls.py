"""Share of rows with tools whose calls are the wanted ones."""

from __future__ import annotations

from typing import Any, Literal

from inhouse.core.params import Params
from inhouse.core.tool_words import read_calls
from inhouse.evaluate.predictions import Predictions, same_calls
from inhouse.evaluate.stats import Measure


class ToolCallsParams(Params):
    """Share of rows with tools where the model calls what is wanted, nothing where nothing is: names and arguments.

    Arguments are compared as JSON values, calls without regard to their order. `tool_names` looks at the names alone.
    """

    use: Literal["tool_calls"] = "tool_calls"


def measure(predictions: Predictions, params: ToolCallsParams) -> dict[str, Measure]:
    """`tool_calls` and `tool_names` over the rows that offer tools or want a call, where the model wrote freely."""
    import numpy as np

    pairs = [(row.gold, row.text) for row in predictions.rows if row.tools]
    if not pairs or any(text is None for _, text in pairs):
        return {}
    found = [(read_calls(gold), read_calls(text or "")) for gold, text in pairs]
    same = {
        "tool_calls": [same_calls(wanted, made) for wanted, made in found],
        "tool_names": [
            sorted(name for name, _ in wanted) == sorted(name for name, _ in made) for wanted, made in found
        ],
    }
    columns = {name: np.array(values, dtype=np.float64)[:, None] for name, values in same.items()}
    return {name: Measure(float(right.mean()), right, _mean, share=True) for name, right in columns.items()}


def _mean(columns: Any) -> Any:
    return columns[..., 0].mean(axis=-1)
