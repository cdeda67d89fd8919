"""The wire between the gateway and an engine in a child process: what arrives, what is cancelled, what is lost."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from inhouse.core.serving import (
    Ask,
    Constraint,
    Delta,
    EngineLost,
    EngineRefused,
    EngineSilent,
    Sampling,
    Stats,
    Usage,
)
from inhouse.engines.process import Child, Command
from inhouse.engines.wire import WireBackend, WireEngine, _Stream, backend, from_ask, to_ask

ECHO = Path(__file__).with_name("wire_echo.py")


def start_echo(silence_s: float = 20.0, *told: str) -> WireBackend:
    child = Child(Command("echo", (sys.executable, str(ECHO), *told), 30.0))
    return backend("echo", child, child.wait_ready(), silence_s)


@pytest.fixture(scope="module")
def echo() -> Iterator[WireBackend]:
    running = start_echo()
    yield running
    running.stop()


def asked(prompt: str, n: int = 1) -> Ask:
    return Ask(Sampling(max_tokens=100, n=n), prompt=prompt)


async def gather(engine: WireEngine, ask: Ask) -> list[Delta]:
    return [delta async for deltas in engine.submit(ask) for delta in deltas]


def within(running: WireBackend, work: Callable[[WireEngine], Awaitable[object]]) -> object:
    async def whole() -> object:
        engine = running.open()
        try:
            async with asyncio.timeout(20):
                return await work(engine)
        finally:
            await engine.close()

    return asyncio.run(whole())


def test_answers_of_many_requests_arrive_whole_and_in_order(echo: WireBackend) -> None:
    prompts = [f"request {at} · 请求 🙂" for at in range(40)]

    async def work(engine: WireEngine) -> list[list[Delta]]:
        return await asyncio.gather(*(gather(engine, asked(prompt)) for prompt in prompts))

    for prompt, deltas in zip(prompts, within(echo, work), strict=True):
        assert "".join(delta.text for delta in deltas) == prompt
        assert [delta.finish for delta in deltas] == [None] * (len(prompt) - 1) + ["stop"]


@pytest.mark.parametrize("every", [1, 3, 1000])
def test_what_is_pushed_is_not_given_and_what_is_not_taken_keeps_its_place(echo: WireBackend, every: int) -> None:
    prompts = ["#".join(f"{at} a longer request · 请求 🙂") for at in range(5)]  # at each # the child takes its time

    async def one(engine: WireEngine, prompt: str) -> tuple[str, int]:
        got: list[Delta] = []
        offered = pushed = 0

        def push(deltas: list[Delta]) -> bool:
            nonlocal offered, pushed
            offered += 1
            if taken := offered % every == 0:
                pushed += len(deltas)
                got.extend(deltas)
            return taken

        async for deltas in engine.submit(asked(prompt), push):
            got += deltas
        assert got[-1].finish == "stop"
        return "".join(delta.text for delta in got), pushed

    async def work(engine: WireEngine) -> list[tuple[str, int]]:
        return await asyncio.gather(*(one(engine, prompt) for prompt in prompts))

    found = within(echo, work)
    assert [said for said, _ in found] == prompts
    assert any(pushed for _, pushed in found) == (every < 1000)


def test_answer_that_is_whole_stays_so_when_the_engine_is_lost_behind_it() -> None:
    async def go() -> list[Delta]:
        stream = _Stream(1, 1, asyncio.get_running_loop())
        waiting = asyncio.create_task(stream.take())
        await asyncio.sleep(0)
        taken: list[Delta] = []
        stream.push = lambda deltas: not taken.extend(deltas)
        stream.add(Delta("a", finish="stop"))
        stream.fail(EngineLost("engine"))  # in the same turn of the loop
        return taken + await waiting

    assert asyncio.run(go()) == [Delta("a", finish="stop")]


def test_the_last_delta_carries_usage_and_what_else_there_is(echo: WireBackend) -> None:
    deltas = within(echo, lambda engine: gather(engine, asked("ab")))
    assert deltas == [
        Delta("a"),
        Delta("b", 0, 1, "stop", [{"token": "b"}], [{"index": 0}], "so", Usage(5, 6, 7, 0.25, 0.5)),
    ]


def test_several_choices_end_when_each_has_ended(echo: WireBackend) -> None:
    deltas = within(echo, lambda engine: gather(engine, asked("abc", n=3)))
    for index in range(3):
        assert "".join(delta.text for delta in deltas if delta.index == index) == "abc"


def test_a_refusal_tells_its_reason_and_the_others_go_on(echo: WireBackend) -> None:
    async def work(engine: WireEngine) -> str:
        good = asyncio.create_task(gather(engine, asked("#" * 20)))
        with pytest.raises(EngineRefused) as refused:
            await gather(engine, asked("refuse"))
        assert (refused.value.reason, refused.value.tokens, refused.value.keyword) == ("context", 1234, "pattern")
        return "".join(delta.text for delta in await good)

    assert within(echo, work) == "#" * 20


def test_a_request_that_breaks_the_engines_code_fails_alone(echo: WireBackend) -> None:
    async def work(engine: WireEngine) -> str:
        stream = engine.submit(asked("#" * 200))
        told = "".join(delta.text for delta in await anext(stream))
        for question in (gather(engine, asked("deep")), engine.render(asked("deep"))):
            with pytest.raises(EngineRefused, match="failed"):
                await question
        return told + "".join([delta.text async for deltas in stream for delta in deltas])

    assert within(echo, work) == "#" * 200


def test_a_request_that_fails_midway_is_lost_after_what_it_made(echo: WireBackend) -> None:
    async def work(engine: WireEngine) -> str:
        text = ""
        with pytest.raises(EngineLost):
            async for deltas in engine.submit(asked("late")):
                text += "".join(delta.text for delta in deltas)
        return text

    assert within(echo, work) == "l"


def test_closing_the_generator_cancels_the_request(echo: WireBackend) -> None:
    async def work(engine: WireEngine) -> Stats:
        answer = engine.submit(asked("#" * 100_000))
        await anext(answer)
        assert (await engine.stats()).running == 1
        await answer.aclose()
        return await engine.stats()

    assert within(echo, work) == Stats(running=0, cache_used=0.5)


def test_a_gateway_that_goes_takes_its_requests_with_it(echo: WireBackend) -> None:
    async def leave(engine: WireEngine) -> None:
        await anext(engine.submit(asked("#" * 100_000)))

    async def running(engine: WireEngine) -> int:
        while (stats := await engine.stats()).running:
            await asyncio.sleep(0.01)
        return stats.running

    within(echo, leave)
    assert within(echo, running) == 0


def test_questions_are_answered(echo: WireBackend) -> None:
    async def work(engine: WireEngine) -> None:
        assert await engine.tokenize("ab", special=True) == [98, 99]
        assert await engine.detokenize([97, 98]) == "ab"
        assert await engine.embed(["abc", "d"]) == ([[3.0, 0.5], [1.0, 0.5]], 9)
        assert await engine.embed([[1, 2]]) == ([[2.0, 0.5]], 9)
        with pytest.raises(EngineRefused, match="unsupported"):
            await engine.embed([])

    within(echo, work)


def test_a_question_that_loops_is_cut_off(echo: WireBackend) -> None:
    looping = Ask(Sampling(max_tokens=1), prompt="-", adapter="loop")

    async def work(engine: WireEngine) -> float:
        began = time.monotonic()
        with pytest.raises(EngineRefused, match="invalid"):
            await engine.render(looping)
        return time.monotonic() - began

    assert within(echo, work) < 5


def test_a_request_arrives_at_the_child_as_it_was_sent(echo: WireBackend) -> None:
    whole = Ask(
        Sampling(max_tokens=3, temperature=0.5, stop=("a", "\n"), logit_bias={7: -1.5}, logprobs=2, n=2, seed=4),
        messages=[{"role": "user", "content": "你好"}],
        constraint=Constraint("json_schema", {"type": "object"}),
        tools=({"type": "function", "function": {"name": "f"}},),
        tool_choice={"type": "function", "function": {"name": "f"}},
        parallel_tool_calls=False,
        whole=True,
    )
    assert to_ask(json.loads(json.dumps(from_ask(whole)))) == whole
    assert within(echo, lambda engine: engine.render(whole)) == repr(whole)


def test_capabilities_arrive_with_the_ready_report(echo: WireBackend) -> None:
    engine = echo.open()
    assert engine.context_length == 99
    assert engine.capabilities.constraints == {"regex"}
    assert engine.capabilities.adapters == ("law",)


def test_only_this_user_can_reach_the_socket(echo: WireBackend) -> None:
    assert stat.S_IMODE(echo.socket.parent.stat().st_mode) == 0o700


def test_what_is_not_the_protocol_ends_that_connection_only(echo: WireBackend) -> None:
    for nonsense in (b"hello\n", b'{"op":"submit","id":1}\n', b"[" * 100_000 + b"\n", b'{"op":"what","id":1}\n'):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.settimeout(10)
            link.connect(str(echo.socket))
            link.sendall(nonsense)
            reply = link.recv(1000)
        assert reply == (b'{"id": 1, "refused": "unsupported", "tokens": null}\n' if b"what" in nonsense else b"")
    assert echo.healthy()


def test_a_request_that_hears_nothing_is_silent_and_others_are_not() -> None:
    running = start_echo(silence_s=0.4)

    async def work(engine: WireEngine) -> str:
        with pytest.raises(EngineSilent):
            await gather(engine, asked("mute"))
        return "".join(delta.text for delta in await gather(engine, asked("fine")))

    try:
        assert within(running, work) == "fine"
    finally:
        running.stop()


@pytest.mark.parametrize("end", ["crash", "garbage"])
def test_a_broken_engine_loses_every_request(end: str) -> None:
    running = start_echo()

    async def work(engine: WireEngine) -> list[object]:
        mute = asyncio.create_task(gather(engine, asked("mute")))
        await anext(engine.submit(asked("#" * 100_000)))
        return await asyncio.gather(mute, gather(engine, asked(end)), return_exceptions=True)

    try:
        assert [type(lost) for lost in within(running, work)] == [EngineLost, EngineLost]
        if end == "crash":
            with pytest.raises(EngineLost):
                within(running, lambda engine: gather(engine, asked("again")))
            assert not running.healthy()
    finally:
        running.stop()


def test_a_stopped_child_leaves_no_socket_behind() -> None:
    polite, killed = start_echo(), start_echo()
    polite.stop()
    killed.stop(grace_s=0)
    assert not polite.socket.parent.exists()
    deadline = time.monotonic() + 10
    while killed.socket.parent.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not killed.socket.parent.exists()


def test_pairs_are_refused_by_an_engine_that_reads_none(echo: WireBackend) -> None:
    with pytest.raises(EngineRefused, match="unsupported"):
        within(echo, lambda engine: engine.score_pairs([("a", "b")]))


def test_vectors_and_scores_that_fail_are_answered_and_the_next_are_made() -> None:
    running = start_echo(20.0, "pairs")

    async def work(engine: WireEngine) -> object:
        with pytest.raises(EngineRefused, match="failed"):
            await engine.embed(["break"])
        with pytest.raises(EngineRefused, match="failed"):
            await engine.score_pairs([("break", "")])
        return (await engine.score_pairs([("a", "b")])).scores, await engine.embed(["abc"])

    try:
        assert within(running, work) == ([0.5], ([[3.0, 0.5]], 9))
    finally:
        running.stop()
