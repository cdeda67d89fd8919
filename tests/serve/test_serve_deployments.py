"""How a server follows its deployments: with engines that only pretend, so that loads take and fail as told."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from inhouse.core.errors import UserError
from inhouse.core.store import Store
from inhouse.release.arms import Arm, Role
from inhouse.release.keys import Key, Limits, Used, add_usage, create_key, hash_token, usage_on
from inhouse.release.registry import Deployment, Registry, Release, open_registry
from inhouse.release.rules import Rules
from inhouse.release.settings import OWN, ServeParams
from inhouse.serve import deployments
from inhouse.serve.deployments import Deployments
from inhouse.serve.errors import ApiError
from inhouse.serve.router import Way, choose, point_of
from inhouse.serve.routes.status import ready

V1, V2, V3 = (Release(id=n, name="r", version=n, artifact="a", passed=True, created="") for n in (1, 2, 3))


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def arm(release: Release, weight: int = 1000, role: Role = "live") -> Arm:
    return Arm(release, weight, role, "")


class Fake:
    """A deployment that the test moves, and what loading a release does."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.deployment = Deployment("desk", V1, None, datetime.now(UTC).isoformat(), 1, (arm(V1),))
        self.faults: list[Exception] = []
        self.bad: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.retired: list[str] = []
        self.removed = False

    def look(self, name: str) -> Deployment:
        if self.faults and isinstance(self.faults[0], RuntimeError):
            raise self.faults.pop(0)
        return self.deployment

    def load(self, registry: Registry, release: Release, params: ServeParams) -> Any:
        self.gate.wait(10)
        if self.faults:
            raise self.faults.pop(0)
        if release.id in self.bad:
            raise OSError("broken")
        return SimpleNamespace(
            release=release,
            inside=0,
            adapters=("legal",),
            told=lambda: {"state": "ready"},
            retire=lambda wait_s: self.retired.append(release.label),
            pool=SimpleNamespace(close=lambda: self.retired.append(release.label), ready=True),
        )

    def promote(self, release: Release) -> None:
        self.arrange(arm(release))

    def arrange(self, *arms: Arm, rules: Rules | None = None) -> None:
        main = max((a for a in arms if a.role == "live"), key=lambda a: a.weight).release
        changed = replace(self.deployment, release=main, arms=arms, rules=rules or self.deployment.rules)
        self.deployment = replace(changed, generation=self.deployment.generation + 1)
        with sqlite3.connect(self.registry.engine.url.database or "") as file:  # as whoever changes it writes
            file.execute(f"PRAGMA user_version = {self.deployment.generation}")
        file.close()


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake(open_registry(Store(tmp_path / "workspace")))
    monkeypatch.setattr(made.registry, "deployment", made.look)
    monkeypatch.setattr(made.registry, "deployments", lambda: [] if made.removed else [made.look("desk")])
    monkeypatch.setattr(deployments, "Target", made.load)
    monkeypatch.setattr(deployments, "POLL_S", 0.02)
    monkeypatch.setattr(deployments, "RETRY_FIRST_S", 0.05)
    return made


@pytest.fixture
def served(fake: Fake) -> Iterator[Deployments]:
    made = Deployments(fake.registry, ["desk"], ServeParams(port=0))
    yield made
    fake.gate.set()
    made.close(0.0)


def nobody(deployment: Deployment) -> None:
    return None


def answers(served: Deployments) -> Release:
    return served.serving["desk"].main.release


def test_keys_are_read_while_a_release_loads(fake: Fake, served: Deployments) -> None:
    fake.gate.clear()
    fake.promote(V2)
    wait_for(lambda: served._loading is not None)
    token, _ = create_key(fake.registry.engine, "new")
    wait_for(lambda: hash_token(token) in served.keys.keys)
    fake.gate.set()
    wait_for(lambda: answers(served) is V2)


def test_deployment_that_is_removed_is_answered_by_nobody(fake: Fake, served: Deployments) -> None:
    way = served.enter("desk", nobody)
    fake.removed = True
    fake.promote(V2)
    wait_for(lambda: not served.serving)
    served.leave(way.target)  # what was inside is finished
    wait_for(lambda: fake.retired == [V1.label])
    for model in ("desk", V1.label, "desk:legal"):
        with pytest.raises(ApiError) as caught:
            served.enter(model, nobody)
        assert caught.value.status == 404
    assert served.names() == [] and served.targets() == []


