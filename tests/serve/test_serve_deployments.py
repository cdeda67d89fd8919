"""How a server follows its deployment: with engines that only pretend, so that loads take and fail as told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from inhouse.core.store import Store
from inhouse.release.keys import create_key, hash_token
from inhouse.release.registry import Deployment, Registry, Release, open_registry
from inhouse.release.settings import ServeParams
from inhouse.serve import deployments
from inhouse.serve.deployments import Deployments

V1, V2 = (Release(id=n, name="r", version=n, artifact="a", passed=True, created="") for n in (1, 2))


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


class Fake:
    """A deployment that the test moves, and what loading a release does."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.deployment = Deployment("desk", V1, None, datetime.now(UTC).isoformat(), 1)
        self.faults: list[Exception] = []
        self.gate = threading.Event()
        self.gate.set()

    def look(self, name: str) -> Deployment:
        if self.faults and isinstance(self.faults[0], RuntimeError):
            raise self.faults.pop(0)
        return self.deployment

    def load(self, registry: Registry, release: Release, params: ServeParams) -> Any:
        self.gate.wait(10)
        if self.faults:
            raise self.faults.pop(0)
        nothing = lambda *_: None  # noqa: E731
        return SimpleNamespace(release=release, inside=0, retire=nothing, pool=SimpleNamespace(close=nothing))

    def promote(self, release: Release) -> None:
        self.deployment = replace(self.deployment, release=release, generation=self.deployment.generation + 1)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake(open_registry(Store(tmp_path / "workspace")))
    monkeypatch.setattr(made.registry, "deployment", made.look)
    monkeypatch.setattr(deployments, "Target", made.load)
    monkeypatch.setattr(deployments, "POLL_S", 0.02)
    monkeypatch.setattr(deployments, "RETRY_FIRST_S", 0.05)
    return made


@pytest.fixture
def served(fake: Fake) -> Iterator[Deployments]:
    made = Deployments(fake.registry, "desk", ServeParams(port=0))
    yield made
    fake.gate.set()
    made.close(0.0)


def test_keys_are_read_while_a_release_loads(fake: Fake, served: Deployments) -> None:
    fake.gate.clear()
    fake.promote(V2)
    wait_for(lambda: served._loading is not None)
    token, _ = create_key(fake.registry.engine, "new")
    wait_for(lambda: hash_token(token) in served.keys)
    fake.gate.set()
    wait_for(lambda: served.current.target.release is V2)


def test_release_that_failed_to_load_is_tried_again_and_told_once(fake: Fake, served: Deployments) -> None:
    told: list[str] = []
    served.on_switch = told.append
    fake.faults = [OSError("busy"), OSError("busy"), KeyError("odd")]
    fake.promote(V2)
    wait_for(lambda: served.current.target.release is V2)
    wait_for(lambda: told == ["failed", "done"])
    assert [e.action for e in fake.registry.audit(5)].count("switch_failed") == 1


def test_release_that_is_no_longer_wanted_when_it_has_loaded_is_not_taken(fake: Fake, served: Deployments) -> None:
    fake.gate.clear()
    fake.promote(V2)
    wait_for(lambda: served._loading is not None)
    fake.promote(V1)
    wait_for(lambda: served._seen == 3)
    fake.gate.set()
    assert served._loading is not None
    served._loading.join(10)
    assert served.current.target.release is V1


def test_following_survives_what_nobody_expects(fake: Fake, served: Deployments) -> None:
    fake.faults = [RuntimeError("unforeseen")]
    wait_for(lambda: not fake.faults)
    fake.promote(V2)
    wait_for(lambda: served.current.target.release is V2)
