"""`engine: auto`: answer with llama.cpp at once, find out in the background whether OpenVINO is faster, and use it."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from inhouse.core.errors import InhouseError
from inhouse.core.messages import text
from inhouse.serve import calibrate, machine_load
from inhouse.serve.calibrate import Calibration, Disturbed
from inhouse.serve.pool import Crossover, Pool
from inhouse.serve.replica import Replica
from inhouse.serve.scale import SPARE, free_memory

LOOK_S = 0.1
IDLE_S = 2.0  # nobody asks for so long: measuring may begin
KNOWN_S = 10.0  # an engine that is known to be faster is started after so long, however many ask
JOIN_S = 1.0
SAMPLE_S = 1.0  # how long other programs are watched
TRIES = 50
UNREADABLE = "openvino.unsupported"  # a kind of file that it does not read: nothing has failed
State = Literal["off", "waiting", "starting", "measuring", "done", "failed"]
log = logging.getLogger("inhouse.serve")


@dataclass(frozen=True)
class Second:
    """The other engine: how it is started, what it needs, and where the result of measuring is filed."""

    start: Callable[[], Replica]
    needs: int  # bytes of memory
    path: Path


class AutoChoice:
    """A thread that adds the second engine to a pool when it is faster for some load."""

    def __init__(
        self, pool: Pool, second: Second, mode: Literal["background", "off", "before"], again: bool = False
    ) -> None:
        self._again = again  # whatever was found before
        self.state: State = "waiting"
        self.detail = ""
        self.result: Calibration | None = None
        self._pool = pool
        self._first = pool.replicas[0].kind
        self._second = second
        self._mode = mode
        self._closing = pool.closing
        self._thread = threading.Thread(target=self._run, name=f"calibrate {pool.name}", daemon=True)
        self._thread.start()
        if mode == "before":
            self._thread.join()

    def told(self) -> dict[str, Any]:
        """How far it is, for people."""
        told: dict[str, Any] = {"state": self.state}
        if self.detail:
            told["detail"] = self.detail
        return told | (self.result.model_dump(mode="json") if self.result else {})

    def close(self) -> None:
        """Stop measuring; the replicas are the pool's."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(JOIN_S)  # an engine that loads is closed when it has loaded

    def _run(self) -> None:
        try:
            self._choose()
        except InhouseError as error:  # an engine that cannot read this model is no reason to serve it worse
            self._ends("off" if error.code == UNREADABLE else "failed", str(error))
        except calibrate.FAILURES as error:
            self._ends("failed", text("serve_pool.lost_while_measuring", what=type(error).__name__))

    def _choose(self) -> None:
        before = self.result = calibrate.kept(self._second.path)
        if self.result is None and self._mode == "off":
            self._ends("off")
            return
        if self.result is not None and self._outdated(self.result):
            self.result = None
        if self.result is not None and self.result.few == self.result.many == self._first:
            self._ends("done")
            return
        if not self._quiet(math.inf if before is None else KNOWN_S):
            return
        if (free := free_memory()) < self._second.needs * SPARE:
            needed = round(self._second.needs * SPARE) >> 20
            self._ends("failed", text("serve_pool.no_memory", needed=needed, free=free >> 20))
            return
        self.state = "starting"
        replica = self._second.start()
        replica.held = "calibrating"
        self._pool.add(replica)
        try:
            if not self._closing.is_set():
                self.result = self.result or self._measured(replica, before)
        finally:
            if self._closing.is_set() or self.result is None or self.result.many != replica.kind:
                self._pool.drain(replica, 0.0)
        if self.result is not None and not self._closing.is_set():
            self._use(replica, self.result)

    def _outdated(self, found: Calibration) -> bool:
        """Whether it is measured again: it was asked for, or it was found on a busy machine and this one is quiet."""
        if self._again or self._mode == "off" or not found.beside_others:
            return self._again
        since = machine_load.moment()
        return not self._closing.wait(SAMPLE_S) and machine_load.others_since(since) <= machine_load.BUSY

    def _measured(self, replica: Replica, before: Calibration | None) -> Calibration | None:
        """Measure while nobody asks, from the beginning each time that somebody did. None when closed meanwhile.

        What was found before stays when somebody asks this time.
        """
        for _ in range(TRIES if before is None else 1):
            if not self._quiet(math.inf if before is None else KNOWN_S):
                return None
            self.state = "measuring"
            since = machine_load.moment()
            try:
                found = asyncio.run(self._compare(replica))
            except Disturbed:
                continue
            found = found.model_copy(update={"others_cpu": machine_load.others_since(since)})
            calibrate.keep(self._second.path, found)
            return found
        if before is None:
            self._ends("failed", text("serve_pool.never_idle"))
        return before

    async def _compare(self, replica: Replica) -> Calibration:
        known = next((r for r in self._pool.replicas if r.kind == self._first and r.keeper.current is not None), None)
        backends = [r.keeper.current for r in (known, replica) if r is not None]
        if known is None or None in backends:
            await asyncio.sleep(LOOK_S)
            raise Disturbed  # one is being started again
        first, second = (backend.open() for backend in backends if backend is not None)
        try:
            return await calibrate.calibrate(first, second, min(known.parallel, replica.parallel), self._busy)
        finally:
            await first.close()
            await second.close()

    def _use(self, replica: Replica, found: Calibration) -> None:
        if found.many == replica.kind:
            at = 1 if found.few == found.many else found.crossover or math.inf
            alone = {name: own[min(own)] for name, own in found.tokens_per_s.items()}
            read = found.prompt_tokens_per_s
            self._pool.crossover = Crossover(self._first, replica.kind, at, read=read, written=alone)
            replica.held = ""
            self._pool.on_change()
        self._ends("done")

    def _quiet(self, most_s: float = math.inf) -> bool:
        """Wait until nobody has asked for a while, or `most_s`. False when the release is retired meanwhile."""
        self.state = "waiting"
        since = began = time.monotonic()
        while self._mode != "before" and time.monotonic() - since < IDLE_S and time.monotonic() - began < most_s:
            if self._closing.wait(LOOK_S):
                return False
            if self._pool.running:
                since = time.monotonic()
        return not self._closing.is_set()

    def _busy(self) -> bool:
        return self._pool.running > 0 or self._closing.is_set()

    def _ends(self, state: State, detail: str = "") -> None:
        self.detail = detail
        if state != "failed" or not self._closing.is_set():  # else the server stops, and its engines with it
            level = logging.WARNING if state == "failed" else logging.INFO
            what = detail if self.result is None else _sentence(self.result)
            log.log(level, "engine of %s: %s %s", self._pool.name, state, what)
        self.state = state  # last: who waits for it finds the rest told


def _sentence(found: Calibration) -> str:
    rates = "; ".join(
        f"{name} " + ", ".join(f"{rate:g} tokens/s at {load}" for load, rate in own.items())
        for name, own in found.tokens_per_s.items()
    )
    from_when = "for long prompts" if found.crossover is None else f"from {found.crossover} requests on"
    chosen = found.few if found.few == found.many else f"{found.few}, {found.many} {from_when}"
    busy = f"; other programs used {found.others_cpu:.0%} of the machine" if found.beside_others else ""
    return f"{chosen} (greedy tokens agree by {found.agreement:.0%}; {rates or 'not compared'}{busy})"
