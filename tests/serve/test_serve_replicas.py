"""Two real engines behind one endpoint: one that is killed, and one that hangs, cost no plain request."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from serve_endpoint import Endpoint, workspace_with_two_releases
from test_serve_faults import wait_for

from inhouse.release.registry import Registry
from inhouse.release.settings import ReplicaParams, ServeParams

pytestmark = pytest.mark.real


def test_replicas_killed_and_stopped_fail_no_plain_request(
    tmp_path: Path, smollm2_gguf: Path, launch_on: Callable[[Registry, ServeParams], Endpoint]
) -> None:
    registry = workspace_with_two_releases(tmp_path / "twice", smollm2_gguf)
    server = launch_on(registry, ServeParams(port=0, replicas=ReplicaParams(least=2, most=2)))
    headers = {"Authorization": f"Bearer {server.key}", "Cache-Control": "no-cache"}
    http = httpx.Client(base_url=server.url, headers=headers, timeout=60, trust_env=False)

    def replicas() -> list[dict[str, Any]]:
        answer = http.get("/ready")
        found: list[dict[str, Any]] = (
            answer.json()["deployments"][0]["arms"][0]["replicas"] if answer.is_success else []
        )
        return found

    def engines() -> list[psutil.Process]:
        children = psutil.Process(server.process.pid).children(recursive=True)
        return [c for c in children if any("llamacpp_child" in word for word in c.cmdline())]

    stop = threading.Event()
    seen: list[int] = []

    def load() -> None:
        while not stop.is_set():
            body = {"model": "desk", "messages": [{"role": "user", "content": "Count"}], "max_tokens": 4}
            seen.append(http.post("/v1/chat/completions", json=body).status_code)

    assert [r["engine"] for r in replicas()] == ["llamacpp", "llamacpp"]
    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for how in (signal.SIGKILL, signal.SIGSTOP):
            wait_for(lambda: [r["state"] for r in replicas()] == ["ready", "ready"])
            many = len(seen)
            wait_for(lambda many=many: len(seen) > many + 3)  # type: ignore[misc]
            gone = engines()[0]
            os.kill(gone.pid, how)
            wait_for(lambda gone=gone: not gone.is_running() or gone.status() == psutil.STATUS_ZOMBIE)  # type: ignore[misc]
        many = len(seen)
        wait_for(lambda: len(seen) > many + 3)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert set(seen) == {200} and len(seen) > 10
    assert server.stop() == 0
