"""One engine that can answer: a supervised child of ours, or an endpoint elsewhere, and the connection to it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Literal, Protocol

from inhouse.core.errors import InhouseError
from inhouse.core.serving import Capabilities, ServingEngine
from inhouse.engines.backend import Backend
from inhouse.engines.process import Backoff, Child, Supervisor
from inhouse.serve.breaker import Breaker

LOOK_S = 0.5
ANSWER_S = 1.0  # a health check that takes longer makes a replica the last choice
LOST_S = 2.0
RETRY_MOST_S = 30.0
# A request waits 30 s for an engine: one that crashes again and again must be tried well within that.
BACKOFF = Backoff(first_s=0.2, most_s=5.0, steady_s=20.0, check_s=2.0)
Held = Literal["", "calibrating", "draining"]  # why nobody is sent there
log = logging.getLogger("inhouse.serve")


class Reached(Protocol):
    """What a replica needs of a started engine, in a child or elsewhere."""

    @property
    def context_length(self) -> int: ...

    def healthy(self) -> bool: ...

    def open(self) -> ServingEngine: ...


class Finder:
    """Keeps looking for an endpoint that others run, until it is there."""

    def __init__(self, find: Callable[[], Reached]) -> None:
        self.restarts = 0
        self.current: Reached | None = None
        self._find = find
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._look, name="find endpoint", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop looking."""
        self._closing.set()

    def _look(self) -> None:
        pause = LOOK_S
        while not self._closing.is_set():
            try:
                self.current = self._find()
                return
            except InhouseError as error:
                log.warning("an endpoint cannot be used yet: %s", error)
            self._closing.wait(pause)
            pause = min(pause * 2, RETRY_MOST_S)


class Replica:
    """An engine, how busy it is, and whether it is trusted now."""

    def __init__(
        self, name: str, kind: str, keeper: Supervisor[Backend] | Finder, parallel: int = 1, weight: float = 1.0
    ) -> None:
        self.name = name
        self.kind = kind
        self.keeper = keeper
        self.parallel = parallel
        self.weight = weight
        self.running = 0
        self.taken = 0.0  # when its next turn is, in requests relative to its weight (see Pool)
        self.held: Held = ""
        self._unwell = False
        self._asked_at: float | None = None
        self.breaker = Breaker()
        self.capabilities: Capabilities | None = None  # known once a connection was opened
        self._opened: tuple[Reached, ServingEngine] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name=f"watch {name}", daemon=True).start()

    @property
    def ready(self) -> bool:
        """Whether it can answer now."""
        return self.keeper.current is not None and not self.held

    @property
    def suspect(self) -> bool:
        """Whether it failed its last health check, or has not answered the present one for a second."""
        asked = self._asked_at
        return self._unwell or (asked is not None and time.monotonic() - asked > ANSWER_S)

    @property
    def load(self) -> float:
        """Requests in it, relative to its weight."""
        return self.running / self.weight

    @property
    def state(self) -> str:
        """For people: ready, starting, suspect, open, half_open, calibrating, draining."""
        if self.held:
            return self.held
        if self.keeper.current is None:
            return "starting"
        return "suspect" if self.suspect else {"closed": "ready"}.get(self.breaker.state, self.breaker.state)

    def engine(self) -> ServingEngine | None:
        """The connection to what runs now; None while it is being started again. Inside the event loop."""
        running = self.keeper.current
        if running is None:
            return None
        if self._opened is None or self._opened[0] is not running:
            self._let_go()
            self._loop = asyncio.get_running_loop()
            self._opened = (running, running.open())
            self.capabilities = self._opened[1].capabilities
            self.breaker.succeeded()  # what the process before did is no fault of this one
            self._unwell = False
        return self._opened[1]

    async def lost(self) -> None:
        """Wait a moment for the keeper to notice that the engine is gone, so that nobody is sent to it again."""
        until = time.monotonic() + LOST_S
        gone = None if self._opened is None else self._opened[0]
        while gone is not None and self.keeper.current is gone and time.monotonic() < until:
            await asyncio.sleep(0.02)

    def kill(self) -> None:
        """End a process that no longer answers; its supervisor starts another. An endpoint elsewhere is left alone."""
        log.error("the engine of %s did not answer and is started again", self.name)
        if (child := self._child()) is not None:
            threading.Thread(target=child.stop, args=(0.0,), daemon=True).start()

    def _child(self) -> Child | None:
        """The process, where it is one of ours."""
        running = self.keeper.current if isinstance(self.keeper, Supervisor) else None
        return None if running is None else running.process

    async def disconnect(self) -> None:
        """Let go of the connections, as the event loop ends."""
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened[1].close()

    def close(self) -> None:
        """Stop the process. From any thread."""
        self._closed.set()
        self.keeper.close()
        if self._loop is not None and self._loop.is_running():
            self._loop.call_soon_threadsafe(self._let_go)

    def _let_go(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            closing = asyncio.ensure_future(opened[1].close())
            _closing.add(closing)
            closing.add_done_callback(_closing.discard)

    def _watch(self) -> None:
        """Notice within two seconds that it hangs; the supervisor notices at once that it ended."""
        while not self._closed.wait(LOOK_S):
            running, child = self.keeper.current, self._child()
            if running is None:
                continue
            if child is not None and stopped(child.pid):
                self._unwell = True
                self.kill()
                continue
            self._asked_at = time.monotonic()
            self._unwell = not running.healthy()
            self._asked_at = None


_closing: set[asyncio.Future[None]] = set()  # asyncio itself holds tasks weakly


def local(name: str, kind: str, start: Callable[[], Backend], parallel: int) -> Replica:
    """A replica in a child process, started before this returns. Raises what keeps it from loading."""
    return Replica(name, kind, Supervisor(start, BACKOFF), parallel)


def stopped(pid: int) -> bool:
    """Whether a process has been stopped by a signal (SIGSTOP): nothing in it will answer."""
    import psutil

    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False  # it has ended: the supervisor knows
