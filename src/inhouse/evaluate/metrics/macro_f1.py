"""F1 of each label, averaged with equal weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from inhouse.core.params import Params
from inhouse.evaluate.predictions import Predictions
from inhouse.evaluate.stats import Measure


class MacroF1Params(Params):
    """F1 averaged over the labels that the test rows hold; an answer that names no label misses its own label."""

    use: Literal["macro_f1"] = "macro_f1"


def measure(predictions: Predictions, params: MacroF1Params) -> dict[str, Measure]:
    """`macro_f1` of free answers and `constrained_macro_f1` of the likeliest labels, where they were asked for."""
    rows, gold = predictions.rows, predictions.gold
    found = {}
    if predictions.labels and all(row.text is not None for row in rows):
        found["macro_f1"] = _macro_f1(gold, [row.predicted for row in rows])
    if predictions.labels and all(row.chosen is not None for row in rows):
        found["constrained_macro_f1"] = _macro_f1(gold, [row.chosen for row in rows])
    return found


def _macro_f1(gold: Sequence[str], said: Sequence[str | None]) -> Measure:
    import numpy as np
    from sklearn.metrics import f1_score

    labels = sorted(set(gold))
    codes = {label: code for code, label in enumerate(labels)}
    pairs = [(codes[a], -1 if b is None else codes.get(b, -1)) for a, b in zip(gold, said, strict=True)]
    columns = np.array(pairs, dtype=np.float64)
    value = f1_score(columns[:, 0], columns[:, 1], labels=list(codes.values()), average="macro", zero_division=0)

    def statistic(drawn: Any) -> Any:
        return macro_f1_of_codes(drawn[..., 0].astype(np.int64), drawn[..., 1].astype(np.int64), len(labels))

    return Measure(float(value), columns, statistic)


def macro_f1_of_codes(gold: Any, said: Any, labels: int) -> Any:
    """Macro-F1 of label codes (..., rows) from counts; a code of -1 names no label.

    F1 = 2 tp / (gold + said), 0 where both are 0, as scikit-learn's zero_division=0. One bincount over
    all resamples: calling f1_score a thousand times takes seconds, this takes milliseconds.
    """
    import numpy as np

    shape = gold.shape[:-1]
    gold, said = gold.reshape(-1, gold.shape[-1]), said.reshape(-1, said.shape[-1])
    first = np.arange(len(gold))[:, None] * labels

    def count(codes: Any, where: Any) -> Any:
        return np.bincount((first + codes)[where], minlength=len(gold) * labels).reshape(-1, labels)

    both = count(gold, gold == said) * 2
    total = count(gold, gold >= 0) + count(said, said >= 0)
    f1 = np.divide(both, total, out=np.zeros(total.shape), where=total > 0)
    return f1.mean(axis=-1).reshape(shape)
