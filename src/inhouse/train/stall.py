"""Notice that training stands still, and write down where every thread is."""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from inhouse.core.run import Events

TIMES_USUAL = 20.0  # a step this many times longer than the usual one is no slow step
REMEMBERED = 50  # steps that the usual time is taken from
LOOKS = 10  # looks within the shortest time that counts as a stall


class Pulse:
    """Signs of life of the training thread, and whether the last one is too long ago.

    A stall is `least_s` seconds and 20 times the median step without any; each is found once.
    """

    def __init__(self, least_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.least_s = least_s
        self.clock = clock
        self.step = 0
        self._times: deque[float] = deque(maxlen=REMEMBERED)
        self._sign = self._stepped = clock()
        self._told = False

    def alive(self) -> None:
        """Something was done: a batch, a save, a log."""
        self._sign, self._told = self.clock(), False

    def stepped(self, step: int) -> None:
        """An optimiser step was done."""
        self._times.append(self.clock() - self._stepped)
        self._stepped, self.step = self.clock(), step
        self.alive()

    def longest(self) -> float:
        """Seconds without a sign of life that are still fine."""
        usual = sorted(self._times)[len(self._times) // 2] if self._times else 0.0
        return max(self.least_s, TIMES_USUAL * usual)

    def stalled(self) -> float | None:
        """Seconds since the last sign of life when that is too long ago and was not told yet."""
        silent = self.clock() - self._sign
        if self._told or silent < self.longest():
            return None
        self._told = True
        return silent


@contextmanager
def stall_watch(events: Events, least_s: float) -> Iterator[Pulse]:
    """Watch the calling thread: at a stall write all stacks beside the event log, and emit train.stall.

    Fields of the event: step, seconds without a sign of life, where (the innermost lines), stacks (the file).
    """
    pulse, done, watched = Pulse(least_s), threading.Event(), threading.get_ident()

    def look() -> None:
        while not done.wait(least_s / LOOKS):
            if (seconds := pulse.stalled()) is not None:
                report(events, pulse.step, seconds, watched)

    thread = threading.Thread(target=look, daemon=True, name="stall-watch")
    if events.path is not None:  # without a log nobody would be told
        thread.start()
    try:
        yield pulse
    finally:
        done.set()
        if thread.ident is not None:
            thread.join()


def report(events: Events, step: int, seconds: float, thread: int) -> None:
    """Write the stacks of all threads to stacks-N.txt in the job's folder and tell where `thread` stands."""
    assert events.path is not None
    folder = events.path.parent
    path = folder / f"stacks-{len(list(folder.glob('stacks-*.txt'))) + 1}.txt"
    with path.open("w", encoding="utf-8") as f:
        faulthandler.dump_traceback(f, all_threads=True)
    where = place(sys._current_frames().get(thread))
    events.emit("train.stall", step=step, seconds=round(seconds, 1), where=where, stacks=str(path))


def place(frame: FrameType | None) -> str:
    """The innermost call, and the innermost one of ours when that is another: `file:line in function`."""
    if frame is None:
        return "?"
    stack = traceback.extract_stack(frame)
    ours = [call for call in stack if "inhouse" in Path(call.filename).parts]
    calls = [f"{Path(call.filename).name}:{call.lineno} in {call.name}" for call in (stack[-1], *ours[-1:])]
    return " < ".join(dict.fromkeys(calls))
