"""The way of every request, whichever face it came through: release, turn, engine, answer, figures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from inhouse.core.messages import text
from inhouse.core.serving import Ask, Delta, EngineLost, EngineRefused, EngineSilent, Usage
from inhouse.release.arms import Arm, Deployment
from inhouse.release.keys import UNLIMITED, Key
from inhouse.release.settings import ServeParams
from inhouse.serve.cache import AnswerCache, Flight, Kept, kept_answer, said
from inhouse.serve.deployments import Deployments
from inhouse.serve.errors import ApiError, overloaded, too_late, unavailable
from inhouse.serve.guards import Guards, Overheard
from inhouse.serve.later import Deadline, Later
from inhouse.serve.measured import Measured
from inhouse.serve.needs import refusal
from inhouse.serve.overflow import Overflows
from inhouse.serve.pool import Pool, prompt_tokens
from inhouse.serve.quick import QuickAnswers
from inhouse.serve.quotas import Quotas
from inhouse.serve.replies import Reply
from inhouse.serve.requests import Asked, Limits
from inhouse.serve.router import Way
from inhouse.serve.semantic import SemanticIndex
from inhouse.serve.target import Target
from inhouse.serve.watchers import Watchers

ELSEWHERE = (b"x-inhouse-overflow", b"remote")
UNAVAILABLE = 503
MOST_COPIES = 64  # requests that shadows answer at the same time
Prepare = Callable[[Limits], Awaitable[Asked]]


@dataclass(slots=True)
class Caller:
    """Who asks: the key, and what routing by user or header needs."""

    key: Key
    request_id: str
    route: str = "-"
    user: str | None = None
    headers: dict[bytes, bytes] = field(default_factory=dict)
    notes: list[tuple[bytes, bytes]] = field(default_factory=list)  # headers of the answer, sent with its first byte
    fresh: bool = False  # neither answered from memory nor kept there
    background: bool = False  # batches: only when nobody else waits
    flights: list[Flight] = field(default_factory=list)  # its requests that others may read along with
    kept_until: float | None = None  # its answer came from memory, where it stays until then

    @property
    def tenant(self) -> str:
        """Whose request it is: what is kept for one tenant is never shown to another."""
        return str(self.key.id)

    def stays(self, deployment: Deployment) -> str | None:
        """Who shall stay with one arm, by the deployment's rules; None where nobody does."""
        rules = deployment.rules
        if rules.sticky == "user":
            return self.user or f"key {self.key.id}"
        header = rules.sticky_header
        return None if header is None else self.headers.get(header.encode(), b"").decode("latin-1") or None

    def wanted(self) -> bool:
        """Whether others read along with its request: then it goes on when the caller has left."""
        return any(flight.followers for flight in self.flights)


class Face(Protocol):
    """How a face of the product sends an answer: it is told which release answers, and makes the reply."""

    def begin(self, asked: Asked, release: str) -> Reply: ...


@dataclass(frozen=True, slots=True)
class Going:
    """A request on its way: who asks, how the answer is sent, what is measured."""

    caller: Caller
    face: Face
    seen: Measured
    way: Way
    target: Target

    def begin(self, asked: Asked) -> Reply:
        """How the engine's answer is sent; kept for a guard where the deployment has one."""
        return self.overheard(asked.ask, self.face.begin(asked, self.target.release.label))

    def overheard(self, ask: Ask, reply: Reply) -> Reply:
        """The same reply, and where the deployment has a guard, its words for that."""
        if wanted := self.way.serving.deployment.rules.guard:
            self.seen.overheard = Overheard(reply, ask, wanted)
        return self.seen.overheard or reply


@dataclass(frozen=True)
class Near:
    """A question among others: what they share, its vector, and the answers of similar ones."""

    context: str
    vector: list[float]
    names: list[str]


