"""Turns at the engine: bounded, in order, fair between keys."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from inhouse.serve.admission import Admission
from inhouse.serve.errors import ApiError


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Office:
    """Requests that hold their turn until they are told to go."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.order: list[str] = []
        self.done = asyncio.Event()

    async def work(self, tenant: str, background: bool = False) -> None:
        async with self.admission.turn(tenant, background):
            self.order.append(tenant)
            await self.done.wait()

    async def brief(self, tenant: str, background: bool = False) -> None:
        async with self.admission.turn(tenant, background):
            self.order.append(tenant)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def test_turns_go_round_the_tenants_and_not_by_arrival() -> None:
    async def scene() -> None:
        office = Office(Admission(1, 10))
        first = asyncio.create_task(office.work("a"))
        await settle()
        others = [asyncio.create_task(office.brief(tenant)) for tenant in ("a", "a", "a", "b", "c")]
        await settle()
        assert office.admission.waiting == 5
        office.done.set()
        await asyncio.gather(first, *others)
        assert office.order == ["a", "a", "b", "c", "a", "a"]
        assert (office.admission.running, office.admission.waiting) == (0, 0)

    run(scene())


def test_full_queue_refuses_the_tenant_that_fills_it_and_lets_others_in() -> None:
    async def scene() -> None:
        office = Office(Admission(1, 3))
        tasks = [asyncio.create_task(office.work("a")) for _ in range(4)]
        await settle()
        with pytest.raises(ApiError) as refused:
            await office.brief("a")
        assert refused.value.status == 429
        other = asyncio.create_task(office.brief("b"))
        await settle()
        assert isinstance(tasks[3].exception(), ApiError) and not tasks[2].done()
        office.done.set()
        await asyncio.gather(*tasks[:3], other)
        assert office.order == ["a", "a", "b", "a"]

    run(scene())


def test_background_work_waits_until_nobody_else_does_and_fills_no_queue() -> None:
    async def scene() -> None:
        office = Office(Admission(1, 1))
        first = asyncio.create_task(office.work("a"))
        await settle()
        batch = [asyncio.create_task(office.brief("batch", background=True)) for _ in range(5)]
        await settle()
        live = asyncio.create_task(office.brief("b"))
        await settle()
        office.done.set()
        await asyncio.gather(first, live, *batch)
        assert office.order == ["a", "b", *["batch"] * 5]

    run(scene())


def test_cancelled_requests_leave_no_turn_behind() -> None:
    async def scene() -> None:
        office = Office(Admission(1, 10))
        first = asyncio.create_task(office.work("a"))
        await settle()
        waiting = [asyncio.create_task(office.brief("b", background)) for background in (False, True)]
        await settle()
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert office.admission.waiting == 0
        late = asyncio.create_task(office.brief("c"))
        await settle()
        office.done.set()
        await settle()
        late.cancel()  # its turn has come in the same moment, or it is through
        await asyncio.gather(first, late, return_exceptions=True)
        assert office.admission.running == 0

    run(scene())


def test_cancelled_in_the_moment_of_its_turn_gives_it_back() -> None:
    async def scene() -> None:
        admission = Admission(1, 10)
        await admission.enter("a", False)
        late = asyncio.create_task(admission.enter("b", False))
        await settle()
        admission.leave()
        late.cancel()
        await asyncio.gather(late, return_exceptions=True)
        assert (admission.running, admission.waiting) == (0, 0)

    run(scene())


def test_more_may_run_after_the_pool_has_grown() -> None:
    async def scene() -> None:
        office = Office(Admission(1, 10))
        tasks = [asyncio.create_task(office.work("a")) for _ in range(3)]
        await settle()
        assert office.admission.running == 1
        office.admission.resize(3)
        await settle()
        assert office.admission.running == 3
        office.done.set()
        await asyncio.gather(*tasks)

    run(scene())


def test_work_in_parts_lets_others_in_between_and_is_sent_away_by_no_full_queue() -> None:
    async def scene() -> None:
        office = Office(Admission(1, 2))

        async def long(tenant: str) -> None:
            async with office.admission.turn(tenant) as turn:
                for part in range(3):
                    if part:
                        await turn.pass_on()
                    office.order.append(f"{tenant}{part}")
                    await settle()

        first = asyncio.create_task(long("a"))
        await asyncio.sleep(0)
        others = [asyncio.create_task(office.brief(tenant)) for tenant in ("b", "a")]
        await asyncio.gather(first, *others)
        assert office.order == ["a0", "b", "a", "a1", "a2"]
        assert (office.admission.running, office.admission.waiting) == (0, 0)

    run(scene())


def test_full_queue_sends_away_the_last_that_has_not_begun() -> None:
    async def scene() -> None:
        office = Office(Admission(1, 2))
        turn = office.admission.turn("a")
        await turn.__aenter__()
        waiting = [asyncio.create_task(office.work("a")) for _ in range(2)]
        await settle()
        going_on = asyncio.create_task(turn.pass_on())  # the first of them works, this one is the last in line
        await settle()
        other = asyncio.create_task(office.brief("b"))
        await settle()
        assert isinstance(waiting[1].exception(), ApiError) and not going_on.done()
        with pytest.raises(ApiError):
            await office.brief("c")  # whoever waits has begun, or asks for no more than this one
        office.done.set()
        await asyncio.gather(waiting[0], going_on)
        await turn.__aexit__(None, None, None)
        await other
        assert (office.admission.running, office.admission.waiting) == (0, 0)

    run(scene())


@pytest.mark.parametrize("background", [False, True])
def test_work_that_is_cancelled_while_it_waits_to_go_on_leaves_no_turn_behind(background: bool) -> None:
    async def scene() -> None:
        office = Office(Admission(1, 4))

        async def long() -> None:
            async with office.admission.turn("a", background) as turn:
                await settle()
                await turn.pass_on()

        task = asyncio.create_task(long())
        await settle()
        other = asyncio.create_task(office.work("b", background))
        while "b" not in office.order:
            await settle()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert (office.admission.running, office.admission.waiting) == (1, 0)
        office.done.set()
        await other
        assert office.admission.running == 0

    run(scene())
