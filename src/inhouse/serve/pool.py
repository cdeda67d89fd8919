"""The engines of one release: which of them answers a request, and what happens when one is lost."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable

from inhouse.core.serving import Ask, ServingEngine
from inhouse.engines.backend import Backend
from inhouse.engines.process import Supervisor
from inhouse.serve.errors import unavailable

RESTART_WAIT_S = 30.0  # how long a request waits for an engine that is being started again
log = logging.getLogger("inhouse.serve")


class Replica:
    """One engine process under supervision, and the connection to it."""

    def __init__(self, name: str, start: Callable[[], Backend]) -> None:
        self.name = name
        self.running = 0
        self.supervisor: Supervisor[Backend] = Supervisor(start)
        self._opened: tuple[Backend, ServingEngine] | None = None

    @property
    def ready(self) -> bool:
        """Whether it can answer now."""
        return self.supervisor.current is not None

    def engine(self) -> ServingEngine | None:
        """The connection to the process that runs now; None while it is being started again."""
        running = self.supervisor.current
        if running is None:
            return None
        if self._opened is None or self._opened[0] is not running:
            self._opened = (running, running.open())
        return self._opened[1]

    async def lost(self) -> None:
        """Wait until the supervisor has noticed that the process is gone, so that nobody is sent to it again."""
        until = time.monotonic() + RESTART_WAIT_S
        gone = None if self._opened is None else self._opened[0]
        while gone is not None and self.supervisor.current is gone and time.monotonic() < until:
            await asyncio.sleep(0.05)

    def kill(self) -> None:
        """End a process that no longer answers; the supervisor starts another."""
        log.error("the engine of %s was silent for too long and is started again", self.name)
        if (running := self.supervisor.current) is not None:
            threading.Thread(target=running.process.stop, args=(0.0,), daemon=True).start()


class Pool:
    """The replicas of one release."""

    def __init__(self, name: str, start: Callable[[], Backend]) -> None:
        self.name = name
        self.replicas = [Replica(name, start)]

    @property
    def ready(self) -> bool:
        """Whether anybody can answer now."""
        return any(replica.ready for replica in self.replicas)

    @property
    def restarts(self) -> int:
        """Times that processes were started again."""
        return sum(replica.supervisor.restarts for replica in self.replicas)

    @property
    def context_length(self) -> int:
        """Tokens of one request."""
        return min(r.supervisor.current.context_length for r in self.replicas if r.supervisor.current)

    async def pick(self, ask: Ask | None) -> tuple[Replica, ServingEngine]:
        """The replica that answers this request; while none can, wait a little. Raises ApiError 503."""
        until = time.monotonic() + RESTART_WAIT_S
        while True:
            for replica in sorted(self.replicas, key=lambda r: r.running):
                if (engine := replica.engine()) is not None:
                    return replica, engine
            if time.monotonic() > until:
                raise unavailable()
            await asyncio.sleep(0.05)

    def close(self) -> None:
        """Stop every process."""
        for replica in self.replicas:
            replica.supervisor.close()
