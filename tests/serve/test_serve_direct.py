"""Long lists of inputs are read in parts: nothing is lost or changes its place, and others have their turn between."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from inhouse.core.serving import EngineLost, PairScores
from inhouse.serve.admission import Admission
from inhouse.serve.direct import PART_INPUTS, PART_LENGTH, Borrowed, borrowed, parts, scored, vectors
from inhouse.serve.errors import ApiError
from inhouse.serve.measured import Measured
from inhouse.serve.requests import BYTES_PER_TOKEN, Limits


class Reader:
    """An engine whose vector of a text is the text's number, and that reads a token a character."""

    name = "fake"
    capabilities = SimpleNamespace(embeddings=True)

    def __init__(self, breaks_at: int | None = None) -> None:
        self.read: list[int] = []
        self.breaks_at = breaks_at

    async def embed(self, inputs: list[str]) -> tuple[list[list[float]], int]:
        await asyncio.sleep(0)
        if len(self.read) == self.breaks_at:
            raise EngineLost
        self.read.append(len(inputs))
        return [[float(each)] for each in inputs], sum(map(len, inputs))


def lent(engine: Reader, turn: Any) -> Borrowed:
    return Borrowed(cast(Any, engine), cast(Any, None), "r", Measured(), turn)


def test_parts_hold_every_input_in_order_within_both_bounds() -> None:
    many, long = [1] * (PART_INPUTS + 1), [PART_LENGTH, 1, PART_LENGTH + 1, 1]
    assert list(parts(many)) == [slice(0, PART_INPUTS), slice(PART_INPUTS, PART_INPUTS + 1)]
    assert list(parts(long)) == [slice(at, at + 1) for at in range(4)]
    assert list(parts([2, 1])) == [slice(0, 2)]


def test_short_request_waits_for_one_part_of_a_long_list_and_not_for_all() -> None:
    async def scene() -> None:
        admission, engine = Admission(1, 4), Reader()
        seen: list[int] = []

        async def long() -> tuple[list[list[float]], int]:
            async with admission.turn("a") as turn:
                return await vectors(lent(engine, turn), [str(number) for number in range(2048)])

        async def short(tenant: str) -> None:
            async with admission.turn(tenant):
                seen.append(len(engine.read))

        task = asyncio.create_task(long())
        await asyncio.sleep(0)
        await asyncio.gather(short("b"), short("a"))
        found, tokens = await task
        assert max(seen) <= 2 and len(engine.read) == 2048 // PART_INPUTS
        assert found == [[float(number)] for number in range(2048)]
        assert tokens == sum(len(str(number)) for number in range(2048))

    asyncio.run(scene())


def test_tokens_of_a_list_that_breaks_off_are_counted() -> None:
    async def scene() -> None:
        mine = lent(Reader(breaks_at=2), None)
        with pytest.raises(EngineLost):
            await vectors(mine, ["7"] * 3 * PART_INPUTS)
        assert mine.seen.usage.prompt == 2 * PART_INPUTS

    asyncio.run(scene())


class Scorer:
    """A cross-encoder that keeps how many pairs came at once."""

    def __init__(self) -> None:
        self.read: list[int] = []

    async def score_pairs(self, pairs: list[tuple[str, str]]) -> PairScores:
        self.read.append(len(pairs))
        return PairScores([float(document) for _, document in pairs], len(pairs), (len(pairs) - 1,))


def test_long_query_is_held_once_beside_any_number_of_documents() -> None:
    engine, context = Scorer(), 8192
    query = "q" * (context * BYTES_PER_TOKEN)  # half a megabyte, 500 times
    mine = Borrowed(cast(Any, engine), Limits(context, 4, 16, 0.0), "r", Measured(), None)
    tracemalloc.start()
    try:
        found = asyncio.run(scored(mine, [(query, str(number)) for number in range(500)]))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 8 * 2**20
    assert found.scores == [float(number) for number in range(500)] and found.cut == tuple(range(500))
    assert found.tokens == mine.seen.usage.prompt == 500 and engine.read == [1] * 500


def test_query_that_cannot_fit_is_refused_before_anything_is_read() -> None:
    engine = Scorer()
    mine = Borrowed(cast(Any, engine), Limits(8, 4, 16, 0.0), "r", Measured(), None)
    with pytest.raises(ApiError) as refused:
        asyncio.run(scored(mine, [("q" * (8 * BYTES_PER_TOKEN + 1), "1")]))
    assert (refused.value.status, refused.value.code, refused.value.param) == (400, "context_length_exceeded", "query")
    assert engine.read == []


def test_request_of_which_nothing_was_read_counts_as_refused() -> None:
    mine = lent(Reader(breaks_at=0), None)
    with pytest.raises(EngineLost):
        asyncio.run(vectors(mine, ["7"]))
    mine.seen.status = 503
    assert mine.seen.refused


def test_vectors_of_an_adapter_are_refused_and_its_tokens_are_told() -> None:
    async def pick(ask: None) -> tuple[None, Reader]:
        return None, engine

    engine = Reader()
    served = SimpleNamespace(
        admission=Admission(1, 4),
        pool=SimpleNamespace(pick=pick),
        limits=Limits(8, 1, 16, 0.0),
        release=SimpleNamespace(label="desk:v1"),
    )
    way = SimpleNamespace(adapter="legal", deployment="desk", target=served)

    @asynccontextmanager
    async def attend(model: str, caller: Any) -> AsyncIterator[tuple[Any, Measured]]:
        yield way, Measured()

    services = SimpleNamespace(settings=SimpleNamespace(deadline_s=5.0), pipeline=SimpleNamespace(attend=attend))
    caller = SimpleNamespace(tenant="t", background=False)

    async def borrow(turn: bool) -> str:
        async with borrowed(cast(Any, services), cast(Any, caller), "desk:legal", turn) as found:
            return found.release

    assert asyncio.run(borrow(False)) == "desk:v1"
    with pytest.raises(ApiError) as refused:
        asyncio.run(borrow(True))
    assert (refused.value.status, refused.value.param) == (400, "model") and "'desk'" in refused.value.message
