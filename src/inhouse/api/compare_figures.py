"""Figures of a comparison: loss, accuracy and F1 on the same rows, each over one seed or several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inhouse.core.artifact import Frozen
from inhouse.core.gate import Figure
from inhouse.evaluate.stats import BootstrapParams, Measure, difference, figure
from inhouse.train.row_quality import RowFound

Runs = Sequence[Sequence[RowFound]]  # one sequence of rows for each seed
BOOTSTRAP = BootstrapParams()


class Quality(Frozen):
    """What a model does on rows held back, or how far two are apart; 95 % intervals by resampling the rows."""

    loss: Figure | None = None
    accuracy: Figure | None = None
    macro_f1: Figure | None = None


def quality(runs: Runs) -> Quality:
    """Of one training; the mean where it was run with several seeds."""
    return Quality(**{name: figure(measure, BOOTSTRAP) for name, measure in measures(runs).items()})


def apart(candidate: Runs, reference: Runs) -> Quality:
    """Candidate minus reference on the rows that both have, each resample drawing rows once for both."""
    known = {row.id for run in [*candidate, *reference] for row in run}
    for run in [*candidate, *reference]:
        known &= {row.id for row in run}
    one, two = (measures([[row for row in run if row.id in known] for run in runs]) for runs in (candidate, reference))
    return Quality(**{name: difference(one[name], two[name], BOOTSTRAP) for name in one if name in two})


def measures(runs: Runs) -> dict[str, Measure]:
    """Loss, and where rows have labels accuracy and macro-F1, in a form that can be resampled."""
    runs = [run for run in runs if run]
    if not runs:
        return {}
    found = {"loss": _loss(runs)}
    if all(row.label is not None for run in runs for row in run):
        found |= {"accuracy": _accuracy(runs), "macro_f1": _macro_f1(runs)}
    return found


def _measure(columns: Any, statistic: Any, unit: str = "", share: bool = False) -> Measure:
    return Measure(float(statistic(columns)), columns, statistic, share=share, unit=unit)


def _loss(runs: Runs) -> Measure:
    """Mean loss of what the objective counts: long rows weigh more."""
    import numpy as np

    columns = np.array([[one[0].count, *(row.loss for row in one)] for one in zip(*runs, strict=True)], dtype=float)

    def statistic(drawn: Any) -> Any:
        total = drawn.sum(axis=-2)
        return (total[..., 1:] / total[..., :1]).mean(axis=-1)

    return _measure(columns, statistic, unit="nats")


def _accuracy(runs: Runs) -> Measure:
    import numpy as np

    right = [[row.guess == row.label for row in one] for one in zip(*runs, strict=True)]
    columns = np.array(right, dtype=float)
    return _measure(columns, lambda drawn: drawn.mean(axis=(-2, -1)), share=len(runs) == 1)


def _macro_f1(runs: Runs) -> Measure:
    import numpy as np

    from inhouse.evaluate.metrics.macro_f1 import macro_f1_of_codes

    codes = {label: code for code, label in enumerate(sorted({str(row.label) for row in runs[0]}))}
    rows = [
        [codes[str(one[0].label)], *(codes.get(str(row.guess), -1) for row in one)] for one in zip(*runs, strict=True)
    ]
    columns = np.array(rows, dtype=float)

    def statistic(drawn: Any) -> Any:
        seen = drawn.astype(np.int64)
        each = [macro_f1_of_codes(seen[..., 0], seen[..., place], len(codes)) for place in range(1, seen.shape[-1])]
        return np.mean(each, axis=0)

    return _measure(columns, statistic)
