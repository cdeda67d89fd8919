"""What happens during a run: events, progress with a rate and an ETA, heartbeat, cancel."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from inhouse.core.errors import Cancelled

T = TypeVar("T")
HEARTBEAT_S = 5.0
PROGRESS_EVERY_S = 0.25


class Events:
    """Append-only event log of a job: one JSON object a line, each with `t` (seconds, UTC) and `event`.

    Events: stage.planned, stage.started, stage.progress, stage.finished, stage.cached, note, heartbeat, and
    what a room adds. A `cancel` file beside the log asks the job to stop at the next `check`.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.stage = ""
        self._lock = threading.Lock()
        self._last = 0.0
        self._step: object = None
        self._stop = threading.Event()

    def emit(self, event: str, **facts: Any) -> None:
        """Write one event."""
        if self.path is None:
            return
        line = json.dumps(
            {"t": round(time.time(), 3), "event": event, "stage": self.stage, **facts}, ensure_ascii=False
        )
        with self._lock, self.path.open("a", encoding="utf-8") as f:
            f.write(line + "\n")

    def note(self, code: str, **facts: Any) -> None:
        """Tell the user something that is not an error, by its message code."""
        self.emit("note", code=code, facts=facts)

    def progress(self, done: float, total: float | None = None, unit: str = "", **facts: Any) -> None:
        """Report how far the stage is, and stop here when cancelled.

        Written at most four times a second; the first report of a `step`, which rates count from, and the last always.
        """
        self.check()
        now, step = time.monotonic(), (self.stage, facts.get("step"))
        if now - self._last >= PROGRESS_EVERY_S or step != self._step or (total is not None and done >= total):
            self._last, self._step = now, step
            self.emit("stage.progress", done=done, total=total, unit=unit, **facts)

    def track(self, items: Iterable[T], total: int | None, unit: str) -> Iterator[T]:
        """Iterate and report progress."""
        for done, item in enumerate(items):
            self.progress(done, total, unit)
            yield item
        if total:
            self.progress(total, total, unit)

    def check(self) -> None:
        """Raise Cancelled when the user asked this job to stop."""
        if self.path is not None and self.path.with_name("cancel").exists():
            raise Cancelled

    def start_heartbeat(self) -> None:
        """Write a heartbeat every few seconds until `close`, so that a watcher can tell slow from stuck."""
        threading.Thread(target=self._beat, daemon=True).start()

    def close(self) -> None:
        """Stop the heartbeat."""
        self._stop.set()

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            self.emit("heartbeat", pid=os.getpid())


def die_with_parent(parent: int) -> None:
    """Let the kernel end this process when its parent ends, however that happens (Linux); poll elsewhere.

    Call it first thing in a child; `parent` is the pid that started it, for the case that it is gone already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    else:
        threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()
    if os.getppid() != parent:
        os._exit(1)


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def process_mark(pid: int) -> str | None:
    """What tells this process from a later one with the same pid; None when it has ended.

    On Linux the start in ticks since boot, and the boot's id: neither moves when the wall clock is set.
    """
    if sys.platform != "linux":
        return _portable_mark(pid)
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return None if fields[0] == "Z" else f"{boot}:{fields[19]}"


def _portable_mark(pid: int) -> str | None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "alive"


def peak_memory() -> int:
    """Peak resident memory of this process in bytes, since its start or the last `reset_peak_memory`."""
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def reset_peak_memory() -> None:
    """Start a new peak at the present use, so that a stage is not charged for the one before it (Linux)."""
    with contextlib.suppress(OSError):  # not Linux, or not permitted: the peak then covers the whole process
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def collect_seldom() -> None:
    """Look for garbage in cycles seldom: a process that starts makes many objects, and nearly all of them stay."""
    gc.set_threshold(20_000, 20, 20)


def end_quickly() -> None:
    """Let the interpreter end without looking for garbage in everything that is loaded: that took half a second."""
    gc.freeze()


def release_memory() -> None:
    """Give what was freed back to the system: the C library keeps the pages of a stage's tensors otherwise."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # a C library without malloc_trim (musl, macOS) returns pages by itself
        ctypes.CDLL(None).malloc_trim(0)
