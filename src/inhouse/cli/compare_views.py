"""How comparisons of trainings look on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from inhouse.cli.table import escape, table
from inhouse.cli.train_views import PARTS
from inhouse.core.messages import text

if TYPE_CHECKING:
    from rich.console import Console

    from inhouse.api.ablation import Ablation, SliceLine
    from inhouse.api.arms import Held
    from inhouse.api.claims import Claim
    from inhouse.api.compare import BenchTrain, MethodLine
    from inhouse.api.learning_curve import CurvePoint, LearningCurve
    from inhouse.core.gate import Figure
    from inhouse.train.curve import Power

NONE = "–"
BAR = 40
FINE = 0.1  # bounds below are shown to three digits
NARROW = 0.03  # and those that lie closer together


def bench_train(result: BenchTrain, console: Console) -> None:
    """Methods side by side: speed and share, quality, memory; then what articles claim."""
    trained = [line for line in result.lines if line.split is not None]
    _resources(trained, console)
    _quality([line for line in result.lines if line.refused is None], console)
    _memory(trained, console)
    _claims(result.claims, console)
    for line in result.lines:
        if line.refused is not None:
            console.print(
                f"[yellow]![/] {escape(text('cell.compare.refused', name=name_of(line.name), reason=line.refused))}"
            )
        elif line.ended in ("out_of_time", "diverged"):
            ended = text(f"cell.compare.{line.ended}", name=name_of(line.name), steps=line.steps, planned=line.planned)
            console.print(f"[yellow]![/] {escape(ended)}")
    said = text("cell.compare.bench_notes", device=result.machine.device, cores=result.machine.cores,
                precision=result.precision, looked=result.looked_at)  # fmt: skip
    _dim(said, console)
    _about(result.held, result.kept, console)


def name_of(name: str) -> str:
    """What a training is called."""
    return text(f"cell.compare.{name}") if name in NAMED else name


NAMED = ("base", "full", "prompt", "lora", "qlora", "lora_checkpointed")


def _resources(lines: Sequence[MethodLine], console: Console) -> None:
    rows = [
        (
            name_of(line.name), _share(line), f"{line.learning_rate:.1e}", f"{line.steps}", _number(line.tokens_per_s),
            _number(line.tokens_per_cpu_s), f"{line.train_s:.1f} s",
        )
        for line in lines
    ]  # fmt: skip
    names = ("trained", "rate", "steps", "tokens_s", "tokens_cpu_s", "train_s")
    table(console, text("cell.compare.method"), *(f">{text(f'cell.compare.{name}')}" for name in names), rows=rows)


def _share(line: MethodLine) -> str:
    """`4.88 M (3.5%)`: short, so that the table fits a narrow terminal; --json has every digit."""
    if not line.trainable or not line.total:
        return NONE
    count = line.trainable
    shown = f"{count / 1e6:.3g} M" if count >= 1e6 else f"{count / 1e3:.3g} K" if count >= 1e4 else f"{count:,}"
    return f"{shown} ({100 * line.trainable / line.total:.3g}%)"


def _quality(lines: Sequence[MethodLine], console: Console) -> None:
    labelled = any(line.quality.accuracy for line in lines)
    rows = []
    for line in lines:
        if line.quality.loss is None:
            continue
        reached = NONE if line.split is None else text("cell.compare.never")
        reached = f"{line.reached_s:.1f} s" if line.reached_s is not None else reached
        right = [interval(line.quality.accuracy, percent=True)] if labelled else []
        versus = NONE if line.name == "lora" else interval(line.versus_lora.loss, signed=True)
        rows.append((name_of(line.name), interval(line.quality.loss), versus, *right, reached))
    names = ("loss", "versus", *(["accuracy"] if labelled else []), "reached")
    table(console, text("cell.compare.method"), *(f">{text(f'cell.compare.{name}')}" for name in names), rows=rows)


def _memory(lines: Sequence[MethodLine], console: Console) -> None:
    splits = [line.split for line in lines if line.split is not None]
    rows = [(text(f"cell.train.{part}"), *(_bytes(getattr(split, part)) for split in splits)) for part in PARTS]
    table(console, text("cell.train.memory"), *(f">{name_of(line.name)}" for line in lines), rows=rows)


def _claims(found: Sequence[Claim], console: Console) -> None:
    rows = [(text(f"cell.compare.claim.{one.about}"), _claimed(one.claimed, one), _claimed(one.here, one))
            for one in found]  # fmt: skip
    table(console, text("cell.compare.claim"), f">{text('cell.compare.claimed')}", f">{text('cell.compare.here')}",
          rows=rows)  # fmt: skip


def _claimed(value: float | None, claim: Claim) -> str:
    if value is None:
        return text("cell.compare.never") if claim.about == "hours" else NONE
    if claim.unit == "times":
        return f"{value:.2f}×"
    return f"{value:.2%}" if abs(value) < 0.1 else f"{value:.0%}"


def interval(figure: Figure | None, percent: bool = False, signed: bool = False) -> str:
    """`0.412 [0.38, 0.45]`, or `78 % [70, 86]`."""
    if figure is None:
        return NONE
    sign, factor, unit = ("+" if signed else ""), (100 if percent else 1), (" %" if percent else "")
    unit = " pp" if percent and signed else unit  # percentage points
    shown = f"{figure.value * factor:{sign}.{0 if percent else 3}f}{unit}"
    if figure.low is None or figure.high is None:
        return shown
    digits = 0 if percent else 2 if max(abs(figure.low), abs(figure.high)) >= FINE else 3
    if not percent and digits == 2 and figure.high - figure.low < NARROW:
        digits = 3  # two digits would show both bounds alike
    return f"{shown} [{figure.low * factor:{sign}.{digits}f}, {figure.high * factor:{sign}.{digits}f}]"


def learning_curve(result: LearningCurve, console: Console) -> None:
    """Figures by rows, the chart, and what more rows would bring."""
    measured = [point for point in result.points if point.refused is None]
    labelled = any(point.quality.accuracy for point in measured)
    several = result.seeds > 1
    rows = [_point(point, labelled, several) for point in measured]
    names = ["steps", "loss"] + ["accuracy"] * labelled + ["spread"] * several + ["train_s"]
    table(console, f">{text('cell.compare.rows')}", *(f">{text(f'cell.compare.{name}')}" for name in names), rows=rows)
    for line in chart(measured):
        console.print(line, markup=False, no_wrap=True, overflow="ellipsis")
    console.print()
    console.print(escape(_forecast(result.power, measured)))
    for point in result.points:
        if point.refused is not None:
            said = text("cell.compare.refused", name=f"n={point.rows}", reason=point.refused)
            console.print(f"[yellow]![/] {escape(said)}")
    _dim(_budget(result), console)
    _about(result.held, result.kept, console)


def _point(point: CurvePoint, labelled: bool, several: bool) -> tuple[str, ...]:
    spread = f"{min(point.by_seed):.3f}–{max(point.by_seed):.3f}" if len(point.by_seed) > 1 else NONE
    return (
        f"{point.rows:,}", f"{point.steps}", interval(point.quality.loss),
        *([interval(point.quality.accuracy, percent=True)] if labelled else []),
        *([spread] if several else []), f"{point.train_s:.1f} s",
    )  # fmt: skip


def chart(points: Sequence[CurvePoint]) -> Iterator[str]:
    """A line for each size: where the loss lies between 0 and the highest, and its interval."""
    losses = [(point.rows, loss) for point in points if (loss := point.quality.loss)]
    most = max((loss.high or loss.value for _, loss in losses), default=0.0)
    if most <= 0:
        return
    for rows, loss in losses:
        at, low, high = (
            min(BAR - 1, int((value or 0.0) / most * (BAR - 1))) for value in (loss.value, loss.low, loss.high)
        )
        line = "".join("●" if place == at else "─" if low <= place <= high else " " for place in range(BAR))
        yield f"{rows:>8,} │{line}│ {loss.value:.3f}"
    yield f"{'':>8} 0{'':<{BAR - 6}}{most:>6.2f}"


def _forecast(power: Power | None, points: Sequence[CurvePoint]) -> str:
    """What twice and four times the rows would come to, or why nobody can say."""
    sizes = len([point for point in points if point.rows])
    if power is None:
        return text("cell.compare.few_sizes") if sizes < 3 else text("cell.compare.no_power")
    told = text("cell.compare.join").join(
        text("cell.compare.forecast", rows=f"{rows:,}", loss=f"{loss:.3f}") for rows, loss in power.forecast
    )
    floor = f"{power.floor:.3f} + " if power.floor else ""
    law = f"{floor}{power.scale:.3g} · n^-{power.fall:.2f}"
    return text("cell.compare.power", law=law, sizes=sizes, told=told)


def _budget(result: LearningCurve | Ablation) -> str:
    if result.epochs is None:
        return text("cell.compare.same_steps", seeds=result.seeds)
    return text("cell.compare.same_epochs", epochs=f"{result.epochs:g}", seeds=result.seeds)


def ablation(result: Ablation, console: Console) -> None:
    """What each slice does, as differences with their intervals, and in a sentence."""
    for name in ("loss", "accuracy"):
        if getattr(result.whole, name) is not None:
            _differences(result, name, console)
    for line in result.lines:
        for said in _told(line, result.seeds):
            console.print(said)
    _dim(f"{_budget(result)} {text('cell.compare.ablation_notes')}", console)
    _about(result.held, result.kept, console)


def _differences(result: Ablation, name: str, console: Console) -> None:
    """One figure with all rows and without each slice."""
    percent = name == "accuracy"
    rows = [(text("cell.compare.all_rows"), "", interval(getattr(result.whole, name), percent), NONE)]
    for line in result.lines:
        if line.refused is None:
            without = interval(getattr(line.without, name), percent)
            difference = interval(getattr(line.difference, name), percent, signed=True)
            rows.append((text("cell.compare.without", slice=line.slice), f"{line.rows:,}", without, difference))
    names = ("slice_rows", name, "with")
    table(console, text("cell.compare.trained_on"), *(f">{text(f'cell.compare.{one}')}" for one in names), rows=rows)


def _told(line: SliceLine, seeds: int) -> Iterator[str]:
    from inhouse.api.compare_figures import LEAST_CLAIMED

    if line.refused is not None:
        yield f"[yellow]![/] {escape(text('cell.compare.refused', name=line.slice, reason=line.refused))}"
        return
    loss = line.difference.loss
    if loss is None or loss.low is None or loss.high is None:
        return
    if loss.n is not None and loss.n < LEAST_CLAIMED:
        yield f"[bold]{escape(text('cell.compare.few_held', slice=line.slice, rows=loss.n, least=LEAST_CLAIMED))}[/]"
    else:
        verdict = "helps" if loss.high < 0 else "harms" if loss.low > 0 else "unclear"
        yield f"[bold]{escape(text(f'cell.compare.{verdict}', slice=line.slice, rows=loss.n))}[/]"
    if (right := line.difference.accuracy) and _beyond_chance(right):
        yield f"  {escape(text('cell.compare.moves', found=interval(right, percent=True, signed=True)))}"
    if seeds > 1:
        yield f"  {text('cell.compare.same_sign', count=line.same_sign, seeds=seeds)}"
    for name in ("inside", "outside"):
        figure = getattr(line, name).loss
        if figure is not None and line.inside.loss is not None:
            yield f"  {escape(text(f'cell.compare.{name}', rows=figure.n, found=_of_part(figure)))}"
    if line.random.loss is not None:
        found = interval(line.random.loss, signed=True)
        yield f"  {escape(text('cell.compare.random', rows=line.rows, found=found))}"


def _beyond_chance(figure: Figure) -> bool:
    from inhouse.api.compare_figures import LEAST_CLAIMED

    known = figure.low is not None and figure.high is not None and (figure.n or 0) >= LEAST_CLAIMED
    return known and not (figure.low or 0.0) <= 0 <= (figure.high or 0.0)


def _of_part(figure: Figure) -> str:
    """A difference on a part of the rows; two or three rows have no interval that means anything."""
    from inhouse.api.compare_figures import LEAST_CLAIMED

    if (figure.n or 0) >= LEAST_CLAIMED:
        return interval(figure, signed=True)
    return text("cell.compare.too_few", found=f"{figure.value:+.3f}")


def _about(held: Held, kept: int, console: Console) -> None:
    _dim(text(f"cell.compare.held_{held.part}", rows=held.rows, train=held.train), console)
    if kept:
        _dim(text("cell.compare.kept", count=kept), console)


def _dim(said: str, console: Console) -> None:
    console.print(f"[dim]{escape(said)}[/]")


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.2f}"


def _bytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


VIEWS: dict[str, Callable[[Any, Console], None]] = {
    "bench_train": bench_train, "learning_curve": learning_curve, "ablation": ablation,
}  # fmt: skip
