"""Learning curves: nested random parts of the rows, and whether a power law describes what they teach."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from pydantic import Field

from inhouse.core.artifact import Frozen
from inhouse.core.rows import Row

LEAST_POINTS = 3  # two settings need a third point to be tested on
FLOOR_POINTS = 4  # from here on the loss that no amount of rows goes below is fitted too
FLOORS = 40
LEAST_FALL = 0.02  # exponents below say that nothing falls, above 2 that chance does
MOST_FALL = 2.0
BEYOND = (2, 4)  # times the largest size that was measured: further out a fit of a few points says nothing


class Power(Frozen):
    """loss = floor + scale · rows^-fall, fitted to points that it meets within their intervals."""

    floor: float
    scale: float
    fall: float
    forecast: tuple[tuple[int, float], ...] = Field(description="rows, and the loss that the curve foretells for them")

    def at(self, rows: float) -> float:
        """The loss that the curve has at so many rows."""
        return float(self.floor + self.scale * rows**-self.fall)


class Point(Frozen):
    """A measured loss with its 95 % interval."""

    rows: int
    loss: float
    low: float
    high: float


def nested_part(rows: Sequence[Row], size: int, seed: int) -> list[Row]:
    """`size` random rows in the order of the rows; a larger part of the same seed holds every smaller one."""
    order = sorted(rows, key=lambda row: hashlib.sha256(f"{seed} {row.id}".encode()).digest())
    chosen = {row.id for row in order[:size]}
    return [row for row in rows if row.id in chosen]


def fit_power(points: Sequence[Point]) -> Power | None:
    """The power law through these points, weighted by their intervals; None where it does not describe them.

    Without a floor for three points, with one from four on. It describes them when it meets every point within its
    interval, falls, and the first interval lies above the last point: a flat curve is met by anything.
    """
    if len(points) < LEAST_POINTS or any(point.loss <= 0 for point in points):
        return None
    lowest = min(point.loss for point in points)
    floors = [0.0] if len(points) < FLOOR_POINTS else [lowest * part / FLOORS for part in range(FLOORS)]
    tried = [(power, _distance(power, points)) for floor in floors if (power := _fit(points, floor)) is not None]
    if not tried:
        return None
    best = min(tried, key=lambda pair: pair[1])[0]
    meets = all(point.low <= best.at(point.rows) <= point.high for point in points)
    falls = LEAST_FALL <= best.fall <= MOST_FALL and points[0].low > points[-1].loss
    return best if meets and falls else None


def _fit(points: Sequence[Point], floor: float) -> Power | None:
    """The line through log(loss - floor) over log(rows), by weighted least squares."""
    import numpy as np

    x = np.log([point.rows for point in points])
    y = np.log([point.loss - floor for point in points])
    widths = np.array([max(point.high - point.low, 1e-9) / (point.loss - floor) for point in points])
    slope, start = np.polyfit(x, y, 1, w=1 / widths)
    largest = points[-1].rows
    made = Power(floor=floor, scale=float(np.exp(start)), fall=float(-slope), forecast=())
    return made.model_copy(update={"forecast": tuple((largest * k, made.at(largest * k)) for k in BEYOND)})


def _distance(power: Power, points: Sequence[Point]) -> float:
    """How far off the curve is, in widths of the intervals, squared."""
    return sum(((power.at(p.rows) - p.loss) / max(p.high - p.low, 1e-9)) ** 2 for p in points)
