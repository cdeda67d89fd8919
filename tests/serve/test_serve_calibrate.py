"""`engine: auto`: what measuring concludes, that it never stands in anybody's way, and that it is done once."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from inhouse.core.errors import UserError
from inhouse.core.model import ModelFacts
from inhouse.core.serving import Ask, Capabilities, Delta, EngineLost, EngineRefused, Push, Sampling, Stats, Usage
from inhouse.engines.backend import EngineSettings
from inhouse.release.settings import RemoteParams, ReplicaParams, ServeParams
from inhouse.serve import auto, calibrate
from inhouse.serve.auto import AutoChoice, Second
from inhouse.serve.calibrate import Calibration, Disturbed, agreement, concluded, rate, undisturbed
from inhouse.serve.pool import Pool
from inhouse.serve.replica import Finder, Replica
from inhouse.serve.starting import engine_settings, kinds_for, memory_of, remote, versions

ANSWER = "a plain answer of words."


class Engine:
    """Writes ANSWER letter by letter; one letter of each client takes `alone_s + running * beside_s`."""

    context_length = 128
    capabilities = Capabilities(most_parallel=8)

    def __init__(self, name: str, alone_s: float = 0.0, beside_s: float = 0.0, odd: str = "") -> None:
        self.name = name
        self.alone_s = alone_s
        self.beside_s = beside_s
        self.odd = odd  # a letter that it writes in place of every other one
        self.lost = False
        self.running = 0
        self.asked = 0
        self.closed = 0

    async def submit(self, ask: Ask, push: Push | None = None) -> AsyncGenerator[list[Delta], None]:
        self.asked += 1
        if self.lost:
            raise EngineLost
        self.running += 1
        begun = len(ask.prompt) - 1 if ask.prompt is not None else 0
        try:
            for place in range(begun, begun + ask.sampling.max_tokens):
                await asyncio.sleep(self.alone_s + self.running * self.beside_s)
                letter = ANSWER[place % len(ANSWER)]
                yield [Delta(self.odd if self.odd and place % 2 else letter)]
            yield [Delta("", tokens=0, finish="length", usage=Usage(1, 1))]
        finally:
            self.running -= 1

    async def embed(self, texts: Sequence[str] | Sequence[Sequence[int]]) -> tuple[list[list[float]], int]:
        raise EngineRefused("unsupported")

    async def tokenize(self, text: str, special: bool) -> list[int]:
        return [1] if special else [ord(letter) for letter in text]

    async def detokenize(self, tokens: Sequence[int]) -> str:
        return "".join(map(chr, tokens))

    async def render(self, ask: Ask) -> str:
        return "<user>"

    async def stats(self) -> Stats:
        return Stats()

    async def close(self) -> None:
        self.closed += 1


class Started:
    context_length = 128

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def healthy(self) -> bool:
        return True

    def open(self) -> Engine:
        return self.engine


def replica(engine: Engine) -> Replica:
    made = Replica(engine.name, engine.name, Finder(lambda: Started(engine)), 8)
    wait_for(lambda: made.ready)
    return made


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "LOOK_S", 0.005)
    monkeypatch.setattr(auto, "IDLE_S", 0.03)
    monkeypatch.setattr(calibrate, "WARM_S", 0.02)
    whole = calibrate.calibrate
    monkeypatch.setattr(calibrate, "calibrate", lambda *given: whole(*given, 0.15))


@pytest.mark.parametrize(
    ("first", "second", "few", "many", "crossover"),
    [
        (
            {1: 110, 8: 246},
            {1: 77, 8: 342},
            "a",
            "b",
            3,
        ),  # ratios 0.7 and 1.39: ln -0.357 and 0.329; 8 ** (0.357 / 0.686) = 2.95
        ({1: 110, 8: 246}, {1: 77, 8: 200}, "a", "a", None),
        ({1: 100, 8: 200}, {1: 120, 8: 300}, "b", "b", None),
        ({1: 100, 8: 200}, {1: 103, 8: 300}, "a", "b", 2),
        ({1: 100, 8: 200}, {1: 10, 8: 211}, "a", "b", 8),
        ({1: 100}, {1: 90}, "a", "a", None),
    ],
)
def test_conclusion_follows_from_the_rates(
    first: dict[int, float], second: dict[int, float], few: str, many: str, crossover: int | None
) -> None:
    found = concluded("a", "b", {"a": first, "b": second}, 1.0)
    assert (found.few, found.many, found.crossover) == (few, many, crossover)


def test_engine_that_scales_better_wins_from_a_crossover_on() -> None:
    few, many = Engine("few", 0.0, 0.002), Engine("many", 0.005)  # 500 a second for all, or 200 a second for each
    found = asyncio.run(calibrate.calibrate(few, many, 8, lambda: False))
    assert (found.few, found.many) == ("few", "many")
    assert found.crossover in (2, 3, 4)  # equal at 2.5
    assert found.agreement == 1.0
    assert found.prompt_tokens_per_s["few"] > found.prompt_tokens_per_s["many"] > 0
    assert few.running == many.running == 0


def test_engine_that_only_reads_faster_is_kept_for_long_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    async def read(engine: Engine) -> float:
        return {"writer": 400.0, "reader": 1400.0}[engine.name]

    monkeypatch.setattr(calibrate, "reading", read)
    writer, reader = Engine("writer", 0.004), Engine("reader", 0.01)
    found = asyncio.run(calibrate.calibrate(writer, reader, 8, lambda: False))
    assert (found.few, found.many, found.crossover) == ("writer", "reader", None)
    other = asyncio.run(calibrate.calibrate(reader, writer, 8, lambda: False))
    assert (other.few, other.many) == (
        "writer",
        "writer",
    )  # the other way round one is better at everything but reading


def test_agreement_counts_tokens_behind_the_same_beginning() -> None:
    right, odd = Engine("right"), Engine("odd", odd="~")
    assert asyncio.run(agreement(right, Engine("same"))) == 1.0
    assert asyncio.run(agreement(right, odd)) == 0.5


def test_engines_that_differ_are_not_measured_and_the_first_answers() -> None:
    right, odd = Engine("right"), Engine("odd", odd="~")
    found = asyncio.run(calibrate.calibrate(right, odd, 8, lambda: False))
    assert (found.few, found.many, found.tokens_per_s) == ("right", "right", {})


def test_rate_counts_tokens_of_all_clients_and_tells_a_lost_engine() -> None:
    counted = asyncio.run(rate(Engine("e", 0.01), 4, 0.3))
    assert 200 < counted < 400  # 4 clients, at most 100 a second each
    lost = Engine("e")
    lost.lost = True
    with pytest.raises(EngineLost):
        asyncio.run(rate(lost, 2, 0.2))


def test_work_ends_at_once_when_somebody_asks() -> None:
    busy = [False]

    async def scene() -> float:
        asyncio.get_running_loop().call_later(0.05, busy.__setitem__, 0, True)
        began = time.monotonic()
        with pytest.raises(Disturbed):
            await undisturbed(asyncio.sleep(5), lambda: busy[0])
        return time.monotonic() - began

    assert asyncio.run(scene()) < 0.5


def chosen(
    tmp_path: Path,
    second: Engine | Exception,
    mode: Literal["background", "off", "before"] = "background",
    needs: int = 1,
) -> tuple[Pool, AutoChoice, Engine]:
    first = Engine("few", 0.0, 0.002)

    def start() -> Replica:
        if isinstance(second, Exception):
            raise second
        return replica(second)

    pool = Pool("r", [replica(first)])
    return pool, AutoChoice(pool, Second(start, needs, tmp_path / "serve" / "found.json"), mode), first


def test_second_engine_is_used_after_it_was_measured_and_measured_only_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    changes: list[int] = []
    pool, choice, _ = chosen(tmp_path, Engine("many", 0.005))
    pool.on_change = lambda: changes.append(pool.parallel)
    assert pool.crossover is None  # nobody waits for it
    wait_for(lambda: choice.state == "done")
    assert pool.crossover is not None and (pool.crossover.few, pool.crossover.many) == ("few", "many")
    assert [r.state for r in pool.replicas] == ["ready", "ready"] and changes
    assert choice.told()["tokens_per_s"]["many"] and "many from" in caplog.text
    choice.close()
    pool.close()
    again = Engine("many", 0.005)
    pool, choice, _ = chosen(tmp_path, again, mode="off")  # known: used, and not measured
    wait_for(lambda: choice.state == "done")
    assert pool.crossover is not None and again.asked == 0
    choice.close()
    pool.close()


def test_measuring_before_the_first_request_is_waited_for(tmp_path: Path) -> None:
    pool, choice, _ = chosen(tmp_path, Engine("many", 0.005), mode="before")
    assert choice.state == "done" and pool.crossover is not None
    pool.close()


def test_slower_second_engine_is_stopped_and_not_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What was found beside other programs, as tests are for each other, would be measured again.
    monkeypatch.setattr(auto.machine_load, "others_since", lambda since: 0.0)
    slow = Engine("slow", 0.02)
    pool, choice, first = chosen(tmp_path, slow)
    wait_for(lambda: choice.state == "done")
    assert [r.kind for r in pool.replicas] == ["few"] and pool.crossover is None
    choice.close()
    pool, choice, _ = chosen(tmp_path, UserError("process.hung", name="never started"))
    wait_for(lambda: choice.state == "done")
    choice.close()
    assert first.closed == slow.closed > 0


def test_traffic_stops_measuring_and_it_begins_again_later(tmp_path: Path) -> None:
    second = Engine("many", 0.005)
    pool, choice, _ = chosen(tmp_path, second)
    wait_for(lambda: choice.state == "measuring" and second.asked > 0)
    pool.replicas[0].running = 1
    wait_for(lambda: choice.state == "waiting")
    assert second.running == 0
    pool.replicas[0].running = 0
    wait_for(lambda: choice.state == "done")
    choice.close()


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (UserError("process.hung", name="x"), "failed"),
        (UserError("openvino.unsupported", path="m.gguf", what="x", known="y"), "off"),
    ],
)
def test_second_engine_that_does_not_start_leaves_the_first_alone(tmp_path: Path, error: UserError, state: str) -> None:
    pool, choice, _ = chosen(tmp_path, error)
    wait_for(lambda: choice.state == state)
    assert choice.told() == {"state": state, "detail": str(error)} and len(pool.replicas) == 1


def test_second_engine_that_is_lost_while_it_is_measured_is_stopped(tmp_path: Path) -> None:
    second = Engine("many")
    second.lost = True
    pool, choice, _ = chosen(tmp_path, second)
    wait_for(lambda: choice.state == "failed")
    assert "EngineLost" in choice.detail and len(pool.replicas) == 1


def test_without_memory_or_with_calibration_off_only_the_first_engine_runs(tmp_path: Path) -> None:
    pool, choice, _ = chosen(tmp_path, Engine("many"), needs=2**60)
    wait_for(lambda: choice.state == "failed")
    assert "MB" in choice.detail and len(pool.replicas) == 1
    _, choice, _ = chosen(tmp_path, Engine("many"), mode="off")
    wait_for(lambda: choice.state == "off")


def test_release_that_is_retired_stops_measuring(tmp_path: Path) -> None:
    second = Engine("many", 0.005)
    pool, choice, _ = chosen(tmp_path, second)
    wait_for(lambda: choice.state == "measuring")
    pool.close()
    choice.close()
    assert choice.result is None and second.running == 0


def test_engine_known_to_be_faster_is_started_under_constant_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "KNOWN_S", 0.1)
    monkeypatch.setattr(auto, "IDLE_S", 60.0)
    known = Calibration(few="few", many="many", crossover=2, agreement=1.0)
    calibrate.keep(tmp_path / "serve" / "found.json", known)
    pool, choice, _ = chosen(tmp_path, Engine("many"))
    pool.replicas[0].running = 5
    wait_for(lambda: choice.state == "done")
    assert pool.crossover is not None
    pool.close()


def test_engine_that_has_loaded_when_the_release_is_gone_is_stopped(tmp_path: Path) -> None:
    second = Engine("many")
    loaded = threading.Event()
    pool = Pool("r", [replica(Engine("few"))])

    def start() -> Replica:
        loaded.wait(10)
        return replica(second)

    choice = AutoChoice(pool, Second(start, 1, tmp_path / "found.json"), "background")
    wait_for(lambda: choice.state == "starting")
    pool.close()
    loaded.set()
    choice.close()
    wait_for(lambda: len(pool.replicas) == 1)
    assert second.asked == 0


def test_kept_result_that_cannot_be_read_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    assert calibrate.kept(path) is None
    path.write_text("{nonsense")
    assert calibrate.kept(path) is None
    found = Calibration(few="a", many="b", crossover=3, agreement=0.9, tokens_per_s={"a": {1: 2.0, 8: 3.0}})
    calibrate.keep(path, found)
    assert calibrate.kept(path) == found


def test_result_is_filed_under_everything_that_it_depends_on() -> None:
    given: list[Any] = ["ab" * 32, ["cpu", "2"], {"llamacpp": "1"}, {"parallel": 2}]
    names = {calibrate.name_of(*given)}
    for place, other in enumerate(("cd" * 32, ["cpu", "4"], {"llamacpp": "2"}, {"parallel": 8})):
        names.add(calibrate.name_of(*given[:place], other, *given[place + 1 :]))
    assert len(names) == 5


def test_engine_follows_from_the_file_and_one_that_does_not_read_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inhouse.serve.starting.find_spec", lambda name: None)
    assert kinds_for(Path("m.gguf"), "auto", "r:v1") == ("llamacpp",)
    monkeypatch.setattr("inhouse.serve.starting.find_spec", lambda name: object())
    assert kinds_for(Path("m.gguf"), "auto", "r:v1") == ("llamacpp", "openvino")
    assert kinds_for(Path("merged"), "auto", "r:v1") == ("transformers",)
    assert kinds_for(Path("m.gguf"), "transformers", "r:v1") == ("transformers",)
    with pytest.raises(UserError) as error:
        kinds_for(Path("merged"), "openvino", "r:v1")
    assert error.value.code == "serve_pool.engine_reads"


def test_engines_of_one_machine_share_its_threads_and_need_weights_and_cache(tmp_path: Path) -> None:
    params = ServeParams(threads=8, replicas=ReplicaParams(least=1, most=4))
    assert engine_settings(params, params).threads == 2
    assert engine_settings(ServeParams(threads=8), ServeParams()).threads == 8
    assert engine_settings(ServeParams(), ServeParams()).threads is None
    (tmp_path / "model.safetensors").write_bytes(b"x" * 1000)
    facts = ModelFacts(format="safetensors", main=".", name="m", layers=2, hidden=64, heads=4, kv_heads=2)
    settings = EngineSettings(context_length=100, parallel=3)
    # keys and values (2), 2 bytes, 2 layers, 2 heads of 16 numbers, 300 tokens
    assert memory_of(tmp_path, settings, facts) == 1000 + 2 * 2 * 2 * 2 * 16 * 300
    assert versions(("transformers",))["transformers"] != "-"


def test_remote_replica_is_looked_for_and_does_not_stop_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    made = remote(1, RemoteParams(url="http://127.0.0.1:9/v1", model="m", weight=2.0, parallel=3), 9.0)
    assert (made.kind, made.parallel, made.weight, made.ready) == ("remote", 3, 2.0, False)
    made.close()


def test_sampling_of_the_measured_requests_is_greedy() -> None:
    assert calibrate._ask("x", 5).sampling == Sampling(5, temperature=0.0)
