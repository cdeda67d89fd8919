"""Comments in a stream that says nothing for a while, so that no proxy on the way takes it for dead."""

from __future__ import annotations

import asyncio
import time

from inhouse.serve.http import Connection

SILENCE_S = 15.0


class Pings:
    """Writes `: ping` whenever nothing was written for so long. Ends with `end`."""

    def __init__(self, connection: Connection, silence_s: float = SILENCE_S) -> None:
        self._connection = connection
        self._silence_s = silence_s
        self._task: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(silence_s, self._look)

    def end(self) -> None:
        """The answer is whole, or will never be."""
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def _look(self) -> None:
        left = self._silence_s - (time.monotonic() - self._connection.wrote_at)
        if left <= 0:
            self._task = asyncio.create_task(self._ping())
        self._timer = asyncio.get_running_loop().call_later(left if left > 0 else self._silence_s, self._look)

    async def _ping(self) -> None:
        await self._connection.open_events()
        await self._connection.write(b": ping\n\n")