class Shared(Reply):
    """A reply that also tells those who read along, and keeps what it sends.

    From the first one who reads along on, a task writes to its own client: nobody else waits for that one.
    """

    def __init__(self, reply: Reply, flight: Flight | None, seen: Measured) -> None:
        self.reply = reply
        self.flight = flight or Flight()
        self.seen = seen
        self._own: asyncio.Task[None] | None = None

    @property
    def sent(self) -> bool:
        """Whether anybody has seen something."""
        return self.reply.sent or (self.flight.followers > 0 and bool(self.flight.pieces))

    async def add(self, deltas: list[Delta]) -> None:
        """Tell it, send it."""
        self.flight.add(deltas)
        if self._own is None and self.flight.followers:
            self._own = asyncio.create_task(self._write_from(len(self.flight.pieces) - 1))
        if self._own is None:
            await self.reply.add(deltas)

    def push(self, deltas: list[Delta]) -> bool:
        """The same without waiting."""
        if taken := self._own is not None or self.reply.push(deltas):
            self.flight.add(deltas)
        return taken

    async def _write_from(self, at: int) -> None:
        async with aclosing(self.flight.follow(at, leads=True)) as pieces:
            async for deltas in pieces:
                await self.reply.add(deltas)

    async def finish(self, usage: Usage) -> None:
        """The answer is whole."""
        if self.seen.ask is not None:
            self.seen.said = said(self.flight.pieces)
        if self._own is not None:
            self.flight.end(usage)  # the others have all of it
            await self._own
        await self.reply.finish(usage)

    def reset(self) -> None:
        """Begin again."""
        self.close()
        self.flight.restart()
        self.reply.reset()

    def close(self) -> None:
        """Write no more."""
        if self._own is not None:
            self._own.cancel()
            self._own = None


class NoReply(Reply):
    """Nobody listens: a copy of a request that a release on trial answers."""

    sent = False

    async def add(self, deltas: list[Delta]) -> None:
        """Not sent."""

    async def finish(self, usage: Usage) -> None:
        """Not sent."""

    def reset(self) -> None:
        """Nothing to begin again."""


class NoFace:
    """A face that nobody looks at."""

    def begin(self, asked: Asked, release: str) -> Reply:
        """A reply that is not sent."""
        return NoReply()


class LostOnTrial(Exception):
    """A canary's engine is gone or silent, and the client has seen nothing of its answer."""


