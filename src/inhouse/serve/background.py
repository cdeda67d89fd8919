"""Work that goes on when its request has been answered: background responses, batches."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from inhouse.core.errors import InhouseError
from inhouse.core.messages import text
from inhouse.serve.errors import ApiError

MOST = 256  # tasks of this gateway; more are refused with 429
log = logging.getLogger("inhouse.serve")


class Background:
    """Tasks by name, ended with the gateway."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Begin a task. Raises ApiError 429 when there are too many."""
        if len(self._tasks) >= MOST:
            work.close()
            raise ApiError(429, "rate_limit_exceeded", text("serve.overloaded"))
        task = self._tasks[name] = asyncio.create_task(work, name=name)
        task.add_done_callback(self._done)

    def every(self, name: str, seconds: float, work: Callable[[], object]) -> None:
        """Do something now and again and again, in a thread; a registry that is busy is asked the next time."""
        self.start(name, self._again(name, seconds, work))

    async def _again(self, name: str, seconds: float, work: Callable[[], object]) -> None:
        while True:
            try:
                await asyncio.to_thread(work)
            except (InhouseError, OSError) as error:
                log.warning("%s: %s", name, error)
            await asyncio.sleep(seconds)

    def cancel(self, name: str) -> bool:
        """End a task; whether there was one."""
        task = self._tasks.get(name)
        return task is not None and task.cancel()

    async def stop(self) -> None:
        """End them all."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task.get_name(), None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("background work %s failed", task.get_name(), exc_info=error)
