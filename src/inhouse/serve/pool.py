"""The engines of one release: which of them answers a request, and what happens when one is lost."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Protocol

from inhouse.core.serving import Ask, Capabilities, Delta, EngineLost, EngineRefused, EngineSilent, Push, ServingEngine
from inhouse.serve.errors import unavailable, unsupported
from inhouse.serve.needs import lacking
from inhouse.serve.prefix import PrefixTable, blocks
from inhouse.serve.replica import Replica
from inhouse.serve.tool_engine import submit

RESTART_WAIT_S = 30.0  # how long a request waits for an engine that is being started again
OPEN_WAIT_S = 3.0  # and for a circuit to close; longer, and it is told at once
TOGETHER_S = 0.003  # requests that come within it came at once
USUAL_ANSWER = 128  # tokens
BYTES_A_TOKEN = 4
BUSIER = 4  # requests that the holder of a prefix may have more than the least loaded
Need = Literal["embeddings", "rerank"]
log = logging.getLogger("inhouse.serve")


class Receiver(Protocol):
    """Who gets the pieces of an answer."""

    @property
    def sent(self) -> bool: ...

    async def add(self, deltas: list[Delta]) -> None: ...

    def push(self, deltas: list[Delta]) -> bool: ...

    def reset(self) -> None: ...


class Meter(Protocol):
    """Who measures it."""

    engine: str

    def add(self, deltas: list[Delta]) -> None: ...

    def reset(self) -> None: ...


@dataclass
class Crossover:
    """Two engines on the same cores: one is faster for few requests, the other from `at` running requests on.

    They would take the cores from each other. So new requests go to one kind at a time, and it changes back only when
    half of the crossover is left: the other one drains meanwhile. Without a crossover (`at` is infinite) the second
    one only reads long prompts faster.
    """

    few: str
    many: str
    at: float
    now: str = ""
    read: Mapping[str, float] = field(default_factory=dict)  # engine -> prompt tokens a second
    written: Mapping[str, float] = field(default_factory=dict)  # engine -> tokens a second, alone

    def choose(self, running: int, ask: Ask | None = None) -> str:
        """The kind for a request that comes while so many run; a long prompt goes to the one that is done sooner."""
        if running + 1 >= self.at:
            self.now = self.many
        elif running + 1 <= max(1, self.at / 2) or not self.now:
            self.now = self.few
        if ask is None or self.now == self.many or not self.read or not self.written:
            return self.now
        return min((self.few, self.many), key=lambda kind: self._seconds(kind, ask))

    @property
    def loaded(self) -> str:
        """The kind that answers most under load."""
        return self.few if self.at == math.inf else self.many

    def _seconds(self, kind: str, ask: Ask) -> float:
        """How long a request takes, as far as one can tell: its answer is rarely as long as it may be."""
        answer = min(ask.sampling.max_tokens, USUAL_ANSWER)
        return prompt_tokens(ask) / (self.read.get(kind) or 1) + answer / (self.written.get(kind) or 1)


def prompt_tokens(ask: Ask) -> float:
    """Roughly how many tokens a prompt has."""
    if ask.messages is None:
        return len(ask.prompt) / BYTES_A_TOKEN if isinstance(ask.prompt, str) else len(ask.prompt or ())
    return sum(_bytes(str(message.get("content") or "")) for message in ask.messages) / BYTES_A_TOKEN


def _bytes(words: str) -> int:
    return len(words) if words.isascii() else len(words.encode("utf-8", "replace"))


class Pool:
    """The replicas of one release."""

    def __init__(self, name: str, replicas: Iterable[Replica]) -> None:
        self.name = name
        self.replicas = list(replicas)
        self.crossover: Crossover | None = None
        self.on_change: Callable[[], None] = lambda: None  # a replica came or went
        self.loop: asyncio.AbstractEventLoop | None = None  # where requests are answered; known from the first one on
        self.closing = threading.Event()  # nothing is started or measured any more
        self._prefixes = PrefixTable()
        self._coming = 0  # requests that wait to see who comes with them
        self._turn = (
            0.0  # whose is next among replicas that are as busy: start-time fair queueing (Goyal, Vin, Cheng 1996)
        )
        self._restarts_gone = 0

    @property
    def ready(self) -> bool:
        """Whether anybody can answer now."""
        return any(replica.ready for replica in self.replicas)

    @property
    def running(self) -> int:
        """Requests inside, of all replicas."""
        return sum(replica.running for replica in self.replicas)

    @property
    def restarts(self) -> int:
        """Times that processes were started again."""
        return self._restarts_gone + sum(replica.keeper.restarts for replica in self.replicas)

    @property
    def context_length(self) -> int:
        """Tokens of one request, as the engine that holds the fewest takes them. At least one must be there."""
        return min(running.context_length for r in self.replicas if (running := r.keeper.current) is not None)

    @property
    def parallel(self) -> int:
        """Requests that run at the same time. Engines of two kinds share this machine's cores: the larger counts."""
        kinds: dict[str, int] = {}
        for replica in self.replicas:
            if not replica.held:
                kinds[replica.kind] = kinds.get(replica.kind, 0) + replica.parallel
        elsewhere = kinds.pop("remote", 0)
        return max(1, max(kinds.values(), default=0) + elsewhere)

    def told(self) -> list[dict[str, str | int]]:
        """Each replica for people: name, engine, state and requests inside."""
        return [{"name": r.name, "engine": r.kind, "state": r.state, "running": r.running} for r in self.replicas]

    async def relay(self, ask: Ask, reply: Receiver, seen: Meter, waits: bool = True) -> None:
        """Pass the engine's pieces on. A lost engine's request is tried once more, at once and on another replica
        where there is one, unless the client has seen something; a busy one is passed over.

        Without `waits` it is told at once that no engine is there: others answer then. Raises ApiError, EngineRefused,
        EngineSilent.
        """
        tried: list[Replica] = []
        losses = 0
        while True:
            if not (waits or self.ready):
                raise unavailable()
            replica, engine = await self.pick(ask, tried)
            seen.engine = engine.name
            try:
                await _through(replica, partial(submit, engine, ask), reply, seen)
                return
            except EngineSilent:
                replica.kill()
                raise
            except EngineLost:
                losses += 1
                if losses > 1 or reply.sent:
                    raise unavailable() from None
            except EngineRefused as refused:
                here = refused.reason not in ("busy", "failed", "unsupported")
                if here or reply.sent or not self._untried([*tried, replica], ask):
                    raise
            reply.reset()
            seen.reset()
            tried.append(replica)
            if not self._untried(tried, ask):
                if not waits:
                    raise unavailable()
                await replica.lost()
                tried.clear()

    def could_answer(self, ask: Ask) -> bool:
        """Whether somebody here takes this request now, as far as is known before it is sent."""
        return self._untried((), ask)

    async def pick(
        self, ask: Ask | None, tried: Collection[Replica] = (), need: Need | None = None
    ) -> tuple[Replica, ServingEngine]:
        """The replica that answers this request; while none can, wait a little.

        Raises ApiError 400 for a field that no engine here serves, 503 when none is there.
        """
        self.loop = self.loop or asyncio.get_running_loop()
        if ask is not None and self._more_may_change(ask):
            await self._see_who_comes()
        if found := self._best(ask, tried, need):
            return found
        until = time.monotonic() + RESTART_WAIT_S
        while True:
            waits = [replica.breaker.wait_s for replica in self.replicas if replica.ready]
            if time.monotonic() > until or (waits and min(waits) > OPEN_WAIT_S):
                raise unavailable()
            await asyncio.sleep(0.05)
            if found := self._best(ask, tried, need):
                return found

    def add(self, replica: Replica) -> None:
        """One more."""
        self.replicas = [*self.replicas, replica]
        self.on_change()

    def drain(self, replica: Replica, wait_s: float) -> None:
        """Send nobody there any more, let its requests finish, and stop it. Blocks; not for the event loop."""
        replica.held = "draining"
        self.on_change()
        until = time.monotonic() + wait_s
        while replica.running and time.monotonic() < until:
            time.sleep(0.02)
        self._restarts_gone += replica.keeper.restarts
        self.replicas = [other for other in self.replicas if other is not replica]
        replica.close()

    async def disconnect(self) -> None:
        """Let go of every connection, as the event loop ends."""
        for replica in self.replicas:
            await replica.disconnect()

    def close(self) -> None:
        """Stop every process."""
        self.closing.set()
        for replica in self.replicas:
            replica.close()

    def _more_may_change(self, ask: Ask) -> bool:
        """Whether this request would go elsewhere with others beside it: a long prompt goes there anyway."""
        rule = self.crossover
        if rule is None or rule.at == math.inf:
            return False
        return self.running + 1 < rule.at and rule.choose(self.running, ask) != rule.many

    async def _see_who_comes(self) -> None:
        """Let requests that come together be counted together: one by one, the first few would go to the engine that
        is slower for all of them, and take its cores from the other.
        """
        self._coming += 1
        try:
            await asyncio.sleep(TOGETHER_S)
        finally:
            self._coming -= 1

    def _best(
        self, ask: Ask | None, tried: Collection[Replica], need: Need | None
    ) -> tuple[Replica, ServingEngine] | None:
        able = self._able(ask, need)
        free = [r for r in able if r not in tried and r.breaker.wait_s == 0]
        if trusted := [r for r in free if not r.suspect]:
            free = trusted
        if not free:
            return None
        chosen = free[0]  # for a question without a request, the engine that came first: it can do the most
        if ask is not None and len(free) > 1:
            chosen = self._by_prefix(ask, self._of_kind(free, ask))
        if ask is not None:  # whoever was away, or has come since, has nothing to make up for
            self._turn = max(chosen.taken, self._turn)
            chosen.taken = self._turn + 1 / chosen.weight
        engine = chosen.engine()
        return None if engine is None else (chosen, engine)

    def _untried(self, tried: Collection[Replica], ask: Ask) -> bool:
        return any(
            r.ready and r not in tried and r.breaker.wait_s == 0 and _lacks(r.capabilities, ask, None) is None
            for r in self.replicas
        )

    def _able(self, ask: Ask | None, need: Need | None) -> list[Replica]:
        """The replicas that are there and serve what the request needs."""
        missing: str | None = None
        found = []
        for replica in self.replicas:
            if replica.held:
                continue
            engine = replica.engine()
            lacks = _lacks(replica.capabilities, ask, need)
            if lacks is not None:
                missing = missing or lacks
            elif engine is not None:
                found.append(replica)
            else:
                missing = ""  # one that is being started may serve it
        if not found and missing:
            raise unsupported(missing)
        return found

    def _of_kind(self, free: Sequence[Replica], ask: Ask) -> Sequence[Replica]:
        """Those of the kind that is faster for as many requests as run now."""
        if self.crossover is None:
            return free
        kind = self.crossover.choose(self.running + self._coming, ask)
        here = [r for r in free if r.kind in (kind, "remote")]
        return here or free

    def _by_prefix(self, ask: Ask, free: Sequence[Replica]) -> Replica:
        """The one that has read the prompt's beginning, unless it is much busier than the least loaded."""
        least = min(free, key=lambda r: (r.load, max(r.taken, self._turn)))
        if len(free) < 2:
            return least
        chain = blocks(ask)
        holder = self._prefixes.holder(chain)
        chosen = next((r for r in free if r.name == holder and r.load <= least.load + BUSIER), least)
        self._prefixes.served(chain, chosen.name)
        return chosen