class Pipeline:
    """What stands between a checked body and its answer."""

    def __init__(self, deployments: Deployments, settings: ServeParams, watchers: Watchers) -> None:
        self.deployments = deployments
        self.settings = settings
        self.watchers = watchers
        self.quotas = Quotas(deployments.registry.engine)
        deployments.saved.append(self.quotas.daily.save)
        self.overflows = Overflows(settings.first_token_s)
        self.guards = Guards()
        self._copies: set[asyncio.Task[None]] = set()
        self._deadlines = Later(settings.deadline_s)
        self.cache = AnswerCache(settings.cache)
        self.quick = QuickAnswers()
        self.semantic = None if settings.cache.semantic is None else SemanticIndex(settings.cache.semantic)

    async def run(self, model: str, prepare: Prepare, caller: Caller, face: Face) -> None:
        """Answer one request. `prepare` makes it within the limits of the release that answers.

        Raises ApiError; cancelling it lets the engine go.
        """
        way, seen = self._begin(model, caller)
        told = len(caller.notes)
        try:
            if caller.key.limits != UNLIMITED:
                await self._allowed(caller.key, way.deployment)
            going = Going(caller, face, seen, way, way.target)
            try:
                await self._try(going, prepare)
            except LostOnTrial:
                del caller.notes[told:], caller.flights[:]
                way = self._to_live(going)
                await self._try(replace(going, way=way, target=way.target), prepare)
            seen.status = 200
        except (ApiError, asyncio.CancelledError) as error:
            seen.fail(error)
            if isinstance(error, ApiError):
                error.counted = not seen.aside
            raise
        finally:
            await self._end(way, seen, caller)

    async def _try(self, going: Going, prepare: Prepare) -> None:
        """By the release of this way. Raises LostOnTrial, and what `run` raises."""
        way, seen = going.way, going.seen
        asked = await prepare(way.target.limits)
        if way.adapter is not None:
            asked = replace(asked, ask=replace(asked.ask, adapter=way.adapter))
        seen.asked_tokens, seen.choices = asked.ask.sampling.max_tokens, asked.ask.sampling.n
        if self.watchers.keeps_content:
            seen.ask = asked.ask
        if len(way.serving.deployment.arms) > 1 and seen.admitted is None:  # not once more for one that was lost
            self._copy(way, asked.ask, going.caller)
        await self._answer(asked, going)

    def _to_live(self, going: Going) -> Way:
        """The live release's way, for a request that the canary lost; its failure is the canary's, not the client's."""
        way, seen = going.way, going.seen
        live = way.instead()
        if live is None or not self.deployments.join(live.target):
            raise unavailable()
        self._count_lost(way.deployment, way.arm, seen)
        self.deployments.leave(way.target)
        seen.reset()
        seen.model, seen.arm, seen.overheard = live.target.release.label, live.arm, None
        return live

    def _count_lost(self, deployment: str, canary: Arm, seen: Measured) -> None:
        self.deployments.trials.count(deployment, canary, replace(seen, status=UNAVAILABLE, error="engine_unavailable"))

    @asynccontextmanager
    async def attend(self, model: str, caller: Caller) -> AsyncIterator[tuple[Way, Measured]]:
        """The release that answers for `model`, within what the key may; measured, and told to who watches."""
        way, seen = self._begin(model, caller)
        try:
            if caller.key.limits != UNLIMITED:
                await self._allowed(caller.key, way.deployment)
            yield way, seen
            seen.status = 200
        except (ApiError, asyncio.CancelledError) as error:
            seen.fail(error)
            if isinstance(error, ApiError):
                error.counted = not seen.aside
            raise
        finally:
            await self._end(way, seen, caller)

    def _begin(self, model: str, caller: Caller) -> tuple[Way, Measured]:
        way = self.deployments.enter(model, caller.stays, caller.key)
        label = way.target.release.label
        seen = Measured(caller.request_id, caller.key.name, caller.tenant, label, way.deployment)
        seen.route, seen.arm, seen.parent = caller.route, way.arm, caller.headers.get(b"traceparent")
        if way.failed is not None:
            self._count_lost(way.deployment, way.failed, seen)
        self.watchers.metrics.enter()
        return way, seen

    async def _end(self, way: Way, seen: Measured, caller: Caller) -> None:
        self.deployments.leave(way.target)
        self.watchers.metrics.leave()
        if caller.key.limits != UNLIMITED and not seen.refused:
            usage = seen.usage
            await self.quotas.spend(caller.key, usage.prompt + usage.answer)
        self._tell(way.deployment, way.arm, seen)

    def _tell(self, deployment: str, arm: Arm, seen: Measured) -> None:
        """Tell who counts; where a guard looks at the answer, after that."""
        said, seen.overheard = seen.overheard, None
        if said is None or seen.status != 200 or seen.elsewhere:  # the overflow's answer is not this release's
            self._count(deployment, arm, seen, None)
            return
        seen.end()
        self.watchers.remember(seen)
        self.guards.look(said, partial(self._count, deployment, arm, seen))

    def _count(self, deployment: str, arm: Arm, seen: Measured, alarms: tuple[str, ...] | None) -> None:
        seen.alarms = alarms
        self.watchers.finished(seen)
        self.deployments.trials.count(deployment, arm, seen)

    def _copy(self, way: Way, ask: Ask, caller: Caller) -> None:
        """Let shadows answer too; nobody waits for them, and when they are busy they miss it."""
        for target in way.shadows():
            if len(self._copies) >= MOST_COPIES or not self.deployments.join(target):
                continue
            copy = asyncio.create_task(self._shadow(way, target, ask, caller))
            self._copies.add(copy)
            copy.add_done_callback(self._copies.discard)

    async def _shadow(self, way: Way, target: Target, ask: Ask, caller: Caller) -> None:
        # Nobody's request: the key that was copied neither sees it nor counts it.
        seen = Measured(f"{caller.request_id}-shadow", "-", "", target.release.label)
        seen.deployment, seen.route = way.deployment, "shadow"
        seen.arm = next(arm for arm in way.serving.deployment.arms if arm.release.id == target.release.id)
        try:
            going = Going(replace(caller, background=True, notes=[]), NoFace(), seen, way, target)
            await self._within(ask, going.overheard(ask, NoReply()), going, None)
            seen.status = 200
        except ApiError as error:  # told to the figures of its arm, and to nobody else
            seen.status, seen.error = error.status, error.code
        finally:
            self.deployments.leave(target)
            self._tell(way.deployment, seen.arm, seen)

    async def _allowed(self, key: Key, model: str) -> None:
        """Raises ApiError 403 for a deployment that this key may not use, 429 when it has used up what it may."""
        if not key.may_use(model):
            raise ApiError(403, "model_not_allowed", text("serve.model_not_allowed", model=model[:100]), "model")
        await self.quotas.enter(key)

    async def _answer(self, asked: Asked, going: Going) -> None:
        """From memory, along with an equal request, or by the engine."""
        caller, label = going.caller, going.target.release.label
        name = None if caller.fresh else self.cache.name(asked.ask, caller.tenant, label)
        if name is None:
            await self._alone(asked.ask, going.begin(asked), going)
            return
        if (kept := self.cache.find(name)) is not None:
            await self._from_memory(kept, "hit", asked, going)
            return
        if (flight := self.cache.flights.get(name)) is not None and not flight.failed:
            caller.notes.append((b"x-cache", b"shared"))
            going.seen.cache = "shared"
            reply = going.face.begin(asked, label)
            if not await self._follow(flight, reply, going):
                caller.notes[caller.notes.index((b"x-cache", b"shared"))] = (b"x-cache", b"miss")
                going.seen.cache = "miss"
                await self._alone(asked.ask, going.overheard(asked.ask, reply), going)
            return
        near = None if self.semantic is None else await self._near(self.semantic, asked.ask, going)
        for similar in near.names if near else ():
            if (kept := self.cache.find(similar)) is not None:
                await self._from_memory(kept, "semantic", asked, going)
                return
        caller.notes.append((b"x-cache", b"miss"))
        going.seen.cache = "miss"
        await self._lead(name, asked, going)
        if near is not None and self.semantic is not None and self.cache.find(name) is not None:
            self.semantic.keep(near.context, near.vector, name)

    async def _alone(self, ask: Ask, reply: Reply, going: Going) -> None:
        """By the engine, for nobody else, and kept nowhere but in a log of contents."""
        if self.watchers.keeps_content:
            reply = Shared(reply, None, going.seen)
        await self._within(ask, reply, going, None)

    async def _from_memory(self, kept: Kept, how: str, asked: Asked, going: Going) -> None:
        going.caller.notes.append((b"x-cache", how.encode()))
        going.caller.kept_until = kept.until if how == "hit" else None
        going.seen.cache = how
        going.seen.from_memory()
        reply = going.face.begin(asked, going.target.release.label)
        await reply.add(list(kept.deltas))
        await reply.finish(kept.usage)

    async def _near(self, semantic: SemanticIndex, ask: Ask, going: Going) -> Near | None:
        """Kept answers of similar questions; None where similarity cannot be told."""
        question = semantic.question(ask)
        if question is None:
            return None
        try:
            _, engine = await going.target.pool.pick(None, need="embeddings")
            vectors, _ = await engine.embed([question])
        except (ApiError, EngineLost, EngineRefused, EngineSilent):
            return None  # without a vector it is an ordinary request
        context = semantic.context(ask, going.caller.tenant, going.target.release.label)
        return Near(context, vectors[0], semantic.find(context, vectors[0]))

    async def _lead(self, name: str, asked: Asked, going: Going) -> None:
        """Answer, tell those who read along, and keep the answer."""
        flight = self.cache.flights[name] = Flight()
        shared = Shared(going.begin(asked), flight, going.seen)
        going.caller.flights.append(flight)
        try:
            await self._within(asked.ask, shared, going, flight)
            kept = None if flight.elsewhere else self._kept(asked, flight, going)
            if kept is not None:
                self.cache.keep(name, kept)
        finally:
            shared.close()
            if flight.usage is None:
                flight.end(None)
            self.cache.flights.pop(name, None)

    def _kept(self, asked: Asked, flight: Flight, going: Going) -> Kept | None:
        return kept_answer(flight.pieces, asked.ask.sampling.n, going.seen.usage, self.settings.cache.ttl_s)

    async def _follow(self, flight: Flight, reply: Reply, going: Going) -> bool:
        """Read along with an equal request. False when that one failed before anything was sent here."""
        async with aclosing(flight.follow()) as pieces:
            async for deltas in pieces:
                if flight.elsewhere and not going.seen.elsewhere:
                    going.caller.notes.append(ELSEWHERE)
                    going.seen.elsewhere = True
                going.seen.add(deltas)
                await reply.add(deltas)
        if flight.usage is not None:
            going.seen.from_memory()
            await reply.finish(flight.usage)
            return True
        if reply.sent:
            raise unavailable()
        going.seen.reset()
        reply.reset()
        return False

    async def _within(self, ask: Ask, reply: Reply, going: Going, flight: Flight | None) -> None:
        """Within the deadline: at once elsewhere where too many wait here, else with a turn."""
        target, seen, caller = going.target, going.seen, going.caller
        admitted = False
        try:
            with Deadline(self._deadlines):
                rule = going.way.serving.deployment.rules.overflow
                pool = rule and await self.overflows.beyond(rule, going.way, ask, caller.background)
                if not pool or not await self._elsewhere(pool, ask, reply, going):
                    async with target.admission.turn(caller.tenant, caller.background):
                        admitted = True
                        seen.turn()
                        await self._relay(target.pool, ask, reply, going)
                if flight is not None:
                    flight.end(seen.usage)
        except TimeoutError:
            raise too_late(self.settings.deadline_s) if admitted else overloaded(503) from None
        except EngineRefused as refused:
            raise refusal(refused, target.limits.context_length, ask) from None

    async def _elsewhere(self, pool: Pool, ask: Ask, reply: Reply, going: Going) -> bool:
        """By the overflow's endpoint. False where it cannot, and nothing was sent: then the request waits here."""
        seen, caller = going.seen, going.caller
        told: list[Measured | Flight] = [seen, *caller.flights]
        seen.turn()
        caller.notes.append(ELSEWHERE)
        for one in told:
            one.elsewhere = True
        try:
            await self._relay(pool, ask, reply, going)
        except (ApiError, EngineRefused):
            if reply.sent:
                raise
            caller.notes.remove(ELSEWHERE)
            for one in told:
                one.elsewhere = False
            seen.reset()
            seen.admitted = None
            reply.reset()
            return False
        return True

    async def _relay(self, pool: Pool, ask: Ask, reply: Reply, going: Going) -> None:
        """Pass the engine's pieces on. Raises LostOnTrial where the live release can still answer."""
        seen, way = going.seen, going.way
        on_trial = way.arm.role == "canary" and pool is way.target.pool and way.instead() is not None
        try:
            await pool.relay(ask, reply, seen, waits=not on_trial)
        except EngineSilent:
            raise (LostOnTrial() if on_trial and not reply.sent else too_late(self.settings.first_token_s)) from None
        except ApiError as error:
            if on_trial and not reply.sent and error.status == UNAVAILABLE:
                raise LostOnTrial from None
            raise
        finally:
            if not seen.usages:  # the client has left, or the engine has not told
                seen.prompt_guess = round(prompt_tokens(ask))
        await reply.finish(seen.usage)
