"""`inhouse bench serve` over the real endpoint and model."""

from __future__ import annotations

import json

import pytest
from serve_endpoint import Endpoint

from inhouse.api.bench_serve import BenchServeRequest, bench_serve
from inhouse.core.run import Events, process_mark

pytestmark = pytest.mark.real


def test_running_server_of_the_workspace_is_measured(endpoint: Endpoint) -> None:
    note = endpoint.registry.store.root / "serve.json"
    pid = endpoint.process.pid
    note.write_text(json.dumps({"url": endpoint.url, "pid": pid, "mark": process_mark(pid)}))
    request = BenchServeRequest(
        workspace=endpoint.registry.store.root, deployment="desk", key=endpoint.key, clients=(1, 2), requests=1,
        max_tokens=4,
    )  # fmt: skip
    found = bench_serve(request, Events())
    assert [(line.clients, line.requests, line.failed, line.tokens) for line in found.lines] == [
        (1, 1, 0, 4),
        (2, 2, 0, 8),
    ]
    assert found.url == endpoint.url and not found.started
    assert found.bounds is not None and found.formula is not None
