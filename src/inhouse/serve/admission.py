"""A turn at the engine: so many requests run, so many wait, the rest are refused at once. Fair between keys."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from types import TracebackType

from inhouse.serve.errors import overloaded


class Admission:
    """Turns go round the tenants that wait; within a tenant, first come, first served.

    Background work (batches) gets a turn only when nobody else waits, and its waiting fills no queue.
    """

    def __init__(self, parallel: int, queue: int) -> None:
        self.parallel = parallel
        self.queue = queue
        self.running = 0
        self.waiting = 0
        self._lines: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._background: deque[asyncio.Future[None]] = deque()
        self._begun: set[asyncio.Future[None]] = set()  # those that go on, and are sent away by no full queue

    def turn(self, tenant: str, background: bool = False) -> Turn:
        """A turn for this tenant, to be used as `async with`. Raises ApiError 429 when the queue is full."""
        return Turn(self, tenant, background)

    def resize(self, parallel: int) -> None:
        """So many run at the same time from now on."""
        self.parallel = parallel
        self._next()

    def at_once(self) -> bool:
        """A turn where one is free and nobody waits."""
        free = self.running < self.parallel and not self.waiting
        self.running += free
        return free

    async def enter(self, tenant: str, background: bool) -> None:
        """Wait for a turn."""
        if self.at_once():
            return
        if not background and self.waiting >= self.queue:
            self._make_room(tenant)
        await self._wait(tenant, self._line_up(tenant, background))

    async def pass_on(self, tenant: str, background: bool) -> None:
        """Let those go first who wait, and wait for another turn to go on: of work in parts, after each part."""
        if not self.waiting and not (background and self._background):
            return
        turn = self._line_up(tenant, background)
        self._begun.add(turn)
        try:
            self.leave()
            await self._wait(tenant, turn)
        finally:
            self._begun.discard(turn)

    def leave(self) -> None:
        """Let the next one in."""
        self.running -= 1
        self._next()

    def _line_up(self, tenant: str, background: bool) -> asyncio.Future[None]:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if background:
            self._background.append(turn)
        else:
            self._lines.setdefault(tenant, deque()).append(turn)
            self.waiting += 1
        return turn

    async def _wait(self, tenant: str, turn: asyncio.Future[None]) -> None:
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.leave()  # the turn came in the same moment
            else:
                self._forget(tenant, turn)
            raise

    def _next(self) -> None:
        while self.running < self.parallel and (self._lines or self._background):
            turn = self._take()
            if not turn.done():
                self.running += 1
                turn.set_result(None)

    def _take(self) -> asyncio.Future[None]:
        if not self._lines:
            return self._background.popleft()
        tenant, line = next(iter(self._lines.items()))
        turn = line.popleft()
        self.waiting -= 1
        self._lines.move_to_end(tenant)
        if not line:
            del self._lines[tenant]
        return turn

    def _make_room(self, tenant: str) -> None:
        """In a full queue, a tenant with fewer requests takes the place of the longest line's last one.

        Not of one that has begun: what was done for it would be lost.
        """
        longest = max(self._lines, key=lambda name: len(self._lines[name]), default=None)
        mine = len(self._lines.get(tenant, ()))
        if longest is None or longest == tenant or len(self._lines[longest]) <= mine + 1:
            raise overloaded()
        last = next((turn for turn in reversed(self._lines[longest]) if turn not in self._begun), None)
        if last is None:
            raise overloaded()
        self._lines[longest].remove(last)
        self.waiting -= 1
        if not last.done():
            last.set_exception(overloaded())

    def _forget(self, tenant: str, turn: asyncio.Future[None]) -> None:
        line = self._lines.get(tenant)
        if line is not None and turn in line:
            line.remove(turn)
            self.waiting -= 1
            if not line:
                del self._lines[tenant]
        elif turn in self._background:
            self._background.remove(turn)


class Turn:
    """One request's turn."""

    def __init__(self, admission: Admission, tenant: str, background: bool) -> None:
        self._admission = admission
        self._tenant = tenant
        self._background = background
        self._held = False

    async def pass_on(self) -> None:
        """Between two parts of the work: let those who wait go first."""
        self._held = False
        await self._admission.pass_on(self._tenant, self._background)
        self._held = True

    async def __aenter__(self) -> Turn:
        if not self._admission.at_once():
            await self._admission.enter(self._tenant, self._background)
        self._held = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._held:  # not when it ended while it waited to go on
            self._admission.leave()
