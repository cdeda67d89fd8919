"""Answers from memory: only greedy ones, only to who asked, and one engine run for equal requests at once."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import AsyncMock

import pytest

from inhouse.core.serving import Ask, Delta, EngineLost, EngineRefused, Push, Sampling, Usage
from inhouse.core.store import Store
from inhouse.release.arms import Arm, Deployment, Release
from inhouse.release.keys import Key, Used, create_key, usage_on
from inhouse.release.keys import Limits as KeyLimits
from inhouse.release.registry import open_registry
from inhouse.release.rules import Overflow, Rules
from inhouse.release.settings import CacheParams, ServeParams
from inhouse.serve.admission import Admission
from inhouse.serve.cache import AnswerCache, Kept, kept_answer, request_name, said
from inhouse.serve.deployments import Deployments
from inhouse.serve.errors import ApiError, unavailable
from inhouse.serve.measured import Measured
from inhouse.serve.metrics import Gauges, Metrics
from inhouse.serve.pipeline import Caller, Pipeline
from inhouse.serve.quick import QuickAnswers
from inhouse.serve.replies import Gathered, Reply
from inhouse.serve.requests import Asked, Limits
from inhouse.serve.router import Serving, Way
from inhouse.serve.target import Target
from inhouse.serve.watchers import Watchers

HELLO = Ask(Sampling(max_tokens=8), messages=[{"role": "user", "content": "Hello"}])


def key(name: str) -> Key:
    return Key(name, name, "", None, None, id=ord(name))


class FakeEngine:
    """Says its number of runs, piece by piece, when it is let."""

    name = "fake"

    def __init__(self) -> None:
        self.runs = 0
        self.closed = 0
        self.go = asyncio.Event()
        self.lost = 0

    async def embed(self, texts: list[str]) -> tuple[list[list[float]], int]:
        if texts == ["no vector"]:
            raise EngineLost
        return [[1.0, 0.0] if "oil" in text else [0.6, 0.8] for text in texts], 1

    async def submit(self, ask: Ask, push: Push | None = None) -> AsyncGenerator[list[Delta], None]:
        self.runs += 1
        run = self.runs
        try:
            yield [Delta(f"run {run}")]
            await self.go.wait()
            if self.lost:
                self.lost -= 1
                raise EngineLost
            yield [Delta(" ends", finish="stop")]
            yield [Delta(tokens=0, usage=Usage(3, 2))]
        finally:
            self.closed += 1


class Seat:
    """A client that keeps what it got."""

    def __init__(self, streams: bool = True) -> None:
        self.streams = streams
        self.gathered = Gathered()
        self.usage: Usage | None = None

    @property
    def text(self) -> str:
        return self.gathered.choices[0].text

    @property
    def sent(self) -> bool:
        return self.streams and bool(self.gathered.choices)

    def begin(self, asked: Asked, release: str) -> Seat:
        return self

    async def add(self, deltas: list[Delta]) -> None:
        self.gathered.add(deltas)

    async def finish(self, usage: Usage) -> None:
        self.usage = usage

    def reset(self) -> None:
        self.gathered = Gathered()


class House:
    """A pipeline over the fake engine."""

    def __init__(self, workspace: Path, params: CacheParams | None = None, rules: Rules | None = None) -> None:
        self.engine = FakeEngine()

        async def pick(ask: None, need: str) -> Any:
            return None, self.engine

        async def relay(ask: Ask, reply: Reply, seen: Measured, waits: bool) -> None:
            for last in (False, True):
                try:
                    async for deltas in self.engine.submit(ask):
                        seen.add(deltas)
                        await reply.add(deltas)
                    return
                except EngineLost:
                    if last:
                        raise
                    reply.reset()
                    seen.reset()

        target = self.target = SimpleNamespace(
            release=SimpleNamespace(label="r:v1"),
            limits=Limits(512, 2, 64, 0.0),
            admission=Admission(4, 10),
            pool=SimpleNamespace(relay=relay, pick=pick),
        )
        arm = Arm(Release(1, "r", 1, "a", True, ""), 1000, "live", "")
        serving = SimpleNamespace(deployment=SimpleNamespace(name="desk", arms=(arm,), rules=rules or Rules()))
        way = Way(cast(Serving, serving), arm, cast(Target, target))
        trials = SimpleNamespace(count=lambda deployment, arm, seen: None)
        registry = self.registry = open_registry(Store(workspace))
        follow = SimpleNamespace(
            enter=lambda model, who, key: way, leave=lambda target: None, trials=trials, registry=registry, saved=[]
        )
        watchers = Watchers(Metrics(Gauges(list)), None, None)
        self.pipeline = Pipeline(cast(Deployments, follow), ServeParams(cache=params or CacheParams()), watchers)

    async def ask(
        self, seat: Seat, tenant: str = "a", ask: Ask = HELLO, refusal: ApiError | None = None, **given: Any
    ) -> Caller:
        async def prepare(limits: Limits) -> Asked:
            if refusal is not None:
                raise refusal
            return Asked("desk", ask)

        caller = Caller(**({"key": key(tenant), "request_id": "1"} | given))
        await self.pipeline.run("desk", prepare, caller, seat)
        return caller


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


async def settle() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


def test_equal_request_is_answered_from_memory_for_the_same_key_only(tmp_path: Path) -> None:
    async def scene() -> None:
        house = House(tmp_path)
        house.engine.go.set()
        first, again, other = Seat(), Seat(), Seat()
        assert (b"x-cache", b"miss") in (await house.ask(first)).notes
        assert (b"x-cache", b"hit") in (await house.ask(again)).notes
        await house.ask(other, tenant="b")
        assert [s.text for s in (first, again, other)] == ["run 1 ends", "run 1 ends", "run 2 ends"]
        assert again.usage == Usage(3, 2) and again.gathered.choices[0].finish == "stop"

    run(scene())


@pytest.mark.parametrize("answers", [True, False])
def test_answer_of_the_overflow_is_not_kept_as_the_releases(
    answers: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        house = House(tmp_path, rules=Rules(overflow=Overflow(url="http://127.0.0.1:9/v1", model="m", queue=1)))
        there = FakeEngine()

        async def relay(ask: Ask, reply: Reply, seen: Measured, waits: bool) -> None:
            if not answers:
                raise EngineRefused("unsupported")
            async for deltas in there.submit(ask):
                await reply.add(deltas)

        async def beyond(*_: Any) -> Any:
            return SimpleNamespace(relay=relay)

        monkeypatch.setattr(house.pipeline.overflows, "beyond", beyond)
        first, beside, again = Seat(), Seat(), Seat()
        leading = asyncio.create_task(house.ask(first))
        await settle()
        following = asyncio.create_task(house.ask(beside))
        await settle()
        house.engine.go.set()
        there.go.set()
        notes = [(await task).notes for task in (leading, following)]
        assert [(b"x-inhouse-overflow", b"remote") in note for note in notes] == [answers, answers]
        assert (b"x-cache", b"shared") in notes[1]
        monkeypatch.setattr(house.pipeline.overflows, "beyond", AsyncMock(return_value=None))
        kept = (b"x-cache", b"miss" if answers else b"hit")
        assert kept in (await house.ask(again)).notes
        assert (there.runs, house.engine.runs) == ((1, 1) if answers else (0, 1))

    run(scene())


def test_request_that_a_canary_could_not_take_counts_against_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        house = House(tmp_path)
        house.engine.go.set()
        canary = Arm(Release(2, "r", 2, "a", True, ""), 100, "canary", "")
        counted: list[tuple[Arm, int]] = []
        follow: Any = house.pipeline.deployments
        way = replace(follow.enter("desk", None, None), failed=canary)
        monkeypatch.setattr(follow, "enter", lambda *_: way)
        monkeypatch.setattr(follow.trials, "count", lambda _, arm, seen: counted.append((arm, seen.status)))
        await house.ask(Seat())
        assert counted == [(canary, 503), (way.arm, 200)]

    run(scene())


def test_refused_requests_are_no_requests_of_the_day(tmp_path: Path) -> None:
    async def scene() -> None:
        house = House(tmp_path)
        house.engine.go.set()
        _, mine = create_key(house.registry.engine, "ann", limits=KeyLimits(tokens_per_day=10, models=("desk",)))
        admission = house.target.admission
        for refusal in (ApiError(400, "bad", "bad"), unavailable()):
            with pytest.raises(ApiError):
                await house.ask(Seat(), refusal=refusal, key=mine, fresh=True)
        house.target.admission = Admission(0, 0)  # a full queue
        with pytest.raises(ApiError) as refused:
            await house.ask(Seat(), key=mine, fresh=True)
        assert refused.value.status == 429
        house.target.admission = admission
        for _ in range(2):  # 5 tokens each; from memory the second time it would be none
            await house.ask(Seat(), key=mine, fresh=True)
        with pytest.raises(ApiError) as refused:
            await house.ask(Seat(), key=mine, fresh=True)
        assert refused.value.status == 429
        house.pipeline.quotas.daily.save()
        used = usage_on(house.registry.engine, datetime.now(UTC).strftime("%Y-%m-%d"))
        assert used == {mine.id: Used(mine.id, requests=2, tokens=10)}

    run(scene())


@pytest.mark.parametrize(
    ("ask", "given"),
    [(replace(HELLO, sampling=Sampling(8, temperature=0.5)), {}), (HELLO, {"fresh": True})],
    ids=["sampled", "no-store"],
)
def test_sampled_and_unwilling_requests_are_not_kept(ask: Ask, given: dict[str, Any], tmp_path: Path) -> None:
    async def scene() -> None:
        house = House(tmp_path)
        house.engine.go.set()
        for _ in range(2):
            caller = await house.ask(Seat(), ask=ask, **given)
            assert caller.notes == []
        assert house.engine.runs == 2

    run(scene())


def test_question_that_means_the_same_is_answered_from_memory_in_the_same_context_only(tmp_path: Path) -> None:
    def asks(content: str, system: str = "Be brief") -> Ask:
        turns = [{"role": "system", "content": system}, {"role": "user", "content": content}]
        return Ask(Sampling(8), messages=turns)

    async def scene() -> None:
        house = House(tmp_path, CacheParams(semantic=0.9))
        house.engine.go.set()
        seen = [
            dict((await house.ask(Seat(), tenant, ask)).notes)[b"x-cache"]
            for ask, tenant in (
                (asks("who does oil?"), "a"),
                (asks("oil: whose is it?"), "a"),  # similar
                (asks("who does grain?"), "a"),  # another question
                (asks("oil: whose is it?"), "b"),  # another tenant
                (asks("oil: whose?", "Be long"), "a"),  # another context
                (asks("no vector"), "a"),
                (asks("grain?"), "a"),
            )
        ]
        assert seen == [b"miss", b"semantic", b"miss", b"miss", b"miss", b"miss", b"semantic"]

    run(scene())


def test_equal_requests_at_once_run_the_engine_once(tmp_path: Path) -> None:
    async def scene() -> None:
        house = House(tmp_path)
        seats = [Seat(), Seat(), Seat(streams=False)]
        tasks = [asyncio.create_task(house.ask(seat)) for seat in seats]
        await settle()
        assert seats[1].text == "run 1"  # it is told while it goes on
        house.engine.go.set()
        callers = await asyncio.gather(*tasks)
        assert house.engine.runs == 1 and {s.text for s in seats} == {"run 1 ends"}
        assert [dict(c.notes)[b"x-cache"] for c in callers] == [b"miss", b"shared", b"shared"]

    run(scene())


class Stalled(Seat):
    """A client that reads nothing before it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = asyncio.Event()

    async def add(self, deltas: list[Delta]) -> None:
        if self.sent:
            await self.reads.wait()
        await super().add(deltas)


