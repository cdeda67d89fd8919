"""The way of every request, whichever face it came through: release, turn, engine, answer, figures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol

from inhouse.core.messages import text
from inhouse.core.serving import Ask, EngineLost, EngineRefused, EngineSilent
from inhouse.release.keys import Key
from inhouse.release.settings import ServeParams
from inhouse.serve.deployments import Deployments
from inhouse.serve.errors import ApiError, invalid, overloaded, too_late, too_long, unavailable, unsupported
from inhouse.serve.metrics import Measured, Metrics
from inhouse.serve.replies import Reply
from inhouse.serve.requests import Asked, Limits
from inhouse.serve.target import Target

Prepare = Callable[[Limits], Awaitable[Asked]]


@dataclass(frozen=True)
class Caller:
    """Who asks: the key, and what routing by user or header needs."""

    key: Key
    request_id: str
    user: str | None = None
    headers: dict[bytes, bytes] = field(default_factory=dict)


class Face(Protocol):
    """How a face of the product sends an answer: it is told which release answers, and makes the reply."""

    def begin(self, asked: Asked, release: str) -> Reply: ...


class Pipeline:
    """What stands between a checked body and its answer."""

    def __init__(self, deployments: Deployments, settings: ServeParams, metrics: Metrics) -> None:
        self.deployments = deployments
        self.settings = settings
        self.metrics = metrics

    async def run(self, model: str, prepare: Prepare, caller: Caller, face: Face) -> None:
        """Answer one request. `prepare` makes it within the limits of the release that answers.

        Raises ApiError; cancelling it lets the engine go.
        """
        target = self.deployments.enter(model)
        seen = Measured(model=target.release.label)
        began = time.monotonic()
        try:
            asked = await prepare(target.limits)
            reply = face.begin(asked, target.release.label)
            await self._within(target, asked.ask, reply, seen, caller)
            seen.status = 200
        except ApiError as error:
            seen.status = error.status
            raise
        except asyncio.CancelledError:
            seen.status = 499
            raise
        finally:
            self.deployments.leave(target)
            self.metrics.observe(seen, time.monotonic() - began)

    async def _within(self, target: Target, ask: Ask, reply: Reply, seen: Measured, caller: Caller) -> None:
        admitted = False
        try:
            async with asyncio.timeout(self.settings.deadline_s), target.admission.turn(caller.key.prefix):
                admitted = True
                await self._relay(target, ask, reply, seen)
        except TimeoutError:
            raise too_late(self.settings.deadline_s) if admitted else overloaded(503) from None
        except EngineRefused as refused:
            raise refusal(refused, target.limits.context_length) from None

    async def _relay(self, target: Target, ask: Ask, reply: Reply, seen: Measured) -> None:
        """Pass the engine's pieces on. A lost engine is tried once more, unless the client has seen something."""
        for last in (False, True):
            replica, engine = await target.pool.pick(ask)
            seen.engine = engine.name
            replica.running += 1
            try:
                async with aclosing(engine.submit(ask)) as pieces:
                    async for deltas in pieces:
                        seen.add(deltas)
                        await reply.add(deltas)
                await reply.finish(seen.usage)
                return
            except EngineSilent:
                replica.kill()
                raise too_late(self.settings.first_token_s) from None
            except EngineLost:
                if last or reply.sent:
                    raise unavailable() from None
                reply.reset()
                seen.reset()
                await replica.lost()
            finally:
                replica.running -= 1


def refusal(refused: EngineRefused, context: int) -> ApiError:
    """Our words for what an engine does not do."""
    if refused.reason == "context":
        return too_long(text("serve.tokens", count="?" if refused.tokens is None else refused.tokens), context)
    if refused.reason == "invalid":
        return invalid(text("serve.refused_by_engine"))
    if refused.reason == "unsupported":
        return unsupported("engine")
    if refused.reason == "busy":
        return overloaded(503)
    return ApiError(500, "engine_error", text("serve.engine_error"))
