"""What a slice of the rows does: trainings with it and without, measured on the same rows held back."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from inhouse.api.arms import CompareRequest, Comparison, Held, Outcome, Turn, dumped, open_comparison
from inhouse.api.compare_figures import Quality, apart, quality
from inhouse.core.artifact import Frozen
from inhouse.core.errors import UserError
from inhouse.core.rows import Row
from inhouse.core.run import Events
from inhouse.train.compare import Arm
from inhouse.train.curve import nested_part
from inhouse.train.row_quality import RowFound

COLUMNS = ("source", "label", "file", "parent")


class AblationRequest(CompareRequest):
    """Which rows are left out, and how often it is repeated."""

    minutes: float = Field(60, gt=0, le=7 * 24 * 60, description="no training begins that would not end within these")
    slice: tuple[str, ...] = Field(
        min_length=1,
        description="rows to leave out: source=NAME, label=NAME, file=NAME; parent=* for augmented ones",
    )
    seeds: int = Field(1, ge=1, le=20, description="trainings with and without, each pair with another seed")
    control: bool = Field(False, description="also train without as many random rows: are these rows special?")


class SliceLine(Frozen):
    """What a slice of the rows does. Differences are with it minus without it, on the same rows held back."""

    slice: str
    rows: int = Field(description="rows of the slice among those to learn")
    without: Quality = Quality()
    difference: Quality = Quality()
    inside: Quality = Field(Quality(), description="the difference on held-out rows of the slice")
    outside: Quality = Field(Quality(), description="the difference on the other held-out rows")
    random: Quality = Field(Quality(), description="without as many random rows, minus without the slice")
    same_sign: int = Field(0, description="seeds whose difference of the loss has the sign of the whole")
    refused: str | None = None


class Ablation(Frozen):
    """Training with and without slices of the rows."""

    whole: Quality = Field(description="trained on all rows")
    lines: tuple[SliceLine, ...]
    seeds: int
    epochs: float | None = Field(description="passes over the rows, equal for all; None: equal steps (max_steps)")
    held: Held
    kept: int


def ablation(request: AblationRequest, events: Events) -> Ablation:
    """Train with and without a slice of the rows, and measure both on the same rows held back.

    Raises compare.few_rows, compare.slice_unknown, compare.slice_empty, and what keeps the base from being trained.
    """
    bench = open_comparison(request, events, "bench ablation")
    parts = {name: _slice(name, bench.train) for name in dict.fromkeys(request.slice)}
    seeds = [bench.training.seed + number for number in range(request.seeds)]
    variants = {"": bench.train}
    for name, chosen in parts.items():
        variants[f"without {name}"] = [row for row in bench.train if row.id not in chosen]
        if request.control:
            left = len(bench.train) - len(chosen)
            variants[f"random {name}"] = nested_part(bench.train, left, bench.training.seed)
    found = _trained(bench, variants, seeds)
    if (reason := _refused(found[""])) is not None:
        raise UserError("compare.cannot", reason=reason)
    lines = tuple(_slice_line(name, bench, len(chosen), found) for name, chosen in parts.items())
    params = bench.training.params
    return Ablation(
        whole=quality(_runs(found[""])), lines=lines, seeds=len(seeds), held=bench.about, kept=bench.kept,
        epochs=None if params.max_steps else params.num_train_epochs,
    )  # fmt: skip


def _trained(bench: Comparison, variants: dict[str, list[Row]], seeds: Sequence[int]) -> dict[str, list[Outcome]]:
    """Every variant with every seed."""
    params = dumped(bench.training.params)
    jobs = [(name, rows, seed) for name, rows in variants.items() for seed in seeds]
    found: dict[str, list[Outcome]] = {name: [] for name in variants}
    for number, (name, rows, seed) in enumerate(jobs, 1):
        left = sum(len(other) for _, other, _ in jobs[number - 1 :])
        arm = Arm(name=name or "all_rows", params=params, seed=seed)
        found[name].append(bench.measure(arm, rows, Turn(number, len(jobs), left)))
    return found


def _slice(name: str, rows: Sequence[Row]) -> frozenset[str]:
    """The ids of a slice's rows."""
    column, _, value = name.partition("=")
    if column not in COLUMNS or not value:
        raise UserError("compare.slice_unknown", slice=name)
    chosen = frozenset(row.id for row in rows if in_slice(row, name))
    if not chosen or len(chosen) == len(rows):
        known = sorted({str(getattr(row, column)) for row in rows})[:10]
        raise UserError("compare.slice_empty", slice=name, found=len(chosen), rows=len(rows), known=", ".join(known))
    return chosen


def in_slice(row: Row, name: str) -> bool:
    """Whether a row belongs to `column=value`; `*` is any value."""
    column, _, value = name.partition("=")
    own = getattr(row, column)
    return bool(own) if value == "*" else own == value


def _refused(outcomes: Sequence[Outcome]) -> str | None:
    return next((outcome.refused.message for outcome in outcomes if outcome.refused), None)


def _runs(outcomes: Sequence[Outcome]) -> list[tuple[RowFound, ...]]:
    return [outcome.measured.rows for outcome in outcomes if outcome.measured]


def _slice_line(name: str, bench: Comparison, rows: int, found: dict[str, list[Outcome]]) -> SliceLine:
    if (reason := _refused(found[f"without {name}"])) is not None:
        return SliceLine(slice=name, rows=rows, refused=reason)
    whole, without = _runs(found[""]), _runs(found[f"without {name}"])
    inside = {row.id for row in bench.held if in_slice(row, name)}
    difference = apart(whole, without)
    signs = [apart([one], [two]).loss for one, two in zip(whole, without, strict=True)]
    sign = difference.loss.value if difference.loss else 0.0
    random = found.get(f"random {name}")
    return SliceLine(
        slice=name,
        rows=rows,
        without=quality(without),
        difference=difference,
        inside=apart(_only(whole, inside, True), _only(without, inside, True)),
        outside=apart(_only(whole, inside, False), _only(without, inside, False)),
        random=Quality() if random is None or _refused(random) else apart(_runs(random), without),
        same_sign=sum(1 for one in signs if one is not None and one.value * sign > 0),
    )


def _only(runs: Sequence[Sequence[RowFound]], ids: set[str], inside: bool) -> list[list[RowFound]]:
    return [[row for row in run if (row.id in ids) == inside] for run in runs]