@pytest.mark.parametrize("comes_back", [True, False])
def test_nobody_waits_for_the_client_that_asked_first(tmp_path: Path, comes_back: bool) -> None:
    async def scene() -> None:
        house = House(tmp_path)
        first, beside = Stalled(), Seat()
        leading = asyncio.create_task(house.ask(first))
        await settle()
        following = asyncio.create_task(house.ask(beside))
        await settle()
        house.engine.go.set()
        await asyncio.wait_for(following, 5)
        assert (first.text, beside.text, beside.usage) == ("run 1", "run 1 ends", Usage(3, 2))
        assert not leading.done()
        if comes_back:
            first.reads.set()
            await leading
            assert (first.text, first.usage) == ("run 1 ends", Usage(3, 2))
            assert (b"x-cache", b"hit") in (await house.ask(Seat())).notes
        else:
            leading.cancel()
            await asyncio.gather(leading, return_exceptions=True)
        assert house.pipeline.cache.flights == {}
        assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []

    run(scene())


def test_reader_along_of_a_request_that_fails_asks_for_itself(tmp_path: Path) -> None:
    async def scene() -> None:
        house = House(tmp_path)
        leader = asyncio.create_task(house.ask(Seat()))
        await settle()
        seat = Seat(streams=False)
        follower = asyncio.create_task(house.ask(seat))
        await settle()
        leader.cancel()
        await asyncio.gather(leader, return_exceptions=True)
        house.engine.go.set()
        await follower
        assert seat.text == "run 2 ends" and house.pipeline.cache.flights == {}

    run(scene())


