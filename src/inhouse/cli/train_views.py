"""How plans, learning rates and searches of training look on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from inhouse.cli.table import Mark, escape, table
from inhouse.core.messages import text

if TYPE_CHECKING:
    from rich.console import Console

    from inhouse.train.memory import Split
    from inhouse.train.planning import Plan
    from inhouse.train.rates import RateFound, RatePoint
    from inhouse.train.search import Searched

PEAKS = ("memory_bytes", "gpu_bytes")  # of each process
PARTS = ("process", "weights", "gradients", "optimizer", "activations", "logits", "peak")
CHART_LINES, CHART_WIDTH = 16, 40
SHORT = {"bfloat16": "bf16", "float32": "fp32", "float16": "fp16"}  # as train.precision names them


def plan(result: Plan, console: Console) -> None:
    """What is trained, what it takes, and what it was foretold from."""
    share = f"{result.trainable_share:.2%}"
    rows = [
        (text("cell.train.method"), f"{result.method} · {SHORT.get(result.precision, result.precision)}"),
        (text("cell.train.parameters"), f"{result.parameters:,}"),
        (text("cell.train.trainable"), f"{result.trainable:,} ({share})"),
        (text("cell.train.rows"), _rows(result)),
        (text("cell.train.steps"), f"{result.steps:,}"),
        (text("cell.train.batch"), text("cell.train.batched", size=result.batch_size, parts=result.parts)),
        (
            text("cell.train.checkpointing"),
            text("cell.train.on" if result.gradient_checkpointing else "cell.train.off"),
        ),
        (text("cell.train.speed"), text("cell.train.rate", tokens=f"{result.tokens_per_s:,.0f}")),
        (text("cell.train.time"), _duration(result.run_s)),
        *_privacy(result),
    ]
    table(console, text("cell.fact"), text("cell.value"), rows=rows)
    memory({"foretold": result.split}, console)
    here = result.machine
    console.print(
        text(
            "cell.train.machine", device=here.device, memory=_gb(here.memory), available=_gb(here.available),
            saving=_gb(result.saving),
        )
    )  # fmt: skip
    seen = [result.calibration.small, result.calibration.large]
    told = [text("cell.train.reading", tokens=r.shape.tokens, seconds=f"{r.seconds:.2f}") for r in seen]
    said = text("cell.compare.join").join(told)
    console.print(f"[dim]{escape(text('cell.train.calibrated', readings=said))}[/]")
    for remark in result.remarks:
        console.print(f"[yellow]![/] {escape(text(remark.code, **remark.facts))}")


def trained(facts: dict[str, Any], console: Console) -> None:
    """The memory of a training that was run, beside what was foretold of it, and what it tells of single rows."""
    from inhouse.train.memory import Split

    known = facts.get("memory") or {}
    found = {name: Split.model_validate(known[name]) for name in ("foretold", "measured") if known.get(name)}
    if found:
        memory(found, console)
    if ranks := known.get("ranks"):
        rows = [(str(one["rank"]), *(_gb(one[name]) for name in PEAKS if name in one)) for one in ranks]
        heads = [f">{text(f'cell.train.{name}')}" for name in PEAKS if name in ranks[0]]
        table(console, text("cell.train.process_rank"), *heads, rows=rows)
    if privacy := facts.get("privacy"):
        console.print(text("cell.train.privacy", epsilon=f"{privacy['epsilon']:.3g}", delta=f"{privacy['delta']:.1e}"))


def forgotten(facts: dict[str, Any], console: Console) -> None:
    """How the loss on a general set changed, where that was measured."""
    if found := facts.get("forgetting"):
        figures = {name: f"{found[name]:.3f}" for name in ("before", "after")}
        figures |= {name: f"{found[name]:+.3f}" for name in ("change", "low", "high")}
        console.print(text("cell.train.forgetting", rows=f"{found['rows']:,}", **figures))


def memory(splits: dict[str, Split], console: Console) -> None:
    """Splits side by side; a column each, called `foretold` or `measured`."""
    rows = [(text(f"cell.train.{part}"), *(_gb(getattr(split, part)) for split in splits.values())) for part in PARTS]
    table(console, text("cell.train.memory"), *(f">{text(f'cell.train.{name}')}" for name in splits), rows=rows)


def _privacy(result: Plan) -> list[tuple[str, str]]:
    if (kept := result.privacy) is None:
        return []
    facts = {"epsilon": f"{kept.epsilon:.3g}", "delta": f"{kept.delta:.1e}", "noise": f"{kept.noise_multiplier:.3g}"}
    return [(text("cell.train.private"), text("cell.train.private_by", **facts, accountant=kept.accountant))]


def _rows(result: Plan) -> str:
    if not result.too_long:
        return f"{result.samples:,}"
    return f"{result.samples:,} ({text('cell.train.too_long', count=result.too_long)})"


def rate(result: RateFound, console: Console) -> None:
    """The curve as a chart, and the rates read off it."""
    points = result.points
    shown = (
        [points[at * len(points) // CHART_LINES] for at in range(CHART_LINES)] if len(points) > CHART_LINES else points
    )
    rows = [(f"{p.learning_rate:.1e}", f"{p.smooth:.3f}", Mark(_bar(p, points))) for p in shown]
    table(console, text("cell.train.learning_rate"), f">{text('cell.train.loss')}", "", rows=rows)
    for name in ("steepest", "tenth"):
        console.print(text(f"cell.train.{name}", rate=f"{getattr(result, name):.1e}"))
    low, high = result.usual
    console.print(text("cell.train.usual", low=f"{low:g}", high=f"{high:g}"))
    if result.blown_up:
        console.print(f"[dim]{text('cell.train.blown_up', rate=f'{points[-1].learning_rate:.1e}')}[/]")
    console.print(f"[bold]{text('cell.train.suggestion')}[/] train.learning_rate={result.suggestion:g}")


def _bar(point: RatePoint, points: Sequence[RatePoint]) -> str:
    """As long as the loss is high between the lowest of the curve and where it began."""
    low, high = min(p.smooth for p in points), max(points[0].smooth, *(p.smooth for p in points[: len(points) // 2]))
    share = (point.smooth - low) / (high - low) if high > low else 0.0
    return "█" * max(1, min(CHART_WIDTH, round(share * CHART_WIDTH)))


def searched(result: Searched, console: Console) -> None:
    """Every trial, best first, and what to type."""
    rows = [
        (
            str(t.number), f"{t.learning_rate:.2g}", "" if t.r is None else str(t.r),
            "" if t.loss is None else f"{t.loss:.4f}", text(f"cell.train.{t.state}"), f"{t.seconds:.0f} s",
        )
        for t in result.trials
    ]  # fmt: skip
    names = ("trial", "learning_rate", "rank", "valid_loss", "state", "spent")
    table(console, *(f">{text(f'cell.train.{name}')}" for name in names), rows=rows)
    console.print(f"[dim]{text('cell.train.trials', steps=result.steps, whole=result.whole, rows=result.rows)}[/]")
    if result.resumed:
        console.print(f"[dim]{text('cell.train.resumed', count=result.resumed)}[/]")
    console.print(f"[bold]{text('cell.train.copy')}[/] {' '.join(result.overrides)}")


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _duration(seconds: float) -> str:
    return " ".join(_parts(seconds))


def _parts(seconds: float) -> Iterator[str]:
    whole = round(seconds)
    if whole < 120:
        yield f"{seconds:.0f} s"
        return
    if whole >= 3600:
        yield f"{whole // 3600} h"
    yield f"{whole // 60 % 60} min"


VIEWS: dict[str, Callable[[Any, Console], None]] = {"train_plan": plan, "rate": rate, "searched": searched}
