"""What more rows would bring: trainings on growing parts of the rows, measured on the same rows held back."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from inhouse.api.arms import BASE, CompareRequest, Comparison, Held, Outcome, Turn, cannot, dumped, open_comparison
from inhouse.api.compare_figures import Quality, quality
from inhouse.core.artifact import Frozen
from inhouse.core.errors import UserError
from inhouse.core.run import Events
from inhouse.train.compare import Arm
from inhouse.train.curve import Point, Power, fit_power, nested_part
from inhouse.train.rivals import with_method


class CurveRequest(CompareRequest):
    """How many rows, and how often."""

    minutes: float = Field(60, gt=0, le=7 * 24 * 60, description="no training begins that would not end within these")
    sizes: str = Field("100,300,1000", pattern=r"^\d+(,\d+)*$", description="numbers of rows, separated by commas")
    seeds: int = Field(1, ge=1, le=20, description="trainings of each size, each on other rows")
    steps: int | None = Field(None, ge=1, description="as many optimiser steps for every size; absent: equal epochs")


class CurvePoint(Frozen):
    """What so many rows teach; 0 rows: the base as it is."""

    rows: int
    steps: int | None = None
    train_s: float | None = None
    quality: Quality = Quality()
    by_seed: tuple[float, ...] = Field((), description="the loss of each seed")
    refused: str | None = None


class LearningCurve(Frozen):
    """Figures on the same held-out rows for growing parts of the training rows."""

    points: tuple[CurvePoint, ...]
    seeds: int
    epochs: float | None = Field(description="passes over the rows, equal for all sizes; None: equal steps")
    power: Power | None = Field(description="the power law that describes the points; None: none does")
    held: Held
    kept: int


def learning_curve(request: CurveRequest, events: Events) -> LearningCurve:
    """Train on growing nested random parts of the rows, and measure each on the same rows held back.

    Raises compare.few_rows, compare.no_sizes, and what keeps the base from being trained.
    """
    bench = open_comparison(request, events, "bench learning-curve")
    sizes = _sizes(request, bench)
    params = bench.training.params.model_copy(update={"max_steps": request.steps})
    arm = Arm(name=BASE, params=dumped(params), seed=bench.training.seed)
    seeds = [bench.training.seed + number for number in range(request.seeds)]
    jobs = [(size, seed) for size in sizes for seed in seeds]
    count, total = len(jobs) + 1, sum(sizes) * len(seeds)
    plain = arm.model_copy(update={"params": dumped(with_method(params, "lora")), "steps": 0, "most_s": 0.0})
    outcomes: dict[int, list[Outcome]] = {size: [] for size in sizes}
    base = bench.measure(plain, bench.train, Turn(1, count, total))
    if base.measured is None:
        raise cannot(base)
    for number, (size, seed) in enumerate(jobs, 2):
        left = sum(other for other, _ in jobs[number - 2 :])
        one = arm.model_copy(update={"name": f"n={size}", "seed": seed})
        rows = nested_part(bench.train, size, seed)
        outcomes[size].append(bench.measure(one, rows, Turn(number, count, left)))
    points = [_point(0, [base]), *(_point(size, found) for size, found in outcomes.items())]
    return LearningCurve(
        points=tuple(points), seeds=len(seeds), epochs=None if request.steps else params.num_train_epochs,
        power=fit_power(_fitted(points)), held=bench.about, kept=bench.kept,
    )  # fmt: skip


def _sizes(request: CurveRequest, bench: Comparison) -> list[int]:
    """The sizes that there are rows for, in order; in place of those beyond, all rows."""
    asked = sorted({int(size) for size in request.sizes.split(",")} - {0})
    found = [size for size in asked if size <= len(bench.train)]
    if len(found) < len(asked):
        bench.events.note("compare.sizes_cut", largest=asked[-1], rows=len(bench.train))
        found = sorted({*found, len(bench.train)})
    if not found:
        raise UserError("compare.no_sizes", sizes=request.sizes)
    return found


def _point(size: int, outcomes: Sequence[Outcome]) -> CurvePoint:
    """The figures of a size; refused where any of its trainings was."""
    for outcome in outcomes:
        if outcome.measured is None:
            return CurvePoint(rows=size, refused=outcome.refused.message if outcome.refused else None)
    found = [outcome.measured for outcome in outcomes if outcome.measured]
    runs = [one.rows for one in found]
    losses = (quality([run]).loss for run in runs)
    return CurvePoint(
        rows=size,
        steps=found[0].steps,
        train_s=round(sum(one.train_s for one in found), 2),
        quality=quality(runs),
        by_seed=tuple(loss.value for loss in losses if loss),
    )


def _fitted(points: Sequence[CurvePoint]) -> list[Point]:
    """The points with rows and an interval."""
    return [
        Point(rows=point.rows, loss=loss.value, low=loss.low, high=loss.high)
        for point in points
        if point.rows and (loss := point.quality.loss) and loss.low is not None and loss.high is not None
    ]