def test_answer_made_for_a_reader_along_of_a_failed_request_is_measured_and_guarded_as_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scene() -> None:
        house = House(tmp_path, rules=Rules(guard=("prompt-leak",)))
        seen: list[Measured] = []
        heard: list[str] = []
        monkeypatch.setattr(house.pipeline.watchers, "remember", seen.append)
        monkeypatch.setattr(house.pipeline.guards, "look", lambda said, then: heard.append(said.heard().answer))
        leader = asyncio.create_task(house.ask(Seat()))
        await settle()
        follower = asyncio.create_task(house.ask(Seat(streams=False)))
        await settle()
        leader.cancel()
        await asyncio.gather(leader, return_exceptions=True)
        house.engine.go.set()
        caller = await follower
        assert heard == ["run 2 ends"] and [each.cache for each in seen] == ["miss", "miss"]
        assert caller.notes == [(b"x-cache", b"miss")]

    run(scene())


def test_reader_along_that_has_sent_something_is_told_that_the_request_failed(tmp_path: Path) -> None:
    async def scene() -> None:
        house = House(tmp_path)
        leader = asyncio.create_task(house.ask(Seat()))
        await settle()
        follower = asyncio.create_task(house.ask(Seat()))
        await settle()
        leader.cancel()
        with pytest.raises(ApiError) as failed:
            await follower
        assert failed.value.status == 503

    run(scene())


