"""An engine for what is no conversation: vectors, tokens, a rendered prompt."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from inhouse.core.messages import text
from inhouse.core.serving import EngineLost, EngineRefused, EngineSilent, PairScorer, PairScores, ServingEngine, Usage
from inhouse.serve.admission import Turn
from inhouse.serve.errors import ApiError, overloaded, too_late, unavailable
from inhouse.serve.measured import Measured
from inhouse.serve.needs import refusal
from inhouse.serve.pipeline import Caller
from inhouse.serve.requests import BYTES_PER_TOKEN, Limits

if TYPE_CHECKING:
    from inhouse.serve.routes import Services

PART_INPUTS = 32  # as many as the engines read at once; 2,048 short texts held one turn for 50 s
PART_LENGTH = 16_384  # characters or token ids: long texts are read a few at a time


@dataclass(frozen=True)
class Borrowed:
    """An engine for the length of one request, and what is measured of it."""

    engine: ServingEngine
    limits: Limits
    release: str
    seen: Measured
    turn: Turn | None = None

    def spent(self, tokens: int) -> None:
        """Count tokens that were read, on top of those before. Without any, a request that fails counts as refused."""
        if tokens:
            self.seen.usages = [Usage(self.seen.usage.prompt + tokens, 0)]


@asynccontextmanager
async def borrowed(services: Services, caller: Caller, model: str, turn: bool) -> AsyncIterator[Borrowed]:
    """The engine of the release that answers for `model`; with a turn in its queue where it has to work.

    Tokens and rendered prompts are the base's for an adapter too; what it would compute (with a turn) is not.

    Raises ApiError, also for what the engine raises inside.
    """
    seconds = services.settings.deadline_s
    admitted = False
    async with services.pipeline.attend(model, caller) as (way, seen):
        seen.aside = not turn
        target = way.target
        if turn and way.adapter is not None:
            told = text("serve.adapter_writes", deployment=way.deployment)
            raise ApiError(400, "unsupported_parameter", told, "model")
        try:
            async with asyncio.timeout(seconds), AsyncExitStack() as held:
                mine = target.admission.turn(caller.tenant, caller.background) if turn else None
                if mine is not None:
                    await held.enter_async_context(mine)
                admitted = True
                seen.turn()
                _, engine = await target.pool.pick(None)
                seen.engine = engine.name
                yield Borrowed(engine, target.limits, target.release.label, seen, mine)
        except (TimeoutError, EngineLost, EngineSilent, EngineRefused) as error:
            raise _told(error, admitted, seconds, target.limits.context_length) from None


def _told(error: Exception, admitted: bool, seconds: float, context: int) -> ApiError:
    if isinstance(error, EngineRefused):
        return refusal(error, context)
    if isinstance(error, EngineLost):
        return unavailable()
    return too_late(seconds) if admitted else overloaded(503)


async def vectors(lent: Borrowed, inputs: list[str] | list[list[int]]) -> tuple[list[list[float]], int]:
    """One vector of unit length an input, and the tokens read. Raises ApiError where the engine makes none.

    A long list is read in parts, and whoever waits for a turn has it in between.
    """
    if not lent.engine.capabilities.embeddings:
        raise ApiError(400, "embeddings_not_enabled", text("serve.no_embeddings"), "model")
    found: list[list[float]] = []
    tokens = 0
    try:
        for part in parts([len(each) for each in inputs]):
            if found and lent.turn is not None:
                await lent.turn.pass_on()
            more, read = await _embedded(lent.engine, inputs[part])
            found.extend(more)
            tokens += read
    finally:
        lent.spent(tokens)  # also of a list that breaks off: they were read
    return found, tokens


async def _embedded(engine: ServingEngine, inputs: list[str] | list[list[int]]) -> tuple[list[list[float]], int]:
    try:
        return await engine.embed(inputs)
    except EngineRefused as error:
        if error.reason == "invalid" and isinstance(inputs[0], list):  # nothing else could be wrong with numbers
            raise ApiError(400, "invalid_value", text("serve.bad_tokens"), "input") from None
        raise


async def scored(lent: Borrowed, pairs: list[tuple[str, str]]) -> PairScores:
    """How well each document fits its query, by an engine that reads both at once; in parts, as `vectors`.

    Raises ApiError 400 for a query that cannot fit: it would be read again with every document.
    """
    for query in {query for query, _ in pairs}:
        _check_query(query, lent.limits.context_length)
    engine = cast(PairScorer, lent.engine)
    scores: list[float] = []
    cut: list[int] = []
    tokens = 0
    try:
        for part in parts([len(query) + len(document) for query, document in pairs]):
            if scores and lent.turn is not None:
                await lent.turn.pass_on()
            found = await engine.score_pairs(pairs[part])
            cut += [part.start + place for place in found.cut]
            scores += found.scores
            tokens += found.tokens
    finally:
        lent.spent(tokens)
    return PairScores(scores, tokens, tuple(cut))


def _check_query(query: str, context: int) -> None:
    size = len(query.encode())
    if size > context * BYTES_PER_TOKEN:
        found = text("serve.bytes", count=size)
        raise ApiError(400, "context_length_exceeded", text("serve.long_query", found=found, context=context), "query")


def parts(lengths: Sequence[int]) -> Iterator[slice]:
    """Where to cut inputs of these lengths, in order, so that no part holds too many or is too long."""
    begin = length = 0
    for index, more in enumerate(lengths):
        if index > begin and (index - begin >= PART_INPUTS or length + more > PART_LENGTH):
            yield slice(begin, index)
            begin, length = index, 0
        length += more
    yield slice(begin, len(lengths))
