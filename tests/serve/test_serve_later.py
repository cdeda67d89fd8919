"""Timers that many requests share: in time and in order, taken back, and deadlines as asyncio.timeout has them."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any

import pytest

from inhouse.serve.later import Deadline, Later


class Loop(asyncio.SelectorEventLoop):
    """Counts the timers that it is asked for."""

    timers = 0

    def call_at(self, *given: Any, **named: Any) -> Any:
        self.timers += 1
        return super().call_at(*given, **named)


def test_calls_come_after_the_time_in_order_and_not_when_taken_back() -> None:
    async def go() -> tuple[list[str], float]:
        called: list[str] = []
        loop = asyncio.get_running_loop()
        later = Later(0.05)
        began = loop.time()
        numbers = [later.add(lambda name=name: called.append(name)) for name in "abcd"]  # type: ignore[misc]
        later.cancel(numbers[0])
        later.cancel(numbers[2])
        while len(called) < 2:
            await asyncio.sleep(0.001)
        took = loop.time() - began
        later.cancel(numbers[1])  # too late, and harmless
        await asyncio.sleep(0.06)
        return called, took

    called, took = asyncio.run(go())
    assert called == ["b", "d"]
    assert took >= 0.05


def test_call_that_fails_keeps_no_other_from_being_called() -> None:
    async def go() -> list[str]:
        called: list[str] = []
        later = Later(0.01)
        later.add(lambda: called.append(str(1 / 0)))
        later.add(lambda: called.append("with it"))
        await asyncio.sleep(0.05)
        later.add(lambda: called.append("after it"))
        await asyncio.sleep(0.05)
        return called

    assert asyncio.run(go()) == ["with it", "after it"]


def test_calls_know_nothing_of_the_request_that_happened_to_be_first() -> None:
    who: ContextVar[str] = ContextVar("who", default="nobody")

    async def go() -> list[str]:
        seen: list[str] = []
        later = Later(0.01)
        for name in "ab":
            who.set(name)
            later.add(lambda: seen.append(who.get()))
        await asyncio.sleep(0.05)
        return seen

    assert asyncio.run(go()) == ["nobody", "nobody"]


def test_many_requests_one_after_the_other_take_one_timer_at_a_time() -> None:
    loop = Loop()
    later = Later(60.0)

    async def go() -> None:
        for _ in range(1000):
            later.cancel(later.add(lambda: None))

    loop.run_until_complete(go())
    assert loop.timers == 1
    assert not later._waiting
    loop.close()


def test_another_loop_begins_anew() -> None:
    later = Later(0.01)

    async def go() -> bool:
        called = asyncio.Event()
        later.add(called.set)
        await asyncio.wait_for(called.wait(), 5)
        return True

    async def left() -> None:
        later.add(lambda: None)

    asyncio.run(left())
    assert asyncio.run(go())


def test_deadline_is_a_timeout_only_for_what_takes_longer() -> None:
    later = Later(0.02)

    async def go(seconds: float) -> str:
        with Deadline(later):
            await asyncio.sleep(seconds)
        return "done"

    assert asyncio.run(go(0)) == "done"
    with pytest.raises(TimeoutError):
        asyncio.run(go(5))


def test_who_is_cancelled_within_a_deadline_is_cancelled_and_may_go_on_after_one() -> None:
    later = Later(0.02)

    async def work() -> None:
        with Deadline(later):
            await asyncio.sleep(5)

    async def go() -> int:
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(TimeoutError):
            await work()
        await asyncio.sleep(0)  # would raise, were the cancellation still asked for
        current = asyncio.current_task()
        assert current is not None
        return current.cancelling()

    assert asyncio.run(go()) == 0


def test_faults_in_the_work_are_told_as_they_are() -> None:
    later = Later(5)

    async def go() -> None:
        with Deadline(later):
            raise KeyError

    with pytest.raises(KeyError):
        asyncio.run(go())
    assert not later._waiting
