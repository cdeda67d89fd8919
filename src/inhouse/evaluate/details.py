"""What stands behind the figures: confusion of labels, each label's F1, wrong answers, the loss curve."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from inhouse.core.gate import Figure
from inhouse.evaluate.predictions import Prediction, Predictions, same_answer

INVALID = ""  # stands for an answer that names no label


def said(row: Prediction, mode: str) -> str | None:
    """The label that counts in this mode: the one written, or the likeliest."""
    return row.predicted if mode == "generate" else row.chosen


def confusion(predictions: Predictions, mode: str) -> dict[str, Any] | None:
    """Counts by wanted label (rows) and given label (columns); the last column counts answers that name none."""
    if not predictions.labels:
        return None
    labels = shown_labels(predictions)
    columns = [*labels, INVALID]
    counts = {label: dict.fromkeys(columns, 0) for label in labels}
    for gold, row in zip(predictions.gold, predictions.rows, strict=True):
        counts[gold][said(row, mode) or INVALID] += 1
    return {"labels": labels, "counts": [[counts[label][column] for column in columns] for label in labels]}


def shown_labels(predictions: Predictions) -> list[str]:
    """The dataset's labels in its order, then wanted ones that it does not list."""
    known = dict.fromkeys(predictions.labels)
    return list(known | dict.fromkeys(sorted(set(predictions.gold))))


def by_label(predictions: Predictions, mode: str) -> dict[str, dict[str, float]]:
    """Precision, recall and F1 of every label that the test rows hold, with their number."""
    if not predictions.labels:
        return {}
    from sklearn.metrics import precision_recall_fscore_support

    given = [said(row, mode) or INVALID for row in predictions.rows]
    labels = [label for label in shown_labels(predictions) if label in set(predictions.gold)]
    table = precision_recall_fscore_support(predictions.gold, given, labels=labels, zero_division=0)
    names = ("precision", "recall", "f1", "rows")
    return {
        label: {name: round(float(column[at]), 4) for name, column in zip(names, table, strict=True)}
        for at, label in enumerate(labels)
    }


def wrong_answers(predictions: Predictions, mode: str, count: int) -> list[dict[str, Any]]:
    """A sample of wrong answers: those with the smallest ids, which are hashes and so prefer no row."""
    wrong = []
    for row in sorted(predictions.rows, key=lambda row: row.id):
        given = said(row, mode)
        right = given == row.label if row.label is not None else same_answer(row.gold, row.text or "")
        if not right:
            wrong.append((row, row.text if mode == "generate" else given))
    start = _shared_start([row.question for row in predictions.rows])
    return [
        {"id": row.id, "question": row.question[start:], "wanted": row.gold, "answer": shown}
        for row, shown in wrong[:count]
    ]


def loss_curve(facts: Mapping[str, Any]) -> list[list[float]]:
    """(step, loss) pairs of the training, where the tuned model's record has them."""
    pairs = []
    for entry in facts.get("losses") or []:
        step, loss = entry["step"], entry["loss"]
        if math.isfinite(loss):
            pairs.append([step, loss])
    return pairs


def training_figures(facts: Mapping[str, Any]) -> dict[str, Figure]:
    """What gates may ask of the training, from the tuned model's record; nothing of it depends on the clock.

    `training.loss` (the last point of the curve), `training.trainable_share`, `training.parity.…`, and whatever the
    record has under `figures`.
    """
    made = {f"training.{name}": Figure.model_validate(found) for name, found in (facts.get("figures") or {}).items()}
    if curve := loss_curve(facts):
        made["training.loss"] = Figure(value=curve[-1][1], unit="nats")
    if "trainable_share" in facts:
        made["training.trainable_share"] = Figure(value=facts["trainable_share"])
    for name, found in (facts.get("parity") or {}).items():
        if isinstance(found, int | float):
            made[f"training.parity.{name}"] = Figure(value=found)
    return made


def _shared_start(texts: list[str]) -> int:
    """Length of the instruction that all questions begin with, up to its last line break; 0 when there is none."""
    if len(texts) < 2:
        return 0
    low, high = min(texts), max(texts)
    length = next((at for at, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    return low.rfind("\n", 0, length) + 1
