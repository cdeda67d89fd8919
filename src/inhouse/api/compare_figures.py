"""Figures of a comparison: loss, accuracy and F1 on the same rows, each over one seed or several."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from statistics import NormalDist
from typing import Any

from inhouse.core.artifact import Frozen
from inhouse.core.gate import Figure
from inhouse.evaluate.stats import DIGITS, BootstrapParams, Measure, difference, figure, resample
from inhouse.train.row_quality import RowFound

Runs = Sequence[Sequence[RowFound]]  # one sequence of rows for each seed
BOOTSTRAP = BootstrapParams()
MANY, SOME_ROWS = BootstrapParams(samples=10_000), 100  # of fewer rows the percentiles that count lie far out
LEAST_CLAIMED = 20  # rows held back; of fewer, resampling cannot tell how seldom the seldom rows are


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
    return Quality(**{name: _difference(one[name], two[name]) for name in one if name in two})


def _difference(candidate: Measure, reference: Measure) -> Figure | None:
    """The paired difference, its interval wide enough for few rows too; of a single row there is none.

    The percentile bootstrap of few rows is too narrow: by sqrt((n - 1) / n), and by the normal distribution's tails
    where Student's belong. Percentiles further out mend both (Hesterberg 2015, What Teachers Should Know About the
    Bootstrap, `expanded percentile interval`).
    """
    import numpy as np

    rows = len(candidate.columns)
    plain = difference(candidate, reference, BOOTSTRAP)
    if plain is None or rows == 1:
        return plain and plain.model_copy(update={"low": None, "high": None})
    drawn = resample(candidate, reference, MANY if rows < SOME_ROWS else BOOTSTRAP)
    outside = 100 * NormalDist().cdf(-sqrt(rows / (rows - 1)) * student(rows - 1))
    finite = drawn[np.isfinite(drawn)]
    if not len(finite):
        return plain
    low, high = np.percentile(finite, [outside, 100 - outside])
    return plain.model_copy(update={"low": round(float(low), DIGITS), "high": round(float(high), DIGITS)})


def student(freedom: int) -> float:
    """The point below which 97.5 % of Student's distribution lie, to 1 % from 3 degrees of freedom on.

    Cornish and Fisher's expansion: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5.
    """
    z = NormalDist().inv_cdf(0.975)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def measures(runs: Runs) -> dict[str, Measure]:
    """Loss, and accuracy where rows are right or wrong, with labels macro-F1 too; in a form that can be resampled."""
    runs = [run for run in runs if run]
    if not runs:
        return {}
    found = {"loss": _loss(runs)}
    if all(row.label is not None for run in runs for row in run):
        found |= {"accuracy": _accuracy(runs), "macro_f1": _macro_f1(runs)}
    elif all(row.right is not None for run in runs for row in run):
        found["accuracy"] = _accuracy(runs)
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

    right = [
        [row.guess == row.label if row.right is None else row.right for row in one] for one in zip(*runs, strict=True)
    ]
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
