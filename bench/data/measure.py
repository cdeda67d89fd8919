"""Run a command and measure it: wall and CPU seconds, peak memory of it and everything it starts."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

SAMPLE_S = 0.2
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Measured:
    """What a run took. Memory is the proportional set size of all its processes together, sampled."""

    wall_s: float
    cpu_s: float
    peak_mb: float


def adopt_orphans() -> None:
    """Make orphaned descendants ours, as a fork server's children are: only the CPU of waited children is counted."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def family_memory() -> int:
    """Bytes of all descendants of this process."""
    total = 0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total


def measure(command: Sequence[str], env: Mapping[str, str], folder: Path, log: Path) -> Measured:
    """Run a command in a folder, its output into a log. Raises CalledProcessError when it fails."""
    adopt_orphans()
    before, began = os.times(), time.monotonic()
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLE_S):
            peak[0] = max(peak[0], family_memory())

    with log.open("wb") as out:
        child = subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT, cwd=folder)
        watcher = threading.Thread(target=watch)
        watcher.start()
        code = child.wait()
        wall = time.monotonic() - began
        done.set()
        watcher.join()
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, 0)[0]:
            pass
    after = os.times()
    if code != 0:
        raise subprocess.CalledProcessError(code, command)
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Measured(wall_s=wall, cpu_s=cpu, peak_mb=peak[0] / 1e6)
