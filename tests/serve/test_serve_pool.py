"""Which replica answers, and what a request sees of one that is lost, hangs, drains or comes; engines pretend."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from inhouse.core.errors import UserError
from inhouse.core.serving import (
    Ask,
    Capabilities,
    Constraint,
    Delta,
    EngineLost,
    EngineRefused,
    EngineSilent,
    Push,
    Sampling,
    Stats,
    Usage,
)
from inhouse.engines.process import Child, Command
from inhouse.engines.wire import WireBackend, backend
from inhouse.release.settings import ReplicaParams
from inhouse.serve import scale
from inhouse.serve.breaker import FAILURES, Breaker
from inhouse.serve.errors import ApiError
from inhouse.serve.measured import Measured
from inhouse.serve.needs import lacking
from inhouse.serve.pipeline import refusal
from inhouse.serve.pool import Crossover, Pool
from inhouse.serve.prefix import PrefixTable, blocks
from inhouse.serve.replica import Finder, Replica, local, stopped
from inhouse.serve.scale import Demand, Scaler, free_memory

ECHO = Path(__file__).resolve().parents[1] / "engines" / "wire_echo.py"
WHOLE = Capabilities(tools="auto", logprobs=True, logit_bias=True, most_parallel=8)


class Engine:
    """Says its name, and fails as told: one entry of `faults` for each request."""

    def __init__(self, name: str, capabilities: Capabilities = WHOLE) -> None:
        self.name = name
        self.capabilities = capabilities
        self.context_length = 128
        self.faults: list[Exception] = []
        self.late_faults: list[Exception] = []
        self.gate: asyncio.Event | None = None
        self.asked = 0
        self.pushes = False
        self.taken: list[bool] = []
        self.closed = 0

    async def submit(self, ask: Ask, push: Push | None = None) -> AsyncGenerator[list[Delta], None]:
        self.asked += 1
        if self.pushes and push is not None:
            assert not push([Delta("early")])  # the first piece says that the engine answers: it is waited for
        if self.faults:
            raise self.faults.pop(0)
        yield [Delta(self.name)]
        if self.pushes and push is not None:
            self.taken = [push([Delta(" and", tokens=2)]), push([Delta(" on")])]
        if self.gate is not None:
            await self.gate.wait()
        if self.late_faults:
            raise self.late_faults.pop(0)
        yield [Delta("", finish="stop", usage=Usage(1, 1))]

    async def embed(self, texts: Sequence[str] | Sequence[Sequence[int]]) -> tuple[list[list[float]], int]:
        raise EngineRefused("unsupported")

    async def tokenize(self, text: str, special: bool) -> list[int]:
        return []

    async def detokenize(self, tokens: Sequence[int]) -> str:
        return ""

    async def render(self, ask: Ask) -> str:
        return ""

    async def stats(self) -> Stats:
        return Stats()

    async def close(self) -> None:
        self.closed += 1


class Started:
    """A backend elsewhere, so that no process is needed."""

    context_length = 128

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.well = True
        self.hangs = threading.Event()

    def healthy(self) -> bool:
        if self.hangs.is_set():
            time.sleep(3)
        return self.well

    def open(self) -> Engine:
        return self.engine


def replica(name: str, kind: str = "fake", capabilities: Capabilities = WHOLE, **more: Any) -> tuple[Replica, Engine]:
    engine = Engine(name, capabilities)
    started = Started(engine)
    made = Replica(name, kind, Finder(lambda: started), **more)
    wait_for(lambda: made.ready)
    return made, engine


def wait_for(condition: Callable[[], bool], seconds: float = 5) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


class Reply:
    """What a client would have got."""

    def __init__(self, streams: bool = False) -> None:
        self.text = ""
        self.streams = streams
        self.resets = 0

    @property
    def sent(self) -> bool:
        return self.streams and bool(self.text)

    async def add(self, deltas: list[Delta]) -> None:
        self.text += "".join(d.text for d in deltas)

    def push(self, deltas: list[Delta]) -> bool:
        self.text += "".join(d.text for d in deltas)
        return True

    def reset(self) -> None:
        self.resets += 1
        self.text = ""


class Seen:
    engine = ""

    def add(self, deltas: list[Delta]) -> None: ...

    def reset(self) -> None: ...


def ask(words: str = "hello", **more: Any) -> Ask:
    return Ask(Sampling(4), messages=[{"role": "user", "content": words}], **more)


class Broken(Reply):
    def push(self, deltas: list[Delta]) -> bool:
        raise ZeroDivisionError


@pytest.mark.parametrize(("reply", "taken", "said"), [(Reply, True, "a and on"), (Broken, False, "a")])
def test_pool_pieces_are_pushed_once_the_engine_answers_and_what_breaks_there_stays_there(
    reply: type[Reply], taken: bool, said: str
) -> None:
    one, engine = replica("a")
    engine.pushes = True
    seen = Measured()
    got = reply()
    asyncio.run(Pool("r", [one]).relay(ask(), got, seen))
    assert engine.taken == [taken, taken]
    assert got.text == said
    assert seen.written == (5 if taken else 2)


def answered(pool: Pool, request: Ask | None = None, streams: bool = False) -> Reply:
    reply = Reply(streams)
    asyncio.run(pool.relay(request or ask(), reply, Seen()))
    return reply


def test_pool_one_replica_lost_before_the_first_byte_answers_from_another_at_once() -> None:
    (a, one), (b, two) = replica("a"), replica("b")
    one.faults = [EngineLost()]
    began = time.monotonic()
    reply = answered(Pool("r", [a, b]))
    assert (reply.text, one.asked, two.asked) == ("b", 1, 1)
    assert time.monotonic() - began < 0.5
    assert a.running == b.running == 0


def test_pool_replica_lost_in_a_plain_answer_begins_again_on_another() -> None:
    (a, one), (b, _) = replica("a"), replica("b")
    one.late_faults = [EngineLost()]
    reply = answered(Pool("r", [a, b]))
    assert (reply.text, reply.resets) == ("b", 1)


def test_pool_replica_lost_in_a_stream_is_told_and_not_tried_again() -> None:
    (a, one), (b, two) = replica("a"), replica("b")
    one.late_faults = [EngineLost()]
    with pytest.raises(ApiError) as error:
        answered(Pool("r", [a, b]), streams=True)
    assert error.value.status == 503 and two.asked == 0


def test_pool_second_loss_of_one_request_is_told_so_that_it_cannot_end_every_engine() -> None:
    made = [replica(name) for name in "abc"]
    for _, engine in made:
        engine.faults = [EngineLost()]
    with pytest.raises(ApiError) as error:
        answered(Pool("r", [r for r, _ in made]))
    assert error.value.code == "engine_unavailable"
    assert sum(engine.asked for _, engine in made) == 2


def test_pool_busy_replica_is_passed_over_and_a_refused_prompt_is_not_tried_elsewhere() -> None:
    (a, one), (b, two) = replica("a"), replica("b")
    one.faults = [EngineRefused("busy")]
    assert answered(Pool("r", [a, b])).text == "b"
    one.faults = [EngineRefused("context", 999)]
    with pytest.raises(EngineRefused) as refused:
        answered(Pool("r", [a, b]))
    assert refused.value.tokens == 999 and two.asked == 1


def test_pool_request_that_one_engine_cannot_hold_goes_to_another_that_can() -> None:
    able = Capabilities(most_parallel=8, constraints=frozenset({"json_schema"}))
    (a, one), (b, _) = replica("a", capabilities=able), replica("b", capabilities=able)
    one.faults = [EngineRefused("unsupported", keyword="pattern")]
    held = ask(constraint=Constraint("json_schema", {}))
    assert answered(Pool("r", [a, b]), held).text == "b"
    one.faults = [EngineRefused("unsupported", keyword="pattern")]
    c, _ = replica("c", capabilities=Capabilities(most_parallel=8))  # it has no constraints at all
    with pytest.raises(EngineRefused, match="unsupported"):
        answered(Pool("r", [a, c]), held)


@pytest.mark.parametrize(
    ("asked", "keyword", "param", "words"),
    [
        (ask(constraint=Constraint("json_schema", {}, param="guided_json")), "minimum", "guided_json", "'minimum'"),
        (ask(constraint=Constraint("json_schema", {})), None, "response_format", "'response_format'"),
        (ask(tools=({},), tool_choice="required", forced=Constraint("json_schema")), "pattern", "tools", "'pattern'"),
        (ask(), None, None, "cannot serve this request"),
    ],
)
def test_what_an_engine_cannot_serve_is_told_by_the_field_that_was_sent(
    asked: Ask, keyword: str | None, param: str | None, words: str
) -> None:
    error = refusal(EngineRefused("unsupported", keyword=keyword), 128, asked)
    assert (error.status, error.code, error.param) == (400, "unsupported_parameter", param)
    assert words in error.message and "'engine'" not in error.message


def test_pool_all_busy_says_so() -> None:
    (a, one), (b, two) = replica("a"), replica("b")
    one.faults, two.faults = [EngineRefused("busy")], [EngineRefused("busy")]
    with pytest.raises(EngineRefused):
        answered(Pool("r", [a, b]))


def test_pool_silent_engine_is_told_and_its_circuit_notes_it() -> None:
    a, one = replica("a")
    one.faults = [EngineSilent()] * FAILURES
    for _ in range(FAILURES):
        with pytest.raises(EngineSilent):
            answered(Pool("r", [a]))
    assert a.breaker.state == "open" and a.state == "open"


def test_pool_open_circuit_is_not_asked_while_another_replica_is_there() -> None:
    (a, one), (b, _) = replica("a"), replica("b")
    pool = Pool("r", [a, b])
    one.faults = [EngineLost()] * FAILURES
    texts = [answered(pool, ask(f"{n}")).text for n in range(8)]
    assert texts == ["b"] * 8 and one.asked == FAILURES


def test_pool_request_goes_to_the_least_loaded_by_weight() -> None:
    (a, _), (b, _) = replica("a", weight=2.0), replica("b")
    a.running, b.running = 3, 2
    assert answered(Pool("r", [b, a])).text == "a"


def test_pool_same_beginning_goes_to_the_replica_that_read_it_unless_that_is_much_busier() -> None:
    (a, _), (b, _) = replica("a"), replica("b")
    pool = Pool("r", [a, b])
    shared = "a long system text. " * 40
    a.running = 1
    assert answered(pool, ask(shared + "one")).text == "b"
    a.running, b.running = 0, 4
    assert answered(pool, ask(shared + "two")).text == "b"
    b.running = 5
    assert answered(pool, ask(shared + "three")).text == "a"


def test_prefix_hashes_share_the_blocks_of_the_common_beginning() -> None:
    long = "x" * 600
    one, two = blocks(Ask(Sampling(1), prompt=long + "a" * 300)), blocks(Ask(Sampling(1), prompt=long + "b" * 300))
    assert one[:2] == two[:2] and one[2] != two[2]
    assert blocks(Ask(Sampling(1), prompt=long, adapter="x"))[0] != one[0]
    assert len(blocks(Ask(Sampling(1), prompt=list(range(64))))) == 2


def test_prefix_table_is_bounded_and_forgets_the_oldest() -> None:
    table = PrefixTable(most=3)
    for number in range(10):
        table.served([bytes([number])], "a")
    assert len(table) == 3 and table.holder([b"\0"]) is None and table.holder([b"\x09"]) == "a"
    table.forget("a")
    assert len(table) == 0


def test_pool_need_that_one_engine_has_goes_there_and_one_that_none_has_is_named() -> None:
    plain = Capabilities(most_parallel=8)
    (a, _), (b, _) = replica("a", capabilities=plain), replica("b")
    pool = Pool("r", [a, b])
    b.running = 7
    biased = Ask(Sampling(4, logit_bias={1: 1.0}), prompt="x")
    assert answered(pool, biased).text == "b"
    with pytest.raises(ApiError) as error:
        answered(pool, ask(constraint=Constraint("regex", "a+")))
    assert (error.value.status, error.value.param) == (400, "regex")


@pytest.mark.parametrize(
    ("asked", "able", "field"),
    [
        (Ask(Sampling(1, logprobs=0), prompt="x"), Capabilities(), "logprobs"),
        (Ask(Sampling(1, logit_bias={1: 1.0}), prompt="x"), Capabilities(), "logit_bias"),
        (Ask(Sampling(1, n=2), prompt="x"), Capabilities(most_parallel=1), "n"),
        (Ask(Sampling(1), prompt="x", adapter="law"), Capabilities(adapters=("med",)), "model"),
        (ask(), Capabilities(chat=False), "messages"),
        (ask(tools=({},), forced={}), Capabilities(tools="no"), "tools"),
        (ask(tools=({},), forced={}), Capabilities(tools="auto"), None),
        (ask(tools=({},), forced={}), Capabilities(constraints=frozenset({"json_schema"})), None),
        (ask(tools=({},), tool_choice="auto"), Capabilities(), None),
        (ask(constraint=Constraint("json_schema", {})), Capabilities(), "response_format"),
        (ask(constraint=Constraint("regex", "a")), Capabilities(constraints=frozenset({"regex"})), None),
        (ask(constraint=Constraint("regex", "a", param="guided_regex")), Capabilities(), "guided_regex"),
        (
            ask(constraint=Constraint("choice", ("a",), param="structured_outputs.choice")),
            Capabilities(),
            "structured_outputs.choice",
        ),
        (
            ask(constraint=Constraint("json_schema", {}, param="response_format.json_schema.schema")),
            Capabilities(),
            "response_format",
        ),
    ],
)
def test_needs_of_a_request_are_named_by_their_field(asked: Ask, able: Capabilities, field: str | None) -> None:
    assert lacking(asked, able) == field


def test_pool_embeddings_are_asked_of_the_replica_that_has_them() -> None:
    able = Capabilities(embeddings=True)
    (a, _), (b, two) = replica("a"), replica("b", capabilities=able)
    picked = asyncio.run(Pool("r", [a, b]).pick(None, need="embeddings"))
    assert picked == (b, two)
    with pytest.raises(ApiError):
        asyncio.run(Pool("r", [a, b]).pick(None, need="rerank"))


def test_crossover_changes_over_once_and_back_only_when_half_is_left() -> None:
    rule = Crossover("llamacpp", "openvino", 4)
    kinds = [rule.choose(running) for running in (0, 1, 2, 3, 8, 3, 2, 1, 2, 0)]
    assert kinds == ["llamacpp"] * 3 + ["openvino"] * 4 + ["llamacpp"] * 3


def test_long_prompt_goes_to_the_engine_that_is_done_sooner() -> None:
    read, written = {"llamacpp": 350.0, "openvino": 1140.0}, {"llamacpp": 112.0, "openvino": 85.0}
    rule = Crossover("llamacpp", "openvino", 4, read=read, written=written)

    def chat(tokens: int, answer: int) -> Ask:
        return Ask(Sampling(answer), messages=[{"role": "user", "content": "word" * tokens}])

    # 128 tokens of answer: 1.14 s and 1.51 s; 182 prompt tokens make up for it
    assert [rule.choose(0, chat(tokens, 500)) for tokens in (20, 160, 210, 1500)] == ["llamacpp"] * 2 + ["openvino"] * 2
    assert rule.choose(0, chat(100, 8)) == "openvino" and rule.choose(0) == "llamacpp"
    assert rule.choose(0, Ask(Sampling(128), prompt=[1] * 300)) == "openvino"
    assert rule.choose(9, chat(20, 500)) == "openvino"


def test_engine_that_only_reads_faster_gets_long_prompts_alone() -> None:
    (a, _), (b, _) = replica("a", "llamacpp"), replica("b", "openvino")
    pool = Pool("r", [a, b])
    read, written = {"llamacpp": 350.0, "openvino": 1140.0}, {"llamacpp": 112.0, "openvino": 60.0}
    rule = pool.crossover = Crossover("llamacpp", "openvino", math.inf, read=read, written=written)
    a.running = 50
    began = time.monotonic()
    kinds = [asyncio.run(pool.pick(Ask(Sampling(8), prompt=[1] * length)))[0].kind for length in (5, 1500)]
    assert kinds == ["llamacpp", "openvino"] and rule.loaded == "llamacpp"
    assert time.monotonic() - began < 0.5


def test_pool_with_crossover_sends_few_here_and_many_there_and_stays_where_one_is_gone() -> None:
    (a, _), (b, _) = replica("a", "llamacpp"), replica("b", "openvino")
    pool = Pool("r", [a, b])
    pool.crossover = Crossover("llamacpp", "openvino", 3)
    assert answered(pool).text == "a"
    a.running = 2
    assert answered(pool).text == "b"
    b.held = "draining"
    assert answered(pool).text == "a"


def test_requests_that_come_at_once_are_counted_together() -> None:
    (a, _), (b, _) = replica("a", "llamacpp"), replica("b", "openvino")
    pool = Pool("r", [a, b])
    pool.crossover = Crossover("llamacpp", "openvino", 4)

    async def one() -> str:
        chosen, _ = await pool.pick(ask())
        chosen.running += 1
        return chosen.kind

    async def come(count: int) -> list[str]:
        return await asyncio.gather(*(one() for _ in range(count)))

    assert asyncio.run(come(8)) == ["openvino"] * 8
    b.running = 0
    assert asyncio.run(come(1)) == ["llamacpp"]


def test_a_long_prompt_that_goes_to_the_faster_reader_anyway_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    (a, _), (b, _) = replica("a", "llamacpp"), replica("b", "openvino")
    pool = Pool("r", [a, b])
    read, written = {"llamacpp": 350.0, "openvino": 1140.0}, {"llamacpp": 112.0, "openvino": 85.0}
    pool.crossover = Crossover("llamacpp", "openvino", 4, read=read, written=written)
    waited = []

    async def wait() -> None:
        waited.append(True)

    monkeypatch.setattr(pool, "_see_who_comes", wait)
    chosen, _ = asyncio.run(pool.pick(Ask(Sampling(8), prompt=[1] * 1500)))
    assert (chosen.kind, waited) == ("openvino", [])
    chosen, _ = asyncio.run(pool.pick(Ask(Sampling(8), prompt=[1] * 5)))
    assert (chosen.kind, waited) == ("llamacpp", [True])


def test_replicas_that_nobody_else_uses_take_turns_by_their_weights() -> None:
    (a, _), (b, _) = replica("a"), replica("b", "remote")
    b.weight = 3.0
    pool = Pool("r", [a, b])
    kinds = [asyncio.run(pool.pick(Ask(Sampling(8), prompt=f"question {n}")))[0].name for n in range(40)]
    assert 9 <= kinds.count("a") <= 11
    (late, _) = replica("late")
    pool.add(late)
    kinds = [asyncio.run(pool.pick(Ask(Sampling(8), prompt=f"later {n}")))[0].name for n in range(40)]
    assert 7 <= kinds.count("late") <= 9  # its share of all 5, not all until it has had as many as the others
    a.held = "draining"
    for n in range(40):
        asyncio.run(pool.pick(Ask(Sampling(8), prompt=f"meanwhile {n}")))
    a.held = ""
    kinds = [asyncio.run(pool.pick(Ask(Sampling(8), prompt=f"at last {n}")))[0].name for n in range(40)]
    assert 7 <= kinds.count("a") <= 9  # nor does one that was away


def test_pool_parallel_counts_engines_of_two_kinds_on_one_machine_once() -> None:
    made = [
        replica("a", "llamacpp", parallel=2),
        replica("b", "openvino", parallel=2),
        replica("c", "remote", parallel=5),
    ]
    pool = Pool("r", [r for r, _ in made])
    assert pool.parallel == 7 and pool.context_length == 128 and pool.restarts == 0
    assert [t["state"] for t in pool.told()] == ["ready"] * 3


def test_pool_drained_replica_finishes_what_it_has_and_gets_nothing_more() -> None:
    (a, one), (b, _) = replica("a"), replica("b")
    pool = Pool("r", [a, b])

    async def scene() -> tuple[str, str]:
        one.gate = asyncio.Event()
        first = Reply()
        running = asyncio.create_task(pool.relay(ask("1"), first, Seen()))
        while not a.running:
            await asyncio.sleep(0.001)
        draining = asyncio.create_task(asyncio.to_thread(pool.drain, a, 5.0))
        while a.held != "draining":
            await asyncio.sleep(0.001)
        second = Reply()
        await pool.relay(ask("2"), second, Seen())
        assert not draining.done()
        one.gate.set()
        await running
        await draining
        await asyncio.sleep(0)
        await pool.disconnect()
        return first.text, second.text

    assert asyncio.run(scene()) == ("a", "b")
    assert pool.replicas == [b] and one.closed == 1


def test_replica_that_does_not_answer_its_health_check_is_asked_last_within_two_seconds() -> None:
    (a, one), (b, _) = replica("a"), replica("b")
    backend = a.keeper.current
    assert isinstance(backend, Started)
    backend.hangs.set()
    began = time.monotonic()
    wait_for(lambda: a.suspect)
    assert time.monotonic() - began < 2.0
    pool = Pool("r", [a, b])
    assert answered(pool).text == "b" and a.state == "suspect"
    b.held = "draining"
    assert answered(pool).text == "a"  # better than nobody
    a.close()
    b.close()
    assert one.asked == 1


def test_finder_goes_on_looking_until_the_endpoint_is_there() -> None:
    engine = Engine("late")
    found = [UserError("process.hung", name="u"), Started(engine)]

    def find() -> Started:
        first = found.pop(0)
        if isinstance(first, Exception):
            raise first
        return first

    late = Replica("late", "remote", Finder(find))
    assert late.state == "starting"
    pool = Pool("r", [late])
    assert answered(pool).text == "late"  # waits
    late.kill()  # nothing of ours to kill
    late.close()


def test_pool_without_a_trusted_replica_for_long_says_so_at_once() -> None:
    a, _ = replica("a")
    pool = Pool("r", [a])
    answered(pool)
    for _ in range(FAILURES + 3):
        a.breaker.begin()
        a.breaker.failed()
    began = time.monotonic()
    with pytest.raises(ApiError) as error:
        answered(pool)
    assert error.value.status == 503 and time.monotonic() - began < 0.5


def test_engine_whose_answers_begin_and_break_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    (a, one), (b, _) = replica("a"), replica("b")

    async def breaks(asked: Ask, push: Push | None = None) -> AsyncGenerator[list[Delta], None]:
        yield [Delta("", tokens=0)]  # who speaks
        yield [Delta("half")]
        raise EngineLost

    async def says_nothing(asked: Ask, push: Push | None = None) -> AsyncGenerator[list[Delta], None]:
        yield [Delta("", tokens=0)]
        raise EngineLost

    monkeypatch.setattr(one, "submit", says_nothing)
    assert answered(Pool("r", [a, b])).text == "b"  # nobody has seen anything of it
    monkeypatch.setattr(one, "submit", breaks)
    for _ in range(2):
        a.taken = -1.0
        with pytest.raises(ApiError):
            answered(Pool("r", [a, b]), streams=True)
    assert a.breaker.state == "open" and answered(Pool("r", [a, b])).text == "b"


def test_breaker_opens_after_failures_in_a_row_lets_one_try_and_waits_longer_each_time() -> None:
    now = [0.0]
    breaker = Breaker(lambda: now[0])
    breaker.failed()
    breaker.succeeded()
    for _ in range(FAILURES - 1):
        breaker.failed()
    assert breaker.state == "closed"
    breaker.failed()
    assert breaker.state == "open" and breaker.wait_s == 1.0
    now[0] = 1.0
    assert breaker.state == "half_open"
    breaker.begin()
    assert breaker.state == "open"  # for the others
    breaker.failed()
    assert breaker.wait_s == 2.0
    now[0] = 3.0
    breaker.begin()
    breaker.succeeded()
    assert breaker.state == "closed" and breaker.wait_s == 0.0


def test_demand_starts_one_after_a_second_of_waiting_and_stops_one_that_was_idle_long() -> None:
    demand = Demand(ReplicaParams(least=1, most=2, scale_up_waiting=3, scale_down_idle_s=10))
    steps = [
        demand.decide(2, 2, (1, 2), 1.0),
        demand.decide(3, 2, (1, 2), 2.0),
        demand.decide(0, 2, (1, 2), 2.9),  # it passed
        demand.decide(3, 2, (1, 2), 4.0),
        demand.decide(9, 2, (1, 2), 5.0),
        demand.decide(9, 4, (2, 2), 9.0),  # no more than most
        demand.decide(0, 3, (2, 2), 20.0),  # one could not hold three
        demand.decide(0, 2, (2, 2), 30.0),
        demand.decide(0, 1, (2, 2), 40.0),
        demand.decide(0, 0, (1, 2), 90.0),  # no fewer than least
    ]
    assert steps == [0, 0, 0, 0, 1, 0, 0, 0, -1, 0]


def test_scaler_adds_a_replica_while_requests_wait_and_drains_it_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "LOOK_S", 0.01)
    monkeypatch.setattr(scale, "WAITED_S", 0.05)
    pool = Pool("r", [replica("a")[0]])
    waiting = [5]
    params = ReplicaParams(least=1, most=2, scale_up_waiting=2, scale_down_idle_s=0.05)
    scaler = Scaler(pool, params, lambda: waiting[0], lambda kind: replica("b", kind)[0], needs=1)
    wait_for(lambda: len(pool.replicas) == 2)
    waiting[0] = 0
    wait_for(lambda: len(pool.replicas) == 1)
    scaler.close()


def test_scaler_starts_nothing_without_memory_or_when_loading_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "LOOK_S", 0.01)
    monkeypatch.setattr(scale, "WAITED_S", 0.02)
    monkeypatch.setattr(scale, "RETRY_S", 0.02)
    tried: list[str] = []

    def make(kind: str) -> Replica:
        tried.append(kind)
        raise UserError("process.hung", name=kind)

    params = ReplicaParams(least=1, most=2)
    pool = Pool("r", [replica("a")[0]])
    scaler = Scaler(pool, params, lambda: 9, make, needs=2**60)
    other = Scaler(pool, params, lambda: 9, make, needs=1)
    wait_for(lambda: len(tried) > 1)
    scaler.close()
    other.close()
    assert len(pool.replicas) == 1


def test_free_memory_is_what_the_container_leaves(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert free_memory(tmp_path) == 600
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(tmp_path) == free_memory(tmp_path / "none") or free_memory(tmp_path) > 1000


def test_pool_replicas_killed_and_stopped_in_a_loop_fail_no_plain_request() -> None:
    def start() -> WireBackend:
        child = Child(Command("echo", (sys.executable, str(ECHO)), 30.0))
        return backend("echo", child, child.wait_ready())

    pool = Pool("r", [local(name, "echo", start, 8) for name in "ab"])
    failed, whole, noticed = [], [], []

    async def client(until: threading.Event) -> None:
        while not until.is_set():
            reply = Reply()
            began = time.monotonic()
            try:
                await pool.relay(Ask(Sampling(9), prompt="#12345678"), reply, Seen())
            except ApiError as error:
                failed.append(error)
            whole.append(reply.text)
            noticed.append(time.monotonic() - began)

    def harm(until: threading.Event) -> None:
        for number, how in enumerate((signal.SIGKILL, signal.SIGSTOP, signal.SIGSTOP, signal.SIGKILL)):
            wait_for(lambda: all(r.ready for r in pool.replicas), 20)
            time.sleep(0.2)
            running = pool.replicas[number % 2].keeper.current
            assert isinstance(running, WireBackend)
            os.kill(running.process.pid, how)
            wait_for(lambda number=number, gone=running: pool.replicas[number % 2].keeper.current is not gone, 10)  # type: ignore[misc]
        wait_for(lambda: all(r.ready for r in pool.replicas), 20)
        until.set()

    async def scene() -> None:
        until = threading.Event()
        harming = asyncio.create_task(asyncio.to_thread(harm, until))
        harming.add_done_callback(lambda _: until.set())
        await asyncio.gather(harming, *(client(until) for _ in range(8)))
        await pool.disconnect()

    try:
        asyncio.run(scene())
    finally:
        pool.close()
    assert not failed and set(whole) == {"#12345678"} and len(whole) > 100
    assert pool.restarts == 4
    assert max(noticed) < 2.0


def test_process_that_is_gone_is_not_stopped() -> None:
    assert not stopped(2**22 + 1)
