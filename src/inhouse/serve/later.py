"""Timers of one length for many requests: most are taken back before their time, so they share one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextvars import Context
from types import TracebackType

log = logging.getLogger("inhouse.serve")


class Later:
    """Calls what it is given after a fixed time, unless that is taken back before. Inside one event loop at a time."""

    def __init__(self, delay_s: float) -> None:
        self.delay_s = delay_s
        self._waiting: dict[int, tuple[float, Callable[[], None]]] = {}  # in the order of their time
        self._given = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timed = False  # whether a timer of the loop runs

    def add(self, call: Callable[[], None]) -> int:
        """A number to take it back with."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # the one before has ended, and its timer with it
            self._loop, self._timed = loop, False
            self._waiting.clear()
        at = loop.time() + self.delay_s
        if not self._timed:
            self._timed = True
            self._time(loop, at)
        self._given += 1
        self._waiting[self._given] = at, call
        return self._given

    def cancel(self, number: int) -> None:
        """Take it back; nothing happens where it was called already."""
        self._waiting.pop(number, None)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop is not self._loop:
            return
        now = loop.time()
        while self._waiting:
            number, (at, call) = next(iter(self._waiting.items()))
            if at > now:
                self._time(loop, at)
                return
            del self._waiting[number]
            try:
                call()
            except Exception:  # whatever it was, the others are called
                log.exception("what was due has failed")
        self._timed = False

    def _time(self, loop: asyncio.AbstractEventLoop, at: float) -> None:
        loop.call_at(at, self._look, loop, context=Context())  # not that of the request which happened to be first


class Deadline:
    """`with Deadline(later):` raises TimeoutError where the work takes longer; asyncio.timeout, but cheaper."""

    __slots__ = ("_cancelled_before", "_later", "_number", "_passed", "_task")

    def __init__(self, later: Later) -> None:
        self._later = later
        self._passed = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelled_before = task.cancelling()
        self._number = self._later.add(self._pass)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._later.cancel(self._number)
        if self._passed and self._task.uncancel() <= self._cancelled_before and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _pass(self) -> None:
        self._passed = True
        self._task.cancel()
