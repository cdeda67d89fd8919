"""A circuit breaker: an engine that failed several times running is left alone for a while, then tried once."""

from __future__ import annotations

import time
from collections.abc import Callable

FAILURES = 3
FIRST_S = 1.0
MOST_S = 30.0


class Breaker:
    """Closed, open, or half open (one request may try). Our own: purgatory 3.0.1 tells its state only by raising on
    entry, where a choice among replicas must ask without being counted; it lets everybody through while half open,
    and it reads the wall clock, which jumps.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed = 0  # in a row
        self._pause_s = FIRST_S
        self._shut_until: float | None = None
        self._tried = False  # somebody is through a half-open circuit

    @property
    def state(self) -> str:
        """`closed`, `open` or `half_open`."""
        if self._shut_until is None:
            return "closed"
        return "open" if self._clock() < self._shut_until else "half_open"

    @property
    def wait_s(self) -> float:
        """Seconds until somebody may try; 0 when it is closed or half open."""
        return 0.0 if self._shut_until is None else max(0.0, self._shut_until - self._clock())

    def begin(self) -> None:
        """A request goes through. In a half-open circuit, the others wait for what becomes of it."""
        if self._shut_until is not None:
            self._tried = True
            self._shut_until = self._clock() + self._pause_s

    def heard(self) -> None:
        """Something came back: others may try too. What failed before counts until an answer is whole."""
        self._shut_until = None

    def succeeded(self) -> None:
        """An answer came back."""
        self._failed, self._pause_s, self._shut_until, self._tried = 0, FIRST_S, None, False

    def failed(self) -> None:
        """Nothing came back, or the connection broke."""
        self._failed += 1
        if self._tried:
            self._tried = False
            self._pause_s = min(self._pause_s * 2, MOST_S)
        if self._failed >= FAILURES:
            self._shut_until = self._clock() + self._pause_s
