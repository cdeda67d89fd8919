"""Share of free answers that name a label."""

from __future__ import annotations

from typing import Any, Literal

from inhouse.core.params import Params
from inhouse.evaluate.predictions import Predictions
from inhouse.evaluate.stats import Measure


class ValidAnswersParams(Params):
    """Share of free answers whose first line is a label and nothing else, right or wrong."""

    use: Literal["valid_answers"] = "valid_answers"


def measure(predictions: Predictions, params: ValidAnswersParams) -> dict[str, Measure]:
    """`valid_answers`, where the dataset has labels and the model wrote freely."""
    import numpy as np

    rows = predictions.rows
    if not predictions.labels or any(row.text is None for row in rows):
        return {}
    valid = np.array([[float(row.predicted is not None)] for row in rows])
    return {"valid_answers": Measure(float(valid.mean()), valid, _mean, share=True)}


def _mean(columns: Any) -> Any:
    return columns[..., 0].mean(axis=-1)
