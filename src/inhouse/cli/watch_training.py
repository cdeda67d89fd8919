"""What a training tells while it runs, for people: its figures beside the bar, what happens, the curve at the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from inhouse.cli.table import size
from inhouse.core.messages import text

BLOCKS = "▁▂▃▄▅▆▇█"
CURVE_WIDTH = 32
Event = dict[str, Any]


@dataclass
class Training:
    """What is known of one training."""

    losses: list[float] = field(default_factory=list)
    loss: str = ""
    figures: str = ""
    measured: str = ""
    measuring: str = ""

    def take(self, event: Event) -> str:
        """Take over an event and return the line that stands beside the bar; empty for an event of another kind."""
        kind = event["event"]
        if kind == "train.step":
            self.losses += [event["loss"]] if event["loss"] is not None else []
            self.loss, self.figures, self.measuring = f"loss {_number(event['loss'])}", _figures(event), ""
        elif kind == "train.evaluating":
            self.measuring = text("cli.train_evaluating", done=event["done"], total=event["total"])
        elif kind == "train.evaluated":
            self.measured, self.measuring = text("cli.train_valid_short", loss=_number(event["loss"])), ""
        else:
            return ""
        return self.line()

    def line(self) -> str:
        """What is being done, loss, pace: what a narrow terminal cuts off matters least."""
        return " · ".join(filter(None, [self.measuring, self.loss, self.measured, self.figures]))


def told(event: Event, training: Training) -> str:
    """A line of its own for what should not be overwritten: measurements, stalls, the curve at the end."""
    kind = event["event"]
    if kind == "train.evaluated":
        return text("cli.train_evaluated", step=event["step"], measured=_measured(event))
    if kind == "train.stall":
        facts = {key: event[key] for key in ("step", "where", "stacks")}
        return text("cli.train_stall", seconds=f"{event['seconds']:.0f}", **facts)
    if kind == "train.ended" and len(training.losses) > 1:
        first, last = training.losses[0], training.losses[-1]
        return f"loss {first:.3f} {sparkline(training.losses, CURVE_WIDTH)} {last:.3f}"
    return ""


def sparkline(values: list[float], width: int) -> str:
    """The values as a line of blocks, at most `width` of them; each block is the mean of its share."""
    count = min(width, len(values))
    edges = [len(values) * at // count for at in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    top = len(BLOCKS) - 1
    return "".join(BLOCKS[round(top * (mean - low) / (high - low)) if high > low else 0] for mean in means)


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.3f}"


def _figures(event: Event) -> str:
    norm = "?" if event["grad_norm"] is None else f"{event['grad_norm']:.2g}"
    memory = size(float(event.get("gpu_bytes") or event["memory_bytes"]))
    return " · ".join(
        [f"{event['tokens_per_s']:,.0f} tok/s", f"lr {event['learning_rate']:.1e}", f"grad {norm}", memory]
    )


def _measured(event: Event) -> str:
    said = text("cli.train_valid", loss=_number(event["loss"]))
    if event.get("accuracy") is not None:
        said += text("cli.train_accuracy", share=f"{event['accuracy']:.1%}")
    return said + (text("cli.train_best") if event["best"] else "")
