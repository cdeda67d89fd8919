"""Show a job's events as they come: a bar with rate and ETA on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from inhouse.cli.notes import note
from inhouse.cli.table import size
from inhouse.cli.watch_training import Training, told
from inhouse.core.messages import known, text

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.text import Text

LINE_EVERY_S = 10.0
LEAST_S = 0.5  # of work, before a rate is believed
BAR_WIDTH, LEAST_BAR = 24, 6
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
Event = dict[str, Any]


def step_name(name: str) -> str:
    """What a step is called in the user's language; `tuned_2` is the second training of a chain."""
    kind, _, number = name.rpartition("_")
    if number.isdigit() and known(f"step.{kind}"):
        return f"{text(f'step.{kind}')} {number}"
    return text(f"step.{name}") if known(f"step.{name}") else name


@contextmanager
def watching(as_json: bool) -> Iterator[Callable[[Event], None]]:
    """A function that shows each event on stderr; with --json only a terminal sees progress."""
    if not sys.stderr.isatty():
        yield (lambda event: None) if as_json else Lines(sys.stderr)
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    bars = Bars(console)
    with Live(bars, console=console, refresh_per_second=8, redirect_stdout=False, redirect_stderr=False):
        yield bars


@dataclass
class Pace:
    """How fast one pass over the data goes, from what was done while it was watched.

    The first event of a pass says what was there already, so that a resumed build shows no rate that never was.
    """

    began: float
    first: float
    now: float = 0.0
    done: float = 0.0
    total: float | None = None

    @property
    def rate(self) -> float | None:
        """Units a second; None before anything is known."""
        spent = self.now - self.began
        return (self.done - self.first) / spent if spent >= LEAST_S and self.done > self.first else None

    @property
    def left(self) -> float | None:
        """Seconds to the end of this pass; None where nobody can tell."""
        return (self.total - self.done) / self.rate if self.total and self.rate and self.total > self.done else None


@dataclass
class Shown:
    """One stage as a line shows it: its name, since when it runs (seconds, UTC), its pass, and how far that is."""

    name: str
    began: float
    step: str = ""
    unit: str = ""
    more: str = ""
    pace: Pace | None = None
    ended: float | None = None  # seconds it took
    training: Training = field(default_factory=Training)

    def take(self, event: Event) -> None:
        """Take over what a training tells."""
        self.more = self.training.take(event) or self.more

    def progress(self, event: Event) -> None:
        """Take over a progress event; another step is another pass, with a rate of its own."""
        step = str(event.get("step") or event.get("source") or "")
        if self.pace is None or step != self.step:
            self.pace = Pace(event["t"], event["done"])
        self.step, self.unit = step, event["unit"]
        self.pace.now, self.pace.done, self.pace.total = event["t"], event["done"], event["total"]
        self.more = f"loss {event['loss']:.3f}" if "loss" in event else self.training.line()

    def detail(self) -> str:
        """Pass, amount, rate and time left, as far as they are known."""
        if self.pace is None:
            return self.more
        parts = [_pass_name(self.step), _amount(self.pace.done, self.pace.total, self.unit)]
        if (rate := self.pace.rate) is not None:
            shown, _, unit = _amount(rate, None, self.unit).partition(" ")
            parts.append(f"{shown} {unit}/s".replace(" /s", "/s"))
        if (left := self.pace.left) is not None:
            parts.append(text("cli.left", time=_duration(left)))
        return " · ".join(filter(None, [*parts, self.more]))


def _pass_name(step: str) -> str:
    """`steps 1/2` in the user's language; a name of an operator or a source stays what it is."""
    word, _, place = step.partition(" ")
    return f"{step_name(word)} {place}".rstrip()


def _amount(done: float, total: float | None, unit: str) -> str:
    if unit == "bytes":
        return _amount(done / 1e6, None if total is None else total / 1e6, "MB")
    digits = 0 if unit != "MB" and float(done).is_integer() else 1
    digits = 0 if max(done, total or 0.0) >= 1000 else digits
    shown = f"{done:,.{digits}f}" if total is None else f"{done:,.{digits}f}/{total:,.{digits}f}"
    return f"{shown} {text(f'unit.{unit}') if known(f'unit.{unit}') else unit}".rstrip()


