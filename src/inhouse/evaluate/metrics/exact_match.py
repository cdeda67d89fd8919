"""Share of free answers that are the wanted answer."""

from __future__ import annotations

from typing import Any, Literal

from inhouse.core.params import Params
from inhouse.evaluate.predictions import Predictions, same_answer
from inhouse.evaluate.stats import Measure


class ExactMatchParams(Params):
    """Share of free answers equal to the wanted answer: spaces at both ends are ignored, calls compared as values."""

    use: Literal["exact_match"] = "exact_match"


def measure(predictions: Predictions, params: ExactMatchParams) -> dict[str, Measure]:
    """`exact_match`, where the model wrote freely."""
    import numpy as np

    rows = predictions.rows
    if any(row.text is None for row in rows):
        return {}
    equal = np.array([[float(same_answer(row.gold, row.text or ""))] for row in rows])
    return {"exact_match": Measure(float(equal.mean()), equal, _mean, share=True)}


def _mean(columns: Any) -> Any:
    return columns[..., 0].mean(axis=-1)
