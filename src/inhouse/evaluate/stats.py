"""Intervals: Wilson for shares, the percentile bootstrap for everything else, paired for differences."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field

from inhouse.core.agreement import wilson
from inhouse.core.gate import Figure
from inhouse.core.params import Params

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

BLOCK = 2_000_000  # drawn row numbers held at a time: 16 MB
DIGITS = 6


class BootstrapParams(Params):
    """How 95 % intervals are found by resampling the rows."""

    samples: int = Field(1000, ge=100, le=100_000, description="resamples of the rows")
    seed: int = Field(0, ge=0, description="seed of the resampling")


@dataclass(frozen=True)
class Measure:
    """A number over rows, in a form that can be resampled.

    `columns` has one line per row, shape (rows, c); `statistic` maps (..., rows, c) to (...), so that every
    resample is computed in one call. `share` says that the value is successes / rows.
    """

    value: float
    columns: Floats
    statistic: Callable[[Any], Any]
    share: bool = False
    unit: str = ""


def figure(measure: Measure, bootstrap: BootstrapParams) -> Figure | None:
    """The value with its 95 % interval; None when it is not a finite number (a gate then finds it missing)."""
    rows = len(measure.columns)
    if not math.isfinite(measure.value):
        return None
    if measure.share:
        low, high = wilson(round(measure.value * rows), rows)
    else:
        low, high = percentile_interval(resample(measure, None, bootstrap))
    return _figure(measure.value, low, high, rows, measure.unit)


def difference(candidate: Measure, reference: Measure, bootstrap: BootstrapParams) -> Figure | None:
    """Candidate minus reference on the same rows, with the paired bootstrap's 95 % interval.

    Each resample draws rows once and scores both models on them, so that what is hard for both cancels out
    (Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapters 13 and 16).
    """
    value = candidate.value - reference.value
    if not math.isfinite(value):
        return None
    low, high = percentile_interval(resample(candidate, reference, bootstrap))
    return _figure(value, low, high, len(candidate.columns), candidate.unit)


def resample(measure: Measure, minus: Measure | None, bootstrap: BootstrapParams) -> Floats:
    """The statistic (or its difference to `minus` on the same rows) of every resample, shape (samples,)."""
    import numpy as np

    values = []
    for drawn in _draws(len(measure.columns), bootstrap):
        value = measure.statistic(measure.columns[drawn])
        values.append(value if minus is None else value - minus.statistic(minus.columns[drawn]))
    return np.concatenate(values)


def percentile_interval(values: Floats) -> tuple[float, float]:
    """The 2.5 % and 97.5 % points; resamples without a finite value are left out."""
    import numpy as np

    finite = values[np.isfinite(values)]
    if not len(finite):
        return math.nan, math.nan
    low, high = np.percentile(finite, [2.5, 97.5])
    return float(low), float(high)


def _draws(rows: int, bootstrap: BootstrapParams) -> Iterator[Ints]:
    import numpy as np

    generator = np.random.default_rng(bootstrap.seed)
    size = max(1, BLOCK // rows)
    for start in range(0, bootstrap.samples, size):
        yield generator.integers(0, rows, (min(size, bootstrap.samples - start), rows))


def _figure(value: float, low: float, high: float, rows: int, unit: str) -> Figure:
    ends = [round(end, DIGITS) if math.isfinite(end) else None for end in (low, high)]
    return Figure(value=round(value, DIGITS), low=ends[0], high=ends[1], n=rows, unit=unit)
