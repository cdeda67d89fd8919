"""What a release is served with: which engines start, what follows when one does not, and what is told of them."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "release"))

from release_workspace import make_model, make_report, run_stage
from test_serve_calibrate import Engine, replica, wait_for

from inhouse.core.errors import UserError
from inhouse.core.store import Store
from inhouse.engines.backend import EngineSettings
from inhouse.release.registry import Registry, open_registry
from inhouse.release.settings import ReleaseNode, RemoteParams, ReplicaParams, ServeParams
from inhouse.serve import target
from inhouse.serve.replica import Replica
from inhouse.serve.target import Target


class Starts:
    """Pretended engines; the third start fails as told."""

    def __init__(self) -> None:
        self.made: list[Replica] = []
        self.asked: list[tuple[str, str, EngineSettings]] = []
        self.fault: Exception | None = None

    def __call__(self, kind: str, name: str, source: Path, settings: EngineSettings) -> Replica:
        self.asked.append((kind, name, settings))
        if self.fault is not None and len(self.asked) == 3:
            raise self.fault
        self.made.append(replica(Engine(kind)))
        return self.made[-1]


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> Starts:
    made = Starts()
    monkeypatch.setattr(target, "replica", made)
    return made


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    store = Store(tmp_path / "workspace")
    store.create()
    found = open_registry(store)
    model, report = make_model(store, b"GGUF"), make_report(store, {"tuned.accuracy": {"value": 0.8, "n": 100}})
    params = ReleaseNode(project="r", serve=ServeParams(context_length=512, max_tokens=16, parallel=3))
    found.register("r", run_stage(store, params, {"model": model, "report": report}))
    return found


def served(registry: Registry, **more: Any) -> Target:
    return Target(registry, registry.show("r:v1"), ServeParams(**({"engine": "llamacpp"} | more)))


def test_release_starts_as_many_engines_as_asked_with_its_own_settings(registry: Registry, starts: Starts) -> None:
    made = served(registry, threads=4, replicas=ReplicaParams(least=2, most=2))
    assert [(kind, name) for kind, name, _ in starts.asked] == [("llamacpp", "r:v1#1"), ("llamacpp", "r:v1#2")]
    assert starts.asked[0][2].context_length == 512 and starts.asked[0][2].parallel == 3
    assert made.limits.parallel == 3 and made.admission.parallel == 16  # two pretended engines of eight
    assert [r["state"] for r in made.told()["replicas"]] == ["ready", "ready"] and "calibration" not in made.told()
    made.retire(0.0)
    assert made.pool.closing.is_set()


def test_engine_that_does_not_start_leaves_none_behind(registry: Registry, starts: Starts) -> None:
    starts.fault = UserError("process.hung", name="third")
    with pytest.raises(UserError):
        served(registry, replicas=ReplicaParams(least=3, most=3))
    assert [r._closed.is_set() for r in starts.made] == [True, True]


def test_remotes_stand_beside_the_engines_here(registry: Registry, starts: Starts) -> None:
    elsewhere = RemoteParams(url="http://127.0.0.1:9/v1", model="m", parallel=5)
    made = served(registry, remotes=(elsewhere,))
    assert [r["engine"] for r in made.told()["replicas"]] == ["llamacpp", "remote"]
    assert made.admission.parallel == 13
    made.retire(0.0)


def test_replica_that_drains_makes_room_for_fewer_requests_in_the_event_loop(
    registry: Registry, starts: Starts
) -> None:
    made = served(registry, replicas=ReplicaParams(least=2, most=2))

    async def scene() -> int:
        await made.pool.pick(None)
        await asyncio.to_thread(made.pool.drain, made.pool.replicas[0], 1.0)
        await asyncio.sleep(0)
        return made.admission.parallel

    assert asyncio.run(scene()) == 8
    made.retire(0.0)


def test_auto_compares_in_the_background_and_tells_how_far_it_is(
    registry: Registry, starts: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inhouse.serve.starting.find_spec", lambda name: object())
    made = served(registry, engine="auto", calibrate="off")
    assert made.choice is not None
    wait_for(lambda: made.told()["calibration"]["state"] == "off")
    assert [kind for kind, *_ in starts.asked] == ["llamacpp"]
    made.retire(0.0)


def test_folder_is_served_by_transformers_and_by_no_other(tmp_path: Path, registry: Registry, starts: Starts) -> None:
    from release_workspace import APACHE, publish

    store = registry.store
    facts = {"format": "safetensors", "main": ".", "name": "tiny"}
    model = publish(store, "model", {"config.json": b"{}"}, {"model": facts}, (APACHE,))
    report = make_report(store, {"tuned.accuracy": {"value": 0.8, "n": 100}})
    registry.register("r", run_stage(store, ReleaseNode(project="r"), {"model": model, "report": report}))
    made = Target(registry, registry.show("r:v2"), ServeParams())
    assert [kind for kind, *_ in starts.asked] == ["transformers"]
    made.retire(0.0)
    with pytest.raises(UserError) as error:
        Target(registry, registry.show("r:v2"), ServeParams(engine="openvino"))
    assert error.value.code == "serve_pool.engine_reads"
