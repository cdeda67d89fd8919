"""A turn at the engine: so many requests run, so many wait, the rest are refused at once."""

from __future__ import annotations

import asyncio
from types import TracebackType

from inhouse.serve.errors import overloaded


class Admission:
    """Turns in the order of arrival."""

    def __init__(self, parallel: int, queue: int) -> None:
        self.queue = queue
        self.running = 0
        self.waiting = 0
        self._turns = asyncio.Semaphore(parallel)

    def turn(self, tenant: str) -> Turn:
        """A turn for this tenant, to be used as `async with`. Raises ApiError 429 when the queue is full."""
        return Turn(self)

    async def enter(self) -> None:
        """Wait for a turn."""
        if self._turns.locked() and self.waiting >= self.queue:
            raise overloaded()
        self.waiting += 1
        try:
            await self._turns.acquire()
        finally:
            self.waiting -= 1
        self.running += 1

    def leave(self) -> None:
        """Let the next one in."""
        self.running -= 1
        self._turns.release()


class Turn:
    """One request's turn."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    async def __aenter__(self) -> None:
        await self._admission.enter()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._admission.leave()
