"""Another engine when requests wait, one fewer when nobody would miss it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from inhouse.core.errors import InhouseError
from inhouse.release.settings import ReplicaParams
from inhouse.serve.pool import Pool
from inhouse.serve.replica import Replica

LOOK_S = 0.25
WAITED_S = 1.0  # a burst that the engines swallow in less starts nothing
RETRY_S = 30.0
SPARE = 1.1  # a load needs a little more than the weights and the cache
CGROUP = Path("/sys/fs/cgroup")
log = logging.getLogger("inhouse.serve")


class Demand:
    """How long requests have waited, and how long one engine has been too many."""

    def __init__(self, params: ReplicaParams) -> None:
        self._params = params
        self._crowded_since: float | None = None
        self._idle_since: float | None = None

    def decide(self, waiting: int, running: int, room: tuple[int, int], now: float) -> int:
        """1 = start another, -1 = stop one, 0 = stay. `room` = engines that run, and requests that each takes."""
        engines, parallel = room
        crowded = waiting >= self._params.scale_up_waiting and engines < self._params.most
        idle = not waiting and engines > self._params.least and running <= (engines - 1) * parallel
        self._crowded_since = (self._crowded_since or now) if crowded else None
        self._idle_since = (self._idle_since or now) if idle else None
        if self._crowded_since is not None and now - self._crowded_since >= WAITED_S:
            self._crowded_since = None
            return 1
        if self._idle_since is not None and now - self._idle_since >= self._params.scale_down_idle_s:
            self._idle_since = None
            return -1
        return 0


class Scaler:
    """A thread that keeps the number of engines between `least` and `most`."""

    def __init__(
        self, pool: Pool, params: ReplicaParams, waiting: Callable[[], int], make: Callable[[str], Replica], needs: int
    ) -> None:
        """`make` starts one more engine of that kind; `needs` is the memory of one, in bytes."""
        self._pool = pool
        self._demand = Demand(params)
        self._waiting = waiting
        self._make = make
        self._needs = needs
        self._kind = pool.replicas[0].kind
        self._closing = pool.closing
        self._thread = threading.Thread(target=self._watch, name=f"scale {pool.name}", daemon=True)
        if params.most > params.least:
            self._thread.start()

    @property
    def kind(self) -> str:
        """The engine that answers under load: of it there are more, or fewer."""
        return self._kind if self._pool.crossover is None else self._pool.crossover.loaded

    def close(self) -> None:
        """Start and stop nothing any more."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._closing.wait(LOOK_S):
            here = [r for r in self._pool.replicas if r.kind == self.kind and not r.held]
            room = (len(here), max((r.parallel for r in here), default=1))
            running = sum(r.running for r in here)
            step = self._demand.decide(self._waiting(), running, room, time.monotonic())
            if step > 0:
                self._start()
            elif step < 0:
                last = min(reversed(here), key=lambda r: r.running)
                log.info("%s is stopped: fewer engines will do", last.name)
                self._pool.drain(last, RETRY_S)

    def _start(self) -> None:
        if (free := free_memory()) < self._needs * SPARE:
            needs = self._needs >> 20
            log.warning("no further engine for %s: it needs %d MB, %d are free", self._pool.name, needs, free >> 20)
            self._closing.wait(RETRY_S)
            return
        try:
            made = self._make(self.kind)
        except InhouseError as error:
            log.error("no further engine for %s: %s", self._pool.name, error)
            self._closing.wait(RETRY_S)
            return
        if self._closing.is_set():  # the release was retired while it loaded
            made.close()
            return
        log.info("%s was started: requests waited", made.name)
        self._pool.add(made)


def free_memory(cgroup: Path = CGROUP) -> int:
    """Bytes that a new process may use: of the machine, or of this container where that is less."""
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        most = (cgroup / "memory.max").read_text(encoding="ascii").strip()
        used = int((cgroup / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return free
    return min(free, max(0, int(most) - used)) if most.isdigit() else free
