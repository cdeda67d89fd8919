"""A bad new version under load: it is taken back by itself, within seconds, and no client's request fails for it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest
from release_workspace import make_model, make_report, run_stage
from serve_endpoint import Endpoint

from inhouse.core.store import Store
from inhouse.release.registry import Registry, open_registry
from inhouse.release.rules import CanaryRules, Rules
from inhouse.release.settings import ReleaseNode, ServeParams

pytestmark = pytest.mark.real
LaunchOn = Callable[[Registry, ServeParams], Endpoint]
WITHIN_S = 10  # of the first request that shows it
RULES = {
    "errors": CanaryRules(min_requests=6, max_latency_ratio=100),
    "latency": CanaryRules(min_requests=6, max_latency_ratio=3, max_error_rate=1),
}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path) -> Registry:
    """`desk` serves v1, whose answers have 2 tokens; v2 writes sixty."""
    store = Store(tmp_path_factory.mktemp("canaries"))
    store.create()
    found = open_registry(store)
    inputs = {
        "model": make_model(store, smollm2_gguf),
        "report": make_report(store, {"tuned.accuracy": {"value": 0.8, "n": 100}}),
    }
    for max_tokens in (2, 60):
        serve = ServeParams(context_length=512, max_tokens=max_tokens, parallel=2, threads=1)
        found.register("desk", run_stage(store, ReleaseNode(project="desk", serve=serve), inputs))
    found.promote("desk", "desk:v1", "test")
    return found


@pytest.fixture(scope="module")
def server(registry: Registry, launch_on: LaunchOn) -> Endpoint:
    return launch_on(registry, ServeParams(port=0))


@contextmanager
def load(server: Endpoint) -> Iterator[list[tuple[float, int, str]]]:
    """Two clients that ask one thing after another: when each was answered, with which status, by which release."""
    seen: list[tuple[float, int, str]] = []
    over = threading.Event()

    def ask() -> None:
        headers = {"Authorization": f"Bearer {server.key}", "Cache-Control": "no-store"}
        body = {"model": "desk", "messages": [{"role": "user", "content": "Write a story about the sea."}]}
        with httpx.Client(base_url=server.url, headers=headers, timeout=60, trust_env=False) as http:
            while not over.is_set():
                answer = http.post("/v1/chat/completions", json=body)
                seen.append((time.monotonic(), answer.status_code, answer.headers.get("x-inhouse-release", "")))

    clients = [threading.Thread(target=ask) for _ in range(2)]
    for client in clients:
        client.start()
    try:
        yield seen
    finally:
        over.set()
        for client in clients:
            client.join()


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> float:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds
        time.sleep(0.05)
    return time.monotonic()


def engines(server: Endpoint) -> set[psutil.Process]:
    children = psutil.Process(server.process.pid).children(recursive=True)
    return {child for child in children if any("llamacpp_child" in word for word in child.cmdline())}


def is_gone(registry: Registry) -> bool:
    return registry.deployment("desk").canary is None


def why_taken_back(registry: Registry) -> str:
    entry = next(e for e in registry.audit(10, "desk") if e.action == "canary.rollback")
    assert entry.actor == "serve"
    return json.dumps(entry.detail)


def test_canary_that_is_slow_is_taken_back_within_seconds(server: Endpoint, registry: Registry) -> None:
    with load(server) as seen:
        wait_for(lambda: len(seen) > 8)
        registry.start_canary("desk", "desk:v2", 500, rules=Rules(canary=RULES["latency"]))
        wait_for(lambda: sum(release == "desk:v2" for _, _, release in list(seen)) >= 6)
        enough = [at for at, _, release in list(seen) if release == "desk:v2"][5]
        assert wait_for(lambda: is_gone(registry)) - enough < WITHIN_S
        back = len(seen)
        wait_for(lambda: len(seen) > back + 8 and {release for _, _, release in seen[-6:]} == {"desk:v1"})
    assert {status for _, status, _ in seen} == {200}
    assert "p95" in why_taken_back(registry)
    wait_for(lambda: len(engines(server)) == 1)


def test_canary_whose_engine_dies_again_and_again_is_taken_back_and_fails_nobody(
    server: Endpoint, registry: Registry
) -> None:
    live = engines(server)
    assert len(live) == 1
    with load(server) as seen:
        wait_for(lambda: len(seen) > 4)
        registry.start_canary("desk", "desk:v2", 500, rules=Rules(canary=RULES["errors"]))
        wait_for(lambda: any(release == "desk:v2" for _, _, release in list(seen)))
        first = time.monotonic()
        while not is_gone(registry):
            for engine in engines(server) - live:
                with suppress(psutil.NoSuchProcess):
                    engine.kill()
            assert time.monotonic() - first < WITHIN_S
            time.sleep(0.1)
        back = len(seen)
        wait_for(lambda: len(seen) > back + 8 and {release for _, _, release in seen[-6:]} == {"desk:v1"})
    assert {status for _, status, _ in seen} == {200}
    assert {release for _, _, release in seen} == {"desk:v1", "desk:v2"}  # who answered alone, in one header
    assert " errors in " in why_taken_back(registry)


def test_deployment_that_is_removed_ends_in_the_running_server(registry: Registry, launch_on: LaunchOn) -> None:
    server = launch_on(registry, ServeParams(port=0))
    headers = {"Authorization": f"Bearer {server.key}"}
    body = {"model": "desk", "messages": [{"role": "user", "content": "Hi"}]}
    with httpx.Client(base_url=server.url, headers=headers, timeout=60, trust_env=False) as http:
        assert http.post("/v1/chat/completions", json=body).status_code == 200
        registry.remove("desk", "test")
        wait_for(lambda: http.post("/v1/chat/completions", json=body).status_code == 404)
        assert http.get("/v1/models").json()["data"] == []
        assert http.get("/health").status_code == http.get("/metrics").status_code == 200
        wait_for(lambda: not engines(server))
    assert server.stop() == 0
