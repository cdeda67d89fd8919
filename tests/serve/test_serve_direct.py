"""Long lists of inputs are read in parts: nothing is lost or changes its place, and others have their turn between."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from inhouse.core.serving import EngineLost
from inhouse.serve.admission import Admission
from inhouse.serve.direct import PART_INPUTS, PART_LENGTH, Borrowed, parts, vectors
from inhouse.serve.measured import Measured


class Reader:
    """An engine whose vector of a text is the text's number, and that reads a token a character."""

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
    many, long = ["x"] * (PART_INPUTS + 1), ["x" * PART_LENGTH, "y", "z" * (PART_LENGTH + 1), "w"]
    assert [len(part) for part in parts(many)] == [PART_INPUTS, 1]
    assert [[each[0] for each in part] for part in parts(long)] == [["x"], ["y"], ["z"], ["w"]]
    assert list(parts([[1, 2], [3]])) == [[[1, 2], [3]]]


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
