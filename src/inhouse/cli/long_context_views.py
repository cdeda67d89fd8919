"""How the reading of long texts looks on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from inhouse.cli.compare_views import interval
from inhouse.cli.table import Mark, escape, table
from inhouse.core.messages import text

if TYPE_CHECKING:
    from rich.console import Console

    from inhouse.evaluate.long_context.result import Group, KeptMemory, LongContext, Trial

NONE = "–"
BARS = "▁▂▃▄▅▆▇█"


def long_context(result: LongContext, console: Console) -> None:
    """Needles and perplexity by strategy and length, curves of the longest, memory, and what was not run."""
    measured = [group for group in result.groups if group.refused is None]
    _groups(measured, console)
    longest = max((group.length for group in measured), default=0)
    _curves([group for group in measured if group.length == longest], longest, console)
    _memory(result.memory, console)
    for group in result.groups:
        if group.refused is not None:
            said = text("cell.long.refused", strategy=group.strategy, length=f"{group.length:,}", reason=group.refused)
            console.print(f"[yellow]![/] {escape(said)}")
        elif group.skipped:
            said = text("cell.long.skipped", strategy=group.strategy, length=f"{group.length:,}", count=group.skipped)
            console.print(f"[yellow]![/] {escape(said)}")
    if result.leaked:
        console.print(f"[red]✗[/] {escape(text('cell.long.leaked'))}")
    said = text(
        "cell.long.notes", name=result.name, native=f"{result.native:,}", choices=result.choices,
        factor=f"{result.factor:g}", window=f"{result.window:,}", device=result.device, dtype=result.dtype,
        text=text("cell.long.python") if result.text == "python" else result.text,
    )  # fmt: skip
    console.print(f"[dim]{escape(said)}[/]")
    console.print(text("cell.long.left", folder=result.folder), soft_wrap=True)


def _groups(groups: Sequence[Group], console: Console) -> None:
    """Numbers found, then perplexity: two tables, for one would not go beside itself on a narrow terminal."""
    columns = (text("cell.long.strategy"), f">{text('cell.long.length')}")
    rows: list[tuple[str, ...]] = [
        (
            group.strategy, f"{group.length:,}", _needles(group.needles), _share(group.needles, "exact"),
            _share(group.needles, "likeliest"), _control(group.control),
        )
        for group in groups
    ]  # fmt: skip
    names = ("found", "exact", "likeliest", "control")
    table(console, *columns, *(text(f"cell.long.{name}") for name in names), rows=rows)
    beside: list[tuple[str, ...]] = [
        (
            group.strategy, f"{group.length:,}", interval(group.perplexity), interval(group.versus_full, signed=True),
            f"{group.seconds:.1f} s" if group.seconds else NONE,
        )
        for group in groups
    ]  # fmt: skip
    shown = (f">{text(f'cell.long.{name}')}" for name in ("perplexity", "versus", "seconds"))
    table(console, *columns, *shown, rows=beside)


def _needles(found: Sequence[Trial]) -> Mark:
    """One sign for each needle, from the beginning of the text to its end."""
    return Mark("".join("[green]●[/]" if one.exact else "[yellow]◐[/]" if one.likeliest else "[red]○[/]"
                        for one in found) or NONE)  # fmt: skip


def _share(found: Sequence[Trial], name: str) -> str:
    return f"{sum(getattr(one, name) for one in found)}/{len(found)}" if found else NONE


def _control(control: Trial | None) -> Mark:
    if control is None:
        return Mark(NONE)
    return Mark(f"[red]{text('cell.long.found_nothing_hidden')}[/]" if control.exact else text("cell.long.not_found"))


def _curves(groups: Sequence[Group], length: int, console: Console) -> None:
    """Perplexity from the beginning of the longest texts to their end; all lines share one scale."""
    import math

    values = [math.log(point.perplexity.value) for group in groups for point in group.curve]
    if not values:
        return
    low, span = min(values), (max(values) - min(values)) or 1.0
    console.print(text("cell.long.curve", length=f"{length:,}"))
    for group in groups:
        logs = [math.log(point.perplexity.value) for point in group.curve]
        bars = "".join(BARS[round((value - low) / span * (len(BARS) - 1))] for value in logs)
        ends = f"{group.curve[0].perplexity.value:.3g} → {group.curve[-1].perplexity.value:.3g}"
        console.print(f"{group.strategy:>20} │{bars}│ {ends}", markup=False, no_wrap=True, overflow="ellipsis")
    console.print()


def _memory(found: Sequence[KeptMemory], console: Console) -> None:
    rows = [
        (
            one.strategy, f"{one.predicted / 1024:.2f}",
            NONE if one.measured is None else f"{one.measured / 1024:.2f}",
            NONE if one.length is None else f"{one.length:,}",
        )
        for one in found
    ]  # fmt: skip
    names = ("predicted", "measured", "at")
    table(console, text("cell.long.memory"), *(f">{text(f'cell.long.{name}')}" for name in names), rows=rows)


VIEWS: dict[str, Callable[[Any, Console], None]] = {"long_context": long_context}