def test_answer_goes_on_while_somebody_reads_along(tmp_path: Path) -> None:
    async def scene() -> None:
        house = House(tmp_path)
        caller = Caller(key("a"), "1")

        async def prepare(limits: Limits) -> Asked:
            return Asked("desk", HELLO)

        leader = asyncio.create_task(house.pipeline.run("desk", prepare, caller, Seat()))
        await settle()
        assert not caller.wanted()
        follower = asyncio.create_task(house.ask(Seat()))
        await settle()
        assert caller.wanted()
        follower.cancel()
        await asyncio.gather(follower, return_exceptions=True)
        assert not caller.wanted()
        leader.cancel()
        await asyncio.gather(leader, return_exceptions=True)
        assert house.engine.closed == 1

    run(scene())


def test_answer_begun_again_by_another_engine_is_kept_once(tmp_path: Path) -> None:
    async def scene() -> None:
        house = House(tmp_path)
        house.engine.lost = 1
        house.engine.go.set()
        seat, again = Seat(streams=False), Seat()
        await house.ask(seat)
        await house.ask(again)
        assert seat.text == again.text == "run 2 ends"

    run(scene())


def test_answer_is_kept_with_all_of_its_choices_and_none_that_broke_off() -> None:
    whole = [[Delta("a", 0), Delta("x", 1)], [Delta("b", 0, 1, "stop"), Delta("y", 1, 1, "length")]]
    kept = kept_answer(whole, 2, Usage(3, 4), 60.0)
    assert kept is not None and [(d.text, d.index, d.tokens, d.finish) for d in kept.deltas] == [
        ("ab", 0, 2, "stop"), ("xy", 1, 2, "length"),
    ]  # fmt: skip
    assert said(whole) == "ab\nxy"
    for pieces, n in (
        ([], 1),
        ([[Delta("", tokens=0)]], 1),
        ([[Delta("a", 0, 1, "stop")]], 2),
        (whole[:1], 2),
        (whole, 1),
    ):
        assert kept_answer(pieces, n, Usage(3, 4), 60.0) is None
    for told in ({"tool_calls": [{"index": 0}]}, {"reasoning": "so"}):
        assert kept_answer([[Delta("a", finish="stop", **told)]], 1, Usage(3, 4), 60.0) is None


