"""Figures of predictions: the values of metrics and intervals, and differences between two models."""

from __future__ import annotations

from collections.abc import Sequence

from inhouse.core.gate import Figure
from inhouse.core.params import Params
from inhouse.core.plugins import operator_of
from inhouse.evaluate.predictions import Predictions
from inhouse.evaluate.stats import BootstrapParams, Measure, difference, figure


def measures(predictions: Predictions, metrics: Sequence[Params]) -> dict[str, Measure]:
    """Every measure that these metrics find in the predictions, by figure name."""
    found: dict[str, Measure] = {}
    for params in metrics:
        found |= operator_of("metric", params).function("measure")(predictions, params)
    return found


def figures(found: dict[str, Measure], bootstrap: BootstrapParams) -> dict[str, Figure]:
    """Value and interval of each measure."""
    made = {name: figure(measure, bootstrap) for name, measure in found.items()}
    return {name: value for name, value in made.items() if value is not None}


def differences(
    candidate: dict[str, Measure], reference: dict[str, Measure], bootstrap: BootstrapParams
) -> dict[str, Figure]:
    """Paired difference of each measure that both have. The rows must be the same, in the same order."""
    made = {
        name: difference(measure, reference[name], bootstrap)
        for name, measure in candidate.items()
        if name in reference
    }
    return {name: value for name, value in made.items() if value is not None}
