"""Share of rows whose label is right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from inhouse.core.params import Params
from inhouse.evaluate.predictions import Predictions
from inhouse.evaluate.stats import Measure


class AccuracyParams(Params):
    """Share of rows whose label is right; an answer that names no label is wrong."""

    use: Literal["accuracy"] = "accuracy"


def measure(predictions: Predictions, params: AccuracyParams) -> dict[str, Measure]:
    """`accuracy` of free answers and `constrained_accuracy` of the likeliest labels, where they were asked for."""
    rows, gold = predictions.rows, predictions.gold
    found = {}
    if predictions.labels and all(row.text is not None for row in rows):
        found["accuracy"] = _accuracy(gold, [row.predicted for row in rows])
    if predictions.labels and all(row.chosen is not None for row in rows):
        found["constrained_accuracy"] = _accuracy(gold, [row.chosen for row in rows])
    return found


def _accuracy(gold: Sequence[str], said: Sequence[str | None]) -> Measure:
    import numpy as np
    from sklearn.metrics import accuracy_score

    right = np.array([[float(a == b)] for a, b in zip(gold, said, strict=True)])
    value = float(accuracy_score(gold, ["" if label is None else label for label in said]))
    return Measure(value, right, _mean, share=True)


def _mean(columns: Any) -> Any:
    return columns[..., 0].mean(axis=-1)