def test_kept_answers_end_with_their_time_and_stay_within_their_memory() -> None:
    cache = AnswerCache(CacheParams(most_mb=0.01))
    for n in range(100):
        cache.keep(str(n), Kept((Delta("x" * 500, finish="stop"),), Usage(1, 1)))
    assert cache.find("99") is not None and cache.find("0") is None
    cache.keep("large", Kept((Delta("x" * 9000),), Usage(1, 1)))
    assert cache.find("large") is None
    cache.clear()
    assert cache.find("99") is None


def test_name_holds_everything_that_decides_the_answer_and_nothing_else() -> None:
    names = [
        request_name(HELLO, "a", "r:v1"),
        request_name(replace(HELLO, whole=True), "a", "r:v1"),
        request_name(HELLO, "b", "r:v1"),
        request_name(HELLO, "a", "r:v2"),
        request_name(replace(HELLO, sampling=Sampling(9)), "a", "r:v1"),
        request_name(replace(HELLO, adapter="x"), "a", "r:v1"),
        request_name(replace(HELLO, messages=[{"role": "user", "content": "Hell"}]), "a", "r:v1"),
    ]
    assert names[0] == names[1] and len(set(names)) == 6


def test_order_of_a_bodys_fields_does_not_decide() -> None:
    from inhouse.serve.requests import prepare, read_chat

    bodies = (
        b'{"model": "m", "messages": [{"role": "user", "content": "Hi"}], "seed": 1}',
        b'{"seed": 1, "messages": [{"content": "Hi", "role": "user"}], "model": "m", "stream": true}',
    )
    asks = [asyncio.run(prepare(read_chat(body), Limits(512, 2, 64, 0.0))).ask for body in bodies]
    assert request_name(asks[0], "a", "r:v1") == request_name(asks[1], "a", "r:v1")


def quick_serving(arms: int = 1) -> Serving:
    arm = Arm(Release(1, "r", 1, "a", True, ""), 1000, "live", "")
    deployment = SimpleNamespace(name="desk", arms=(arm,) * arms, release=arm.release)
    return Serving(cast(Deployment, deployment), {1: cast(Target, SimpleNamespace(release=arm.release))})


def kept_by(name: str, until: float | None = math.inf, limits: KeyLimits = KeyLimits()) -> Caller:  # noqa: B008
    return Caller(replace(key(name), limits=limits), "1", "/v1/chat/completions", kept_until=until)


ANSWER = b'{"id": "chatcmpl-0123", "object": "chat.completion"}'


def test_same_bytes_of_the_same_key_are_answered_with_an_id_of_their_own() -> None:
    quick, serving = QuickAnswers(), quick_serving()
    mine = kept_by("a")
    quick.keep(mine, b"body", ANSWER, serving)
    found = quick.find(mine.key, mine.route, b"body", {"desk": serving})
    assert found is not None
    answer, seen = found
    told = json.loads(answer)
    assert told["object"] == "chat.completion" and re.fullmatch("chatcmpl-[0-9a-f]{24}", told["id"])
    assert (seen.model, seen.cache, seen.status) == ("r:v1", "hit", 200)
    for other in (
        (kept_by("b").key, mine.route, b"body"),
        (mine.key, "/v1/completions", b"body"),
        (mine.key, mine.route, b""),
    ):
        assert quick.find(*other, {"desk": serving}) is None


@pytest.mark.parametrize(
    ("caller", "serving", "now"),
    [
        (kept_by("a", until=0.0), quick_serving(), None),
        (kept_by("a", until=None), quick_serving(), None),
        (kept_by("a", limits=KeyLimits(requests_per_minute=1)), quick_serving(), None),
        (kept_by("a"), quick_serving(arms=2), None),
        (kept_by("a"), quick_serving(), quick_serving()),
    ],
    ids=["too-old", "not-kept", "key-with-quota", "several-arms", "release-changed"],
)
def test_what_may_have_changed_is_not_answered_at_once(caller: Caller, serving: Serving, now: Serving | None) -> None:
    quick = QuickAnswers()
    quick.keep(caller, b"body", ANSWER, serving)
    assert quick.find(caller.key, caller.route, b"body", {"desk": now or serving}) is None


def test_large_bodies_are_not_remembered() -> None:
    quick, serving, mine = QuickAnswers(), quick_serving(), kept_by("a")
    quick.keep(mine, b"x" * 20_000, ANSWER, serving)
    assert quick.find(mine.key, mine.route, b"x" * 20_000, {"desk": serving}) is None
