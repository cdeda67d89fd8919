"""How the measurement of a deployment looks on a terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from inhouse.cli.table import table
from inhouse.core.messages import text

if TYPE_CHECKING:
    from rich.console import Console

    from inhouse.api.bench_serve import BenchServe, ServeLine


def bench_serve(result: BenchServe, console: Console) -> None:
    """A line for each number of clients, what streaming saves, and what the machine allows."""
    names = ("clients", "tokens_per_s", "ttft_p50", "ttft_p95", "gap_p50", "gap_p95", "whole", "share")
    columns = [f">{text(f'cell.bench_serve.{name}')}" for name in names]
    table(console, *columns, rows=[_row(line) for line in result.lines])
    first = result.lines[0]
    if first.ttft_ms_p50 is not None and first.whole_ms_p50 is not None:
        times = {"first": f"{first.ttft_ms_p50 / 1000:.2f}", "whole": f"{first.whole_ms_p50 / 1000:.2f}"}
        console.print(text("cell.bench_serve.streaming", clients=first.clients, **times))
    if failed := sum(line.failed for line in result.lines):
        console.print(f"[yellow]{text('cell.bench_serve.failed', count=failed)}[/]")
    if result.bounds is not None:
        read, flops = result.bounds.read_bytes_per_s / 1e9, result.bounds.fp32_flops_per_s / 1e9
        facts = {"read": f"{read:.1f}", "flops": f"{flops:.0f}", "threads": result.bounds.threads}
        console.print(f"[dim]{text('cell.bench_serve.bounds', **facts)}[/]")


def _row(line: ServeLine) -> tuple[str, ...]:
    times = (line.ttft_ms_p50, line.ttft_ms_p95, line.inter_token_ms_p50, line.inter_token_ms_p95, line.whole_ms_p50)
    shown = ["" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.1f}" for value in times]
    share = (
        "" if line.decode is None else f"{line.decode.share:.0%} ({text(f'cell.bench_serve.{line.decode.bound_by}')})"
    )
    return str(line.clients), f"{line.tokens_per_s:,.1f}", *shown, share


VIEWS: dict[str, Callable[[Any, Console], None]] = {"bench_serve": bench_serve}