def test_registry_is_read_when_somebody_has_written_and_again_where_that_failed(
    fake: Fake, served: Deployments, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, readings, faults = served.keys.read, 0, 2

    def counted() -> None:
        nonlocal readings, faults
        readings += 1
        if faults:
            faults -= 1
            raise UserError("release.busy", path="registry.db", seconds=5)
        read()

    looks = 0
    look = served._versions.now

    def now() -> tuple[int | None, ...] | None:
        nonlocal looks
        looks += 1
        return look()

    wait_for(lambda: served._followed is not None)
    monkeypatch.setattr(served._versions, "now", now)
    monkeypatch.setattr(served.keys, "read", counted)
    wait_for(lambda: looks > 10)
    assert readings == 0  # nobody has written
    token, _ = create_key(fake.registry.engine, "new")
    wait_for(lambda: hash_token(token) in served.keys.keys)
    assert (readings, faults) == (3, 0)
    found = looks
    wait_for(lambda: looks > found + 10)
    assert readings == 3


def test_keys_are_read_while_somebody_holds_the_registrys_lock(
    fake: Fake, served: Deployments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployments, "SAVE_S", 0.0)
    token, mine = create_key(fake.registry.engine, "ann")
    wait_for(lambda: hash_token(token) in served.keys.keys)
    day = "2026-01-01"
    waits, readings = threading.Event(), 0

    def save() -> None:
        waits.set()
        add_usage(fake.registry.engine, day, [Used(mine.id, 1, 1)])

    def read() -> None:
        nonlocal readings
        readings += 1

    other = sqlite3.connect(fake.registry.engine.url.database or "", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    served.saved = [save]
    look, looks = served._versions.now, itertools.count(1)
    # As if somebody wrote all the time.
    monkeypatch.setattr(served._versions, "now", lambda: (*(look() or ()), next(looks)))
    monkeypatch.setattr(served.keys, "read", read)
    try:
        assert waits.wait(10)
        before = readings
        wait_for(lambda: readings > before + 20, seconds=3)  # a writer waits for 5 s
        assert usage_on(fake.registry.engine, day) == {}
    finally:
        other.rollback()
        other.close()
    wait_for(lambda: usage_on(fake.registry.engine, day) != {})


def test_release_that_failed_to_load_is_tried_again_and_told_once(fake: Fake, served: Deployments) -> None:
    told: list[str] = []
    served.on_switch = told.append
    fake.faults = [OSError("busy"), OSError("busy"), KeyError("odd")]
    fake.promote(V2)
    wait_for(lambda: answers(served) is V2)
    wait_for(lambda: told == ["failed", "done"])
    assert [e.action for e in fake.registry.audit(5)].count("switch_failed") == 1


def test_release_that_is_no_longer_wanted_when_it_has_loaded_is_not_taken(fake: Fake, served: Deployments) -> None:
    fake.gate.clear()
    fake.promote(V2)
    wait_for(lambda: served._loading is not None)
    fake.promote(V1)
    wait_for(lambda: served._wanted["desk"].generation == 3)
    fake.gate.set()
    wait_for(lambda: fake.retired == ["r:v2"])
    assert answers(served) is V1


def test_release_that_nobody_asks_for_any_more_is_let_go(fake: Fake, served: Deployments) -> None:
    fake.promote(V2)
    wait_for(lambda: answers(served) is V2)
    wait_for(lambda: fake.retired == ["r:v1"])
    assert [t.release for t in served.targets()] == [V2]


def test_following_survives_what_nobody_expects(fake: Fake, served: Deployments) -> None:
    fake.faults = [RuntimeError("unforeseen")]
    wait_for(lambda: not fake.faults)
    fake.promote(V2)
    wait_for(lambda: answers(served) is V2)


def test_split_answers_by_weight_and_its_releases_can_be_asked_by_name(fake: Fake, served: Deployments) -> None:
    fake.arrange(arm(V1, 700), arm(V2, 300))
    wait_for(lambda: len(served.targets()) == 2)
    ways = [served.enter("desk", nobody) for _ in range(1000)]
    second = sum(way.target.release is V2 for way in ways)
    assert 220 < second < 380  # 5 standard deviations of a binomial around 300
    assert served.enter("r:v2", nobody).target.release is V2
    assert served.names() == ["desk", "desk:legal", "r:v1", "r:v2"]
    keys = [Key("ann", "", "", None, None, 1, Limits(models=(name,))) for name in ("desk", "faq")]
    assert [served.names(key) for key in keys] == [served.names(), []]


def test_release_of_two_deployments_counts_for_the_one_that_was_named(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake.registry, "deployment", lambda name: replace(fake.deployment, name=name))
    served = Deployments(fake.registry, ["desk", "faq"], ServeParams(port=0))
    try:
        mine = Key("ann", "", "", None, None, 1, Limits(models=("faq",)))
        named = {
            "faq": served.enter("faq", nobody),
            "faq:r:v1": served.enter("faq:r:v1", nobody),
            "desk:r:v1": served.enter("desk:r:v1", nobody),
            "r:v1": served.enter("r:v1", nobody, mine),
        }
        assert {name: way.deployment for name, way in named.items()} == {
            "faq": "faq", "faq:r:v1": "faq", "desk:r:v1": "desk", "r:v1": "faq",
        }  # fmt: skip
        assert all(way.target.release is V1 and way.adapter is None for way in named.values())
        assert served.names(mine) == ["faq", "faq:legal", "r:v1", "faq:r:v1"]
        with pytest.raises(ApiError):
            served.enter("faq:r:v2", nobody)
    finally:
        served.close(0.0)


def test_person_stays_with_an_arm_and_a_growing_canary_takes_nobody_back() -> None:
    people = [f"person {n}" for n in range(400)]
    small = [arm(V1, 900), arm(V2, 100, "canary")]
    large = [arm(V1, 500), arm(V2, 500, "canary")]
    first = {who: choose(small, point_of("desk", who)).release for who in people}
    later = {who: choose(large, point_of("desk", who)).release for who in people}
    assert first == {who: choose(small, point_of("desk", who)).release for who in people}
    on_trial = {who for who, release in first.items() if release is V2}
    assert 15 < len(on_trial) < 70 and all(later[who] is V2 for who in on_trial)
    assert 150 < sum(release is V2 for release in later.values()) < 250


def test_rules_are_asked_who_stays(fake: Fake, served: Deployments) -> None:
    fake.arrange(arm(V1, 500), arm(V2, 500), rules=Rules(sticky="user"))
    wait_for(lambda: len(served.targets()) == 2)
    asked: list[str] = []

    def who(deployment: Deployment) -> str:
        asked.append(deployment.rules.sticky)
        return "ann"

    ways = {served.enter("desk", who).target.release for _ in range(50)}
    assert len(ways) == 1 and asked == ["user"] * 50


def test_nobody_waits_for_a_canary_whose_engine_is_away(fake: Fake, served: Deployments) -> None:
    fake.arrange(arm(V1, 500), arm(V2, 500, "canary"))
    wait_for(lambda: len(served.targets()) == 2)
    live, canary = (next(t for t in served.targets() if t.release is release) for release in (V1, V2))
    canary.pool.ready = False
    ways = [served.enter("desk", nobody) for _ in range(200)]
    assert {way.target.release.id for way in ways} == {V1.id} == {way.arm.release.id for way in ways}
    failed = [way.failed for way in ways if way.failed is not None]
    assert 60 < len(failed) < 140 and {one.release.id for one in failed} == {V2.id}
    live.pool.ready = False  # nobody is better off then
    assert any(served.enter("desk", nobody).target.release is V2 for _ in range(50))
    canary.pool.ready = live.pool.ready = True
    assert not any(served.enter("desk", nobody).failed for _ in range(50))


def test_shadow_gets_copies_and_no_requests(fake: Fake, served: Deployments) -> None:
    fake.arrange(arm(V1), arm(V2, 1000, "shadow"))
    wait_for(lambda: len(served.targets()) == 2)
    way = served.enter("desk", nobody)
    assert way.target.release is V1 and [t.release for t in way.shadows()] == [V2]
    with pytest.raises(ApiError):
        served.enter("r:v2", nobody)
    with_adapter = [replace(way, adapter=name).shadows() for name in ("legal", "other")]
    assert [[t.release for t in targets] for targets in with_adapter] == [[V2], []]
    shadow = way.shadows()[0]
    assert served.join(shadow) and shadow.inside == 1
    fake.promote(V1)
    wait_for(lambda: len(served.targets()) == 1)
    assert not served.join(shadow)


@pytest.mark.parametrize(
    ("limits", "names"),
    [
        (Limits(), ["desk"]),
        (Limits(models=("desk",)), ["desk"]),
        (Limits(models=("other",)), []),
        (Limits(models=("other",), scopes=("admin",)), ["desk"]),
    ],
)
def test_ready_tells_a_key_of_what_it_may_use(served: Deployments, limits: Limits, names: list[str]) -> None:
    told: list[dict[str, Any]] = []

    async def reply(value: dict[str, Any]) -> None:
        told.append(value)

    call: Any = SimpleNamespace(key=Key("ann", "", "", None, None, 1, limits), reply=reply)
    services: Any = SimpleNamespace(deployments=served)
    asyncio.run(ready(services, call))
    [found] = told
    assert [each["name"] for each in found["deployments"]] == names
    assert found["release"] == ("r:v1" if names else None)


def test_shadow_that_does_not_load_keeps_nothing_back(fake: Fake, served: Deployments) -> None:
    fake.bad.add(V3.id)
    fake.arrange(arm(V2), arm(V3, 1000, "shadow"))
    wait_for(lambda: answers(served) is V2)
    assert served.enter("desk", nobody).shadows() == []
    wait_for(lambda: [e.action for e in fake.registry.audit(5)].count("switch_failed") == 1)


def test_arm_that_does_not_load_keeps_the_split_back(fake: Fake, served: Deployments) -> None:
    fake.bad.add(V3.id)
    fake.arrange(arm(V2, 500), arm(V3, 500))
    wait_for(lambda: [e.action for e in fake.registry.audit(5)].count("switch_failed") == 1)
    assert answers(served) is V1
    fake.bad.clear()
    wait_for(lambda: answers(served) is V2)


def test_adapter_is_asked_for_by_the_deployments_name_and_its_own(served: Deployments) -> None:
    way: Way = served.enter("desk:legal", nobody)
    assert (way.target.release, way.adapter) == (V1, "legal")
    for model in ("desk:other", "other:legal", "nobody"):
        with pytest.raises(ApiError) as unknown:
            served.enter(model, nobody)
        assert unknown.value.status == 404


def test_adapter_goes_by_weights_among_the_arms_that_have_it(fake: Fake, served: Deployments) -> None:
    fake.arrange(arm(V1, 500), arm(V2, 500, "canary"))
    wait_for(lambda: len(served.targets()) == 2)
    live, canary = (next(t for t in served.targets() if t.release is release) for release in (V1, V2))

    def answered(adapter: str) -> Counter[str]:
        return Counter(served.enter(f"desk:{adapter}", nobody).target.release.label for _ in range(200))

    assert 60 < answered("legal")["r:v2"] < 140
    canary.adapters = ("legal", "new")
    live.adapters = ("legal", "old")
    assert answered("new") == {"r:v2": 200} and answered("old") == {"r:v1": 200}
    assert [name for name in served.names() if ":" in name][:3] == ["desk:legal", "desk:old", "desk:new"]
    canary.pool.ready = False
    assert answered("legal") == {"r:v1": 200} and answered("new") == {"r:v2": 200}


def test_release_that_records_no_adapters_has_none_of_the_servers_first_one() -> None:
    first = ServeParams.model_validate({"adapters": {"law": "x"}, "kv_cache": "q8_0", "embeddings": True, "queue": 5})
    assert set(first.engine_settings()) >= {"adapters", "kv_cache", "embeddings"}
    assert (first.shared().queue, set(first.shared().engine_settings()) & OWN) == (5, set())
