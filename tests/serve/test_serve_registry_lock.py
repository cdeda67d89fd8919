"""Somebody holds the registry's write lock: requests that write wait, those that only ask are as fast as ever."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest
from serve_endpoint import Endpoint
from serve_load import quantile

from inhouse.release.keys import Limits, create_numbered_key

pytestmark = pytest.mark.real
REQUESTS = 150
WRITERS = 40  # more than the threads that an event loop shares


@contextmanager
def locked(path: str) -> Iterator[None]:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.rollback()
        other.close()


def test_requests_of_a_known_key_are_not_slowed_while_somebody_holds_the_write_lock(endpoint: Endpoint) -> None:
    engine = endpoint.registry.engine
    token, _ = create_numbered_key(engine, "counted", limits=Limits(tokens_per_day=10**9))
    headers = {"Authorization": f"Bearer {token}"}
    body = {"model": "desk", "messages": [{"role": "user", "content": "lock"}], "max_tokens": 2, "temperature": 0}

    with httpx.Client(base_url=endpoint.url, headers=headers, timeout=30, trust_env=False) as http:

        def took(path: str = "/v1/chat/completions", status: int = 200, **given: dict[str, str]) -> float:
            began = time.monotonic()
            assert http.post(path, json=body, **given).status_code == status  # type: ignore[arg-type]
            return time.monotonic() - began

        def cancel(number: int) -> int:
            return http.post(f"/v1/batches/batch_{number}/cancel").status_code

        took()
        free = [took() for _ in range(REQUESTS)]
        with ThreadPoolExecutor(WRITERS) as pool:
            with locked(engine.url.database or ""):
                writing = [pool.submit(cancel, number) for number in range(WRITERS)]
                held = [took() for _ in range(REQUESTS)]
                stranger = took(status=401, headers={"Authorization": "Bearer ih-nobody"})
                waited = not any(each.done() for each in writing)
            assert {each.result() for each in writing} <= {404, 503}  # 503: it took more than 5 s
    print(f"p99 {quantile(free, 0.99) * 1000:.1f} ms, locked {quantile(held, 0.99) * 1000:.1f} ms")
    assert waited  # or nothing has been shown
    assert quantile(held, 0.99) < max(0.1, 3 * quantile(free, 0.99)) and stranger < 1