async def _through(
    replica: Replica, submitted: Callable[[Push], AsyncGenerator[list[Delta], None]], reply: Receiver, seen: Meter
) -> None:
    """One try on one replica, its circuit kept."""
    replica.running += 1
    replica.breaker.begin()
    heard = False

    def push(deltas: list[Delta]) -> bool:
        try:
            taken = heard and reply.push(deltas)
        except Exception:  # a bug, met inside the connection of many requests: `add` raises it again, in its own
            log.exception("a piece of an answer could not be told")
            return False
        if taken:
            seen.add(deltas)
        return taken

    try:
        async with aclosing(submitted(push)) as pieces:
            async for deltas in pieces:
                if not heard:
                    if not any(map(_says, deltas)):  # who speaks, and not a word yet: the client has seen nothing
                        continue
                    heard = True
                    replica.breaker.heard()
                seen.add(deltas)
                await reply.add(deltas)
        replica.breaker.succeeded()
    except (EngineLost, EngineSilent):
        replica.breaker.failed()
        raise
    except EngineRefused as refused:
        if refused.reason in ("busy", "failed"):
            replica.breaker.failed()
        else:
            replica.breaker.succeeded()
        raise
    finally:
        replica.running -= 1


def _says(delta: Delta) -> bool:
    return bool(delta.text or delta.finish or delta.tool_calls or delta.reasoning or delta.logprobs or delta.usage)


def _lacks(able: Capabilities | None, ask: Ask | None, need: Need | None) -> str | None:
    """What of the request a replica cannot serve; one whose capabilities are not known yet may serve all."""
    if able is None:
        return None
    if need is not None and not getattr(able, need):
        return need
    return None if ask is None else lacking(ask, able)
