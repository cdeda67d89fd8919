"""How busy other programs keep this machine while something is measured."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass

import psutil

BUSY = 0.1  # share of the machine's processor time; with more, a result is of a machine that was busy


@dataclass(frozen=True)
class Moment:
    """Processor seconds used until now: by everybody, and by this process with its children."""

    at: float
    everybody: float
    ours: float


def moment() -> Moment:
    """Now."""
    used = psutil.cpu_times()
    everybody = used.user + used.nice + used.system + used.irq + used.softirq + used.steal
    own = psutil.Process()
    ours = 0.0
    for process in (own, *own.children(recursive=True)):
        with suppress(psutil.Error):  # ended meanwhile
            times = process.cpu_times()
            ours += times.user + times.system
    return Moment(time.monotonic(), everybody, ours)


def others_since(before: Moment) -> float:
    """The share of the machine's processor time that others have used since then, 0 to 1."""
    now = moment()
    there = max(now.at - before.at, 1e-3) * (psutil.cpu_count() or 1)
    others = (now.everybody - before.everybody) - (now.ours - before.ours)
    return round(min(1.0, max(0.0, others / there)), 3)
