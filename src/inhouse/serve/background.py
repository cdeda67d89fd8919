"""Work that goes on when its request has been answered: background responses, batches, what is told others.

The gateway's own tasks, the responses of users and announcements are kept apart: no id that a client names reaches a
task of the gateway, and none of them takes the places of another kind.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from inhouse.serve.errors import overloaded
from inhouse.serve.registry_writes import written

MOST = 256  # responses of all keys that are made in the background; more are refused with 429
MOST_OF_KEY = 32
MOST_TOLD = 64  # announcements on their way; more are dropped
END_S = 10.0
FIRST_PAUSE_S, MOST_PAUSE_S = 0.5, 60.0
Work = Coroutine[Any, Any, None]
log = logging.getLogger("inhouse.serve")


def growing(times: int, most: float = MOST_PAUSE_S) -> float:
    """Seconds to wait after this many failures in a row."""
    return min(FIRST_PAUSE_S * 2.0 ** min(times, 20), most)


class Background:
    """Tasks that are ended with the gateway."""

    def __init__(self) -> None:
        self._own: set[asyncio.Task[None]] = set()
        self._told: set[asyncio.Task[None]] = set()
        self._responses: dict[tuple[int, str], asyncio.Task[None] | None] = {}  # None: reserved

    def start(self, name: str, work: Work) -> None:
        """Begin a task of the gateway itself."""
        self._keep(self._own, name, work)

    def every(self, name: str, seconds: float, work: Callable[[], object]) -> None:
        """Do something now and again and again, in a thread; a registry that is busy is asked the next time."""
        self.start(name, self._again(name, seconds, work))

    async def _again(self, name: str, seconds: float, work: Callable[[], object]) -> None:
        failed = 0
        while True:
            pause = seconds
            try:
                await written(work)
                failed = 0
            except Exception:  # whatever it is: without this task leases end and disks fill until a restart
                log.exception("%s failed and is done again later", name)
                pause = max(seconds, growing(failed))
                failed += 1
            await asyncio.sleep(pause)

    def tell(self, name: str, work: Work) -> bool:
        """Begin an announcement; whether there was a place for it. Never fails."""
        if len(self._told) >= MOST_TOLD:
            work.close()
            log.warning("%s is dropped: %s others are on their way", name, MOST_TOLD)
            return False
        self._keep(self._told, name, work)
        return True

    def reserve(self, key: int, response: str) -> None:
        """Keep a place for a response of this key. Raises ApiError 429 when it or all keys have too many."""
        own = sum(holder == key for holder, _ in self._responses)
        if own >= MOST_OF_KEY or len(self._responses) >= MOST:
            raise overloaded()
        self._responses[key, response] = None

    def makes(self, key: int, response: str) -> bool:
        """Whether a response of this key is being made, or about to be."""
        return (key, response) in self._responses

    def release(self, key: int, response: str) -> None:
        """Give up a place that was not used."""
        self._responses.pop((key, response), None)

    def respond(self, key: int, response: str, work: Work) -> None:
        """Begin to make a response whose place is reserved."""
        task = self._responses[key, response] = asyncio.create_task(work, name=response)
        task.add_done_callback(lambda done: self._responded(key, response, done))

    async def end(self, key: int, response: str) -> bool:
        """Stop making a response of this key, and wait for its last word; whether it was being made."""
        task = self._responses.get((key, response))
        if task is None or not task.cancel():
            return False
        await asyncio.wait({task}, timeout=END_S)
        return True

    async def stop(self) -> None:
        """End them all."""
        responses = [task for task in self._responses.values() if task is not None]
        tasks = [*self._own, *self._told, *responses]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _keep(self, tasks: set[asyncio.Task[None]], name: str, work: Work) -> None:
        task = asyncio.create_task(work, name=name)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(_noted)

    def _responded(self, key: int, response: str, task: asyncio.Task[None]) -> None:
        self.release(key, response)
        _noted(task)


def _noted(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("background work %s failed", task.get_name(), exc_info=error)
