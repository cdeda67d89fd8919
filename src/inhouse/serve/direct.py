"""An engine for what is no conversation: vectors, tokens, a rendered prompt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inhouse.core.messages import text
from inhouse.core.serving import EngineLost, EngineRefused, EngineSilent, ServingEngine, Usage
from inhouse.serve.errors import ApiError, overloaded, too_late, unavailable
from inhouse.serve.measured import Measured
from inhouse.serve.pipeline import Caller, refusal
from inhouse.serve.requests import Limits

if TYPE_CHECKING:
    from inhouse.serve.routes import Services


@dataclass(frozen=True)
class Borrowed:
    """An engine for the length of one request, and what is measured of it."""

    engine: ServingEngine
    limits: Limits
    release: str
    seen: Measured

    def spent(self, tokens: int) -> None:
        """Count tokens that were read."""
        self.seen.usages.append(Usage(tokens, 0))


@asynccontextmanager
async def borrowed(services: Services, caller: Caller, model: str, turn: bool) -> AsyncIterator[Borrowed]:
    """The engine of the release that answers for `model`; with a turn in its queue where it has to work.

    Raises ApiError, also for what the engine raises inside.
    """
    seconds = services.settings.deadline_s
    admitted = False
    async with services.pipeline.attend(model, caller) as (way, seen):
        target = way.target
        try:
            async with asyncio.timeout(seconds), AsyncExitStack() as held:
                if turn:
                    await held.enter_async_context(target.admission.turn(caller.tenant, caller.background))
                admitted = True
                seen.turn()
                _, engine = await target.pool.pick(None)
                seen.engine = engine.name
                yield Borrowed(engine, target.limits, target.release.label, seen)
        except (TimeoutError, EngineLost, EngineSilent, EngineRefused) as error:
            raise _told(error, admitted, seconds, target.limits.context_length) from None


def _told(error: Exception, admitted: bool, seconds: float, context: int) -> ApiError:
    if isinstance(error, EngineRefused):
        return refusal(error, context)
    if isinstance(error, EngineLost):
        return unavailable()
    return too_late(seconds) if admitted else overloaded(503)


async def vectors(lent: Borrowed, inputs: list[str] | list[list[int]]) -> tuple[list[list[float]], int]:
    """One vector of unit length an input, and the tokens read. Raises ApiError where the engine makes none."""
    if not lent.engine.capabilities.embeddings:
        raise ApiError(400, "embeddings_not_enabled", text("serve.no_embeddings"), "model")
    found, tokens = await lent.engine.embed(inputs)
    lent.spent(tokens)
    return found, tokens