def _duration(seconds: float) -> str:
    """`45 s`, and above a minute `1:05` or `2:01:05`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return _clock(seconds).removeprefix("0:").lstrip("0")


def _clock(seconds: float) -> str:
    whole = max(round(seconds), 0)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


@dataclass
class Bars:
    """One line per stage: what it does now, how fast, how long still, and how long it has run in all."""

    console: Console
    stages: dict[str, Shown] = field(default_factory=dict)
    clock: Callable[[], float] = time.time

    def __call__(self, event: Event) -> None:
        """Show one event."""
        kind, stage = event["event"], event["stage"]
        if kind in ("stage.started", "stage.cached"):
            self.stages[stage] = Shown(step_name(stage), event["t"])
        if kind == "note":
            self.console.print(f"  {note(event['code'], event['facts'])}", style="dim", markup=False, highlight=False)
        if kind == "stage.progress":
            self.stages.setdefault(stage, Shown(step_name(stage or "check"), event["t"])).progress(event)
        shown = self.stages.get(stage)
        if shown is None:
            return
        shown.take(event)
        if line := told(event, shown.training):
            self.console.print(f"  {line}", style="dim", markup=False, highlight=False)
        if kind not in ("stage.cached", "stage.finished"):
            return
        cached = kind == "stage.cached"
        shown.ended = 0.0 if cached else event["seconds"]
        shown.more = text("cli.cached", id=event["id"][:8]) if cached else _finished(event)
        shown.pace = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The lines, no wider than the terminal."""
        for shown in list(self.stages.values()):
            yield self._line(shown, options.max_width)

    def _line(self, shown: Shown, width: int) -> Text:
        from rich.text import Text

        now = self.clock()
        line = Text(no_wrap=True, overflow="ellipsis", end="\n")
        if shown.ended is None:
            line.append(f"{SPINNER[int(now * 8) % len(SPINNER)]} ", "cyan")
        else:
            line.append("✓ ", "green")
        elapsed = f" {_clock(now - shown.began if shown.ended is None else shown.ended)}"
        line.append(shown.name)
        detail = Text(f" · {shown.detail()}" if shown.detail() else "", "dim")
        detail.truncate(max(width - line.cell_len - len(elapsed), 0), overflow="ellipsis")
        line.append_text(detail)
        room = min(width - line.cell_len - len(elapsed) - 1, BAR_WIDTH)
        if shown.pace is not None and shown.pace.total and room >= LEAST_BAR:
            full = round(room * min(shown.pace.done / shown.pace.total, 1.0))
            line.append(" ").append("━" * full, "green").append("━" * (room - full), "bright_black")
        return line.append(elapsed, "yellow")


def _finished(event: Event) -> str:
    return f"{size(event['bytes'])} · {event['id'][:8]}"


class Lines:
    """Plain lines for logs and pipes; progress every ten seconds of the job."""

    def __init__(self, to: TextIO) -> None:
        self.to = to
        self.stages: dict[str, Shown] = {}
        self.last: float | None = None

    def __call__(self, event: Event) -> None:
        """Show one event."""
        line = self._line(event)
        if line:
            print(line, file=self.to, flush=True)

    def _line(self, event: Event) -> str:
        kind, stage = event["event"], event["stage"]
        if kind == "stage.started":
            return f"… {step_name(stage)}"
        if kind == "stage.cached":
            return f"= {step_name(stage)} · {text('cli.cached', id=event['id'][:8])}"
        if kind == "note":
            return f"  {note(event['code'], event['facts'])}"
        if kind == "stage.progress":
            return self._progress(event)
        if (shown := self.stages.get(stage)) is not None:
            shown.take(event)
        lines = [f"  {line}"] if shown and (line := told(event, shown.training)) else []
        if kind == "stage.finished":
            lines.append(f"✓ {step_name(stage)} · {_duration(event['seconds'])} · {_finished(event)}")
        return "\n".join(lines)

    def _progress(self, event: Event) -> str:
        """A line when ten seconds have gone by; every event counts towards the rate, shown or not."""
        stage, now = event["stage"], event["t"]
        shown = self.stages.setdefault(stage, Shown(step_name(stage or "check"), now))
        shown.progress(event)
        self.last = now if self.last is None else self.last
        if now - self.last < LINE_EVERY_S or not (event["done"] or event["total"]):
            return ""  # `0 rows` of nobody knows how many tells nothing
        self.last = now
        return f"  {shown.name} · {shown.detail()}"
