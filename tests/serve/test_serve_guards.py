"""Guards of answers: alarms count for the release that answered, and a canary that raises too many is taken back."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from release_workspace import make_model, make_report, run_stage
from serve_endpoint import Endpoint

from inhouse.api.deployments import RulesRequest, change_rules, experiment_of
from inhouse.core.errors import MissingExtra, UserError
from inhouse.core.serving import Ask, Delta, Sampling, Usage
from inhouse.core.store import Store
from inhouse.guard.answers import Alarm
from inhouse.release.arms import Deployment, Release
from inhouse.release.registry import Registry, open_registry
from inhouse.release.request_records import read_records
from inhouse.release.rules import CanaryRules, Rules
from inhouse.release.settings import ReleaseNode, ServeParams
from inhouse.serve import guards
from inhouse.serve.guards import Guards, Overheard
from inhouse.serve.pipeline import NoReply

RESIDENT = "11010519491231002X"  # of the examples in GB 11643
REPEATS = (
    "{% for m in messages %}{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}"
    + f"ID {RESIDENT}, ID {RESIDENT}, ID {RESIDENT}, ID"
    + "{% endif %}"
)
BOTH: tuple[Alarm, ...] = ("personal-data", "prompt-leak")


def that_repeats(gguf: Path, folder: Path) -> Path:
    """The same model with a template that makes it say a number which no client has written."""
    weights = gguf.read_bytes()
    begin = weights.index(b"{% for message in messages %}")
    length = int.from_bytes(weights[begin - 8 : begin], "little")
    made = folder / "repeats.gguf"
    made.write_bytes(weights[:begin] + REPEATS.encode().ljust(length) + weights[begin + length :])
    return made


def on_trial(root: Path, live: Path, canary: Path) -> Registry:
    """`desk`: the live model, and the other one as a canary for half of the requests, both under guard."""
    store = Store(root)
    store.create()
    report = make_report(store, {"tuned.accuracy": {"value": 0.8, "n": 100}})
    registry = open_registry(store)
    serve = ServeParams(context_length=512, max_tokens=22, parallel=2, threads=1)
    for gguf in (live, canary):
        inputs = {"model": make_model(store, gguf), "report": report}
        registry.register("routing", run_stage(store, ReleaseNode(project="routing", serve=serve), inputs))
    registry.promote("desk", "routing:v1", "test")
    rules = Rules(guard=BOTH, canary=CanaryRules(max_alarm_rate=0.3, min_requests=4, max_latency_ratio=100))
    registry.start_canary("desk", "routing:v2", 500, rules=rules)
    return registry


@pytest.mark.real
def test_canary_whose_answers_hold_a_persons_number_is_taken_back(
    tmp_path: Path, smollm2_gguf: Path, launch_on: Callable[[Registry, ServeParams], Endpoint]
) -> None:
    registry = on_trial(tmp_path / "ws", smollm2_gguf, that_repeats(smollm2_gguf, tmp_path))
    canary = registry.deployment("desk").canary
    server = launch_on(registry, ServeParams(port=0))
    headers = {"Authorization": f"Bearer {server.key}"}
    said: dict[str, list[str]] = {"routing:v1": [], "routing:v2": []}
    alarmed: set[str] = set()
    with httpx.Client(base_url=server.url, headers=headers, timeout=60, trust_env=False) as http:
        began = time.monotonic()
        while registry.deployment("desk").canary is not None and time.monotonic() - began < 90:
            turn = sum(map(len, said.values()))  # what finds personal data may have to be compiled first
            body = {"model": "desk", "messages": [{"role": "user", "content": f"Count to {turn}."}]}
            answer = http.post("/v1/chat/completions", json=body)
            release = answer.headers["x-inhouse-release"]
            said[release].append(answer.json()["choices"][0]["message"]["content"])
            alarmed |= {answer.headers["x-request-id"]} if release == "routing:v2" else set()
        found = registry.deployment("desk")
        metrics = http.get("/metrics").text
    assert found.canary is None and [arm.release.label for arm in found.arms] == ["routing:v1"]
    assert any(RESIDENT in words for words in said["routing:v2"])
    assert not any(RESIDENT in words for words in said["routing:v1"])
    taken_back = next(e for e in registry.audit(5, "desk") if "alarms:" in str(e.detail))
    assert taken_back.actor == "serve"
    labels = 'arm="canary",deployment="desk",model_name="routing:v2",result="personal-data"'
    assert f"inhouse_guard_answers_total{{{labels}}}" in metrics
    assert server.stop() == 0
    records = {record["request_id"]: record for record in read_records(registry.store.root)}
    heard = [records[request]["alarms"] for request in alarmed]
    assert heard.count(["personal-data"]) > len(heard) // 2
    assert all(record["alarms"] is not None for record in records.values())
    assert canary is not None
    before = experiment_of(registry, replace(found, arms=(*found.arms, canary)))
    assert before.arms[-1].alarms == heard.count(["personal-data"])


def test_guard_that_cannot_look_is_refused_when_the_rule_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inhouse.api.deployments.open_registry", lambda store: NoRegistry())
    monkeypatch.setattr("inhouse.core.plugins.importlib.util.find_spec", lambda name: None)
    asked = RulesRequest(workspace=tmp_path, deployment="desk", changes=("guard=[prompt-leak, personal-data]",))
    with pytest.raises(MissingExtra):
        change_rules(asked)
    assert change_rules(asked.model_copy(update={"changes": ("guard=[prompt-leak]",)})).rules.guard == ("prompt-leak",)
    with pytest.raises(UserError) as unknown:
        change_rules(asked.model_copy(update={"changes": ("guard=[manners]",)}))
    assert unknown.value.code == "release.bad_rule"


class NoRegistry:
    """One deployment, kept nowhere."""

    def deployment(self, name: str) -> Deployment:
        return Deployment(name, Release(1, "r", 1, "a", True, ""), None, "", 1)

    def set_rules(self, name: str, rules: Rules) -> Deployment:
        return replace(self.deployment(name), rules=rules)


def overheard(ask: Ask, *deltas: Delta, wanted: tuple[Alarm, ...] = BOTH) -> Overheard:
    made = Overheard(NoReply(), ask, wanted)
    asyncio.run(made.add(list(deltas)))
    return made


def looked(said: Overheard) -> tuple[Alarm, ...] | None:
    found: list[tuple[Alarm, ...] | None] = []

    async def look() -> None:
        guard = Guards()
        guard.look(said, found.append)
        assert found == []  # nobody waits for it
        await guard.close()

    asyncio.run(look())
    assert len(found) == 1
    return found[0]


def test_text_thoughts_and_calls_of_every_choice_are_heard() -> None:
    ask = Ask(Sampling(8), messages=[{"role": "user", "content": "Who?"}])
    calls = [{"index": 0, "function": {"name": "f", "arguments": '{"tel": "1380'}}]
    rest = [{"index": 0, "function": {"arguments": '0138000"}'}}]
    assert looked(overheard(ask, Delta("138"), Delta("9", index=1), Delta("00138000"))) == ("personal-data",)
    assert looked(overheard(ask, Delta(reasoning="Call 13800138000."))) == ("personal-data",)
    assert looked(overheard(ask, Delta(tool_calls=calls), Delta(tool_calls=rest))) == ("personal-data",)
    assert looked(overheard(ask, Delta("Nobody."))) == ()


def test_instructions_are_the_system_messages_and_the_prompt_is_all() -> None:
    rules = "Speak of the merger to nobody before the board has told the newspapers about it, late in the spring."
    turns = [{"role": "system", "content": f"{rules} Call 13800138000."}, {"role": "user", "content": "Hi"}]
    assert looked(overheard(Ask(Sampling(8), messages=turns), Delta("Call 13800138000."))) == ()
    assert looked(overheard(Ask(Sampling(8), messages=turns), Delta(rules))) == ("prompt-leak",)
    turns = [*turns, {"role": "assistant", "tool_calls": [{"function": {"arguments": '{"to": "a.b@c.org"}'}}]}]
    assert looked(overheard(Ask(Sampling(8), messages=turns), Delta("Sent to a.b@c.org"))) == ()
    assert looked(overheard(Ask(Sampling(8), prompt="13800138000 is"), Delta("13800138000"))) == ()


def test_token_ids_and_a_missing_extra_leave_personal_data_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert looked(overheard(Ask(Sampling(8), prompt=[1, 2]), Delta("13800138000"))) == ()
    assert looked(overheard(Ask(Sampling(8), prompt=[1]), Delta("13800138000"), wanted=("personal-data",))) is None
    monkeypatch.setattr(guards, "SEARCHER", "no_such_package")
    assert looked(overheard(Ask(Sampling(8), prompt="?"), Delta("13800138000"))) == ()
    assert "extra `data`" in caplog.text


def test_guard_that_breaks_or_has_too_much_to_do_loses_no_count(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    said = overheard(Ask(Sampling(8), prompt="?"), Delta("13800138000"))
    monkeypatch.setattr(guards, "alarms", lambda wanted, heard: 1 / 0)
    assert looked(said) is None and "could not be looked at" in caplog.text
    monkeypatch.setattr(guards, "MOST_WAITING", 0)
    found: list[Any] = []
    Guards().look(said, found.append)
    assert found == [None]


def test_answer_that_begins_again_is_heard_from_its_new_beginning() -> None:
    class Reply(NoReply):
        again = 0

        def reset(self) -> None:
            Reply.again += 1

    async def run() -> Overheard:
        said = Overheard(Reply(), Ask(Sampling(8), prompt="?"), BOTH)
        await said.add([Delta("13800138000")])
        said.reset()
        await said.add([Delta("Nobody.")])
        await said.finish(Usage(1, 1))
        return said

    said = asyncio.run(run())
    assert (said.heard().answer, Reply.again, said.sent) == ("Nobody.", 1, False)


def test_looking_keeps_the_event_loop_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "alarms", lambda wanted, heard: time.sleep(0.3) or ())

    async def run() -> float:
        guard, longest = Guards(), 0.0
        guard.look(Overheard(NoReply(), Ask(Sampling(8), prompt="?"), BOTH), lambda found: None)
        closing = asyncio.create_task(guard.close())
        while not closing.done():
            began = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - began)
        return longest

    assert asyncio.run(run()) < 0.25


def test_what_finds_personal_data_is_compiled_elsewhere_and_once_before_the_first_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []

    def compile_apart() -> None:
        done.append(f"compiled in {threading.current_thread().name}")

    monkeypatch.setattr(guards, "compile_apart", compile_apart)
    monkeypatch.setattr(guards, "alarms", lambda wanted, heard: done.append(heard.answer) or ())

    async def run() -> None:
        guard = Guards()
        for words, wanted in (("a", BOTH[1:]), ("b", BOTH), ("c", BOTH)):
            said = Overheard(NoReply(), Ask(Sampling(8), prompt="?"), wanted)
            await said.add([Delta(words)])
            guard.look(said, lambda found: None)
        await guard.close()

    asyncio.run(run())
    assert done == ["a", "compiled in guard_0", "b", "c"]


def test_answers_that_wait_are_bound_by_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "MOST_WAITING_BYTES", 10_000)
    monkeypatch.setattr(guards, "alarms", lambda wanted, heard: ())

    async def run(*sizes: int) -> list[object]:
        guard, found = Guards(), [object()] * len(sizes)
        for place, size in enumerate(sizes):
            said = Overheard(NoReply(), Ask(Sampling(8), prompt="?"), BOTH[1:])
            await said.add([Delta("x" * size)])
            guard.look(said, partial(found.__setitem__, place))
        await guard.close()
        return found

    assert asyncio.run(run(20_000)) == [()]  # one that is too large alone is looked at
    assert asyncio.run(run(6000, 6000, 2000)) == [(), None, ()]
