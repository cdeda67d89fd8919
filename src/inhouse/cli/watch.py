"""Show a job's events as they come: a bar with rate and ETA on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from inhouse.core.messages import known, text

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LINE_EVERY_S = 10.0
Event = dict[str, Any]


def step_name(name: str) -> str:
    """What a step is called in the user's language."""
    return text(f"step.{name}") if known(f"step.{name}") else name


@contextmanager
def watching(as_json: bool) -> Iterator[Callable[[Event], None]]:
    """A function that shows each event on stderr; with --json only a terminal sees progress."""
    if not sys.stderr.isatty():
        yield (lambda event: None) if as_json else Lines(sys.stderr)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(finished_text="[green]✓[/]"), TextColumn("{task.description}"), BarColumn(bar_width=24),
        TextColumn("{task.fields[amount]}"), TextColumn("[dim]{task.fields[detail]}"), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield Bars(progress)


class Bars:
    """One bar per step."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.tasks: dict[str, TaskID] = {}
        self.steps: dict[str, str] = {}

    def __call__(self, event: Event) -> None:
        """Show one event."""
        kind, stage = event["event"], event["stage"]
        if kind in ("stage.started", "stage.cached"):
            self.tasks[stage] = self.progress.add_task(step_name(stage), total=None, amount="", detail="")
        if kind == "note":
            self.progress.console.print(f"  {text(event['code'], **event['facts'])}", style="dim", markup=False)
        task = self.tasks.get(stage)
        if task is None:
            return
        if kind == "stage.progress":
            self._progress(task, event)
        elif kind == "stage.cached":
            self.progress.update(task, total=1, completed=1, detail=text("cli.cached", id=event["id"][:8]))
        elif kind == "stage.finished":
            amount = f"{event['bytes'] / 1e6:.1f} MB"
            self.progress.update(task, total=1, completed=1, amount=amount, detail=event["id"][:8])

    def _progress(self, task: TaskID, event: Event) -> None:
        done, total = event["done"], event["total"]
        if event.get("step", "") != self.steps.get(event["stage"], ""):  # a new pass over the data: its own rate
            self.steps[event["stage"]] = event["step"]
            self.progress.reset(task)
        self.progress.update(task, completed=done, total=total)
        unit = event["unit"]
        amount = f"{done:,.0f}/{total:,.0f} {unit}" if total else f"{done:,.0f} {unit}"
        speed = self.progress.tasks[task].speed
        detail = " · ".join([*filter(None, [event.get("step")]), *([f"{speed:,.1f} {unit}/s"] if speed else [])])
        left = self.progress.tasks[task].time_remaining
        if left:
            detail += f" · {text('cli.left', seconds=f'{left:,.0f}')}"
        if "loss" in event:
            detail += f" · loss {event['loss']:.3f}"
        self.progress.update(task, amount=amount, detail=detail)


class Lines:
    """Plain lines for logs and pipes."""

    def __init__(self, to: TextIO) -> None:
        self.to = to
        self.began: dict[str, float] = {}
        self.last = time.monotonic()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        line = self._line(event)
        if line:
            print(line, file=self.to, flush=True)

    def _line(self, event: Event) -> str:
        kind, stage = event["event"], event["stage"]
        if kind == "stage.started":
            self.began[stage] = event["t"]
            return f"… {step_name(stage)}"
        if kind == "stage.cached":
            return f"= {step_name(stage)} · {text('cli.cached', id=event['id'][:8])}"
        if kind == "stage.finished":
            return (
                f"✓ {step_name(stage)} · {event['seconds']:.1f} s · {event['bytes'] / 1e6:.1f} MB · {event['id'][:8]}"
            )
        if kind == "note":
            return f"  {text(event['code'], **event['facts'])}"
        if kind == "stage.progress" and event["total"] and time.monotonic() - self.last > LINE_EVERY_S:
            return self._progress(event)
        return ""

    def _progress(self, event: Event) -> str:
        self.last = time.monotonic()
        stage = event["stage"]
        if "step" in event:  # each pass over the data has its own rate
            stage = f"{stage} {event['step']}"
            self.began.setdefault(stage, event["t"])
        done, total, spent = event["done"], event["total"], event["t"] - self.began.get(stage, event["t"])
        rate = done / spent if spent > 0 else 0.0
        left = text("cli.left", seconds=f"{(total - done) / rate:,.0f}") if rate else ""
        name = " · ".join(filter(None, [step_name(event["stage"]), event.get("step")]))
        return f"  {name} {done:,.0f}/{total:,.0f} {event['unit']} · {rate:,.1f}/s · {left}"
