"""The fault list of serving, in short forms against real processes; the long ones are in bench/soak.

What is tested elsewhere:

| fault | test |
|---|---|
| replica killed or stopped, plain | test_serve_replicas; test_serve_pool: test_pool_replicas_killed_and_stopped_… |
| replica killed, streamed | test_serve_faults: test_stream_cut_by_the_death_of_the_engine_ends_with_an_error_event |
| promote and roll back under load | test_serve_faults: test_promote_and_rollback_under_load_fail_no_request |
| SIGTERM, plain request | test_serve_faults: test_sigterm_lets_a_running_request_finish |
| server killed | test_serve_faults: test_server_that_is_killed_takes_its_engine_with_it |
| unread streams, slow heads and bodies | test_serve_door |
| batch after kill -9 | test_serve_batches: test_batch_killed_twice_has_every_answer_once |
| 8 processes on the registry | test_release_registry: test_eight_processes_make_and_change_a_new_registry_at_once… |
| registry writes killed | test_release_registry: test_changes_killed_at_any_moment_leave_old_or_new |
"""

from __future__ import annotations

import ast
import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from serve_endpoint import Endpoint, start, workspace_with_two_releases
from serve_load import crowd, leaver, quantile, size_of

import inhouse
from inhouse.core.serving import Delta
from inhouse.core.store import Store
from inhouse.release.keys import Key, Limits, create_key
from inhouse.release.registry import open_registry
from inhouse.release.request_records import FILES, FOLDER
from inhouse.release.settings import ServeParams
from inhouse.serve import key_ring
from inhouse.serve.errors import ApiError
from inhouse.serve.measured import Measured
from inhouse.serve.metrics import TOGETHER, TOGETHER_GAPS, Gauges, Metrics
from inhouse.serve.quotas import Quotas
from inhouse.serve.watchers import Watchers

real = pytest.mark.real
CHAT = "/v1/chat/completions"
STORY: list[dict[str, str]] = [{"role": "user", "content": "Tell a long story about the sea."}]


def asked(number: int = 0, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"Say the number {number}"}]
    return {"model": "desk", "messages": messages, "max_tokens": 8} | more


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path) -> Iterator[Endpoint]:
    registry = workspace_with_two_releases(tmp_path_factory.mktemp("survival") / "served", smollm2_gguf)
    token, _ = create_key(registry.engine, "test")
    process, ready = start(registry, ServeParams(port=0, queue=8, drain_s=20))
    yield Endpoint(process, str(ready["url"]), token, registry)
    if process.poll() is None:
        process.terminate()
        process.wait(40)


@pytest.fixture
def http(server: Endpoint) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {server.key}", "Cache-Control": "no-store"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=60, trust_env=False) as session:
        yield session


def gauge(http: httpx.Client, name: str) -> float:
    lines = http.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"inhouse_num_requests_{name}{{"))


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> float:
    """Seconds until it holds."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds
        time.sleep(0.002)
    return time.monotonic() - began


def engine_of(server: Endpoint) -> psutil.Process:
    children = psutil.Process(server.process.pid).children(recursive=True)
    return next(c for c in children if any("llamacpp_child" in word for word in c.cmdline()))


@real
def test_engine_without_memory_is_started_again_and_the_server_goes_on(server: Endpoint, http: httpx.Client) -> None:
    engine = engine_of(server)
    # The first test of this server: an engine that has worked before has memory left that it need not ask for.
    least = engine.memory_info().vms // 2
    engine.rlimit(psutil.RLIMIT_AS, (least, least))  # what it asks for from now on, it does not get
    long = [{"role": "user", "content": "word " * 400}]
    statuses = [http.post(CHAT, json=asked(messages=long, logprobs=True, top_logprobs=20)).status_code for _ in "ab"]
    assert set(statuses) <= {200, 503}
    assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE
    wait_for(lambda: http.get("/ready").status_code == 200)
    assert http.post(CHAT, json=asked(2)).status_code == 200


@real
def test_overload_is_refused_soon_and_over_soon(server: Endpoint, http: httpx.Client) -> None:
    at = (server.url, server.key)
    asyncio.run(crowd(at, 10, time.monotonic() + 0.5, asked))
    before = size_of(server.process.pid)
    seen = asyncio.run(crowd(at, 100, time.monotonic() + 3, asked, pause_s=0.5))  # 2 run, 8 wait
    recovered = wait_for(lambda: gauge(http, "running") + gauge(http, "waiting") == 0, 5)
    after = size_of(server.process.pid)
    assert http.post(CHAT, json=asked()).status_code == 200
    print(dict(seen.statuses), f"refused p99 {1000 * quantile(seen.refused_s, 0.99):.0f} ms, {recovered:.2f} s after")
    assert set(seen.statuses) == {200, 429} and seen.statuses[429] > 50
    assert (seen.cut, seen.unpaced, seen.refused_to_connect) == (0, 0, 0)
    assert quantile(seen.refused_s, 0.5) < 0.1 and quantile(seen.refused_s, 0.99) < 1
    assert after.rss_mb - before.rss_mb < 10 and after.threads - before.threads <= 2


LEFT: dict[str, dict[str, Any]] = {
    CHAT: {"messages": STORY, "max_tokens": 450},
    "/v1/completions": {"prompt": "A story:", "max_tokens": 450},
    "/v1/responses": {"input": "Tell a story", "max_output_tokens": 450},
    "/v1/messages": {"messages": STORY, "max_tokens": 450},
    "/api/generate": {"prompt": "A story", "options": {"num_predict": 450}},
}


@real
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", LEFT)
def test_client_that_leaves_frees_its_turn_on_every_face(
    server: Endpoint, http: httpx.Client, path: str, stream: bool
) -> None:
    body = json.dumps(LEFT[path] | {"model": "desk", "temperature": 1.0, "stream": stream})
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\n"
    with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), 10) as raw:
        raw.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        wait_for(lambda: gauge(http, "running") == 1)
    freed = wait_for(lambda: gauge(http, "running") == 0, 5)
    print(f"{path} {'streamed' if stream else 'plain'}: {1000 * freed:.0f} ms")
    assert freed < 0.5


@real
def test_client_that_does_not_read_holds_up_nobody(server: Endpoint, http: httpx.Client) -> None:
    body = json.dumps(asked(messages=STORY, max_tokens=450, stream=True, logprobs=True, top_logprobs=20))
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.key}\r\n"
    before = size_of(server.process.pid)
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", int(server.url.rsplit(":", 1)[1])))
        raw.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
        wait_for(lambda: gauge(http, "running") == 1)
        assert raw.recv(1) == b"H"
        for number in range(3):
            assert http.post(CHAT, json=asked(number)).status_code == 200
        assert size_of(server.process.pid).rss_mb - before.rss_mb < 10
    wait_for(lambda: gauge(http, "running") == 0, 5)


@real
def test_load_of_every_kind_leaves_no_file_and_no_thread_behind(server: Endpoint, http: httpx.Client) -> None:
    at = (server.url, server.key)

    async def mixed(seconds: float) -> list[Any]:
        until = time.monotonic() + seconds
        wrong = ("http://127.0.0.1:" + server.url.rsplit(":", 1)[1], "ih-wrong")
        return await asyncio.gather(
            crowd(at, 2, until, asked),
            crowd(at, 2, until, lambda number: asked(number, stream=True)),
            crowd(at, 1, until, lambda number: asked(number, n=99)),
            crowd(wrong, 1, until, asked),
            leaver(at, until, asked(messages=STORY, max_tokens=300)),
        )

    asyncio.run(mixed(1))
    wait_for(lambda: gauge(http, "running") == 0)
    before = size_of(server.process.pid)
    plain, streamed, bad, strange, left = asyncio.run(mixed(2))
    wait_for(lambda: gauge(http, "running") == 0)
    after = size_of(server.process.pid)
    assert set(plain.statuses) == set(streamed.statuses) == {200} and left > 1
    assert (plain.cut, streamed.cut, streamed.told, streamed.unfinished) == (0, 0, 0, 0)
    assert set(bad.statuses) == {400} and set(strange.statuses) == {401}
    assert abs(after.fds - before.fds) <= 4 and after.threads - before.threads <= 2
    assert after.rss_mb - before.rss_mb < 10


@real
def test_full_disk_keeps_nobody_from_an_answer(server: Endpoint, http: httpx.Client) -> None:
    process = psutil.Process(server.process.pid)
    before = process.rlimit(psutil.RLIMIT_FSIZE)
    process.rlimit(psutil.RLIMIT_FSIZE, (1000, before[1]))  # writing beyond 1,000 bytes of any file fails
    try:
        assert {http.post(CHAT, json=asked(number)).status_code for number in range(3)} == {200}
        refused = http.post("/v1/files", files={"file": ("a.jsonl", b"x" * 100_000)}, data={"purpose": "batch"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (507, "insufficient_storage")
        kept = http.post("/v1/responses", json={"model": "desk", "input": "x", "max_output_tokens": 4})
        assert (kept.status_code, kept.json()["error"]["code"]) == (503, "temporarily_unavailable")
        assert kept.headers["retry-after"] == "1" and str(server.registry.store.root) not in kept.text + refused.text
    finally:
        process.rlimit(psutil.RLIMIT_FSIZE, before)
    kept = http.post("/v1/responses", json={"model": "desk", "input": "x", "max_output_tokens": 4})
    assert kept.status_code == 200
    assert not list((server.registry.store.root / "files").glob(".upload-*"))


@real
def test_sigterm_lets_a_stream_finish_and_takes_nobody_new(server: Endpoint, http: httpx.Client) -> None:
    lines: list[str] = []

    def read() -> None:
        body = asked(messages=STORY, max_tokens=150, stream=True, ignore_eos=True)
        with http.stream("POST", CHAT, json=body) as answer:
            lines.extend(line for line in answer.iter_lines() if line)

    with httpx.Client(base_url=server.url, headers=http.headers, trust_env=False) as looking:
        thread = threading.Thread(target=read)
        thread.start()
        wait_for(lambda: gauge(looking, "running") == 1)
    children = psutil.Process(server.process.pid).children(recursive=True)
    server.process.terminate()

    def refused() -> bool:
        try:
            return httpx.get(f"{server.url}/health", trust_env=False, timeout=5).status_code != 200
        except httpx.HTTPError:
            return True

    assert wait_for(refused, 5) < 2 and thread.is_alive()
    thread.join(30)
    assert lines[-1] == "data: [DONE]" and sum('"content"' in line for line in lines) > 50
    assert server.process.wait(30) == 0
    assert not any(child.is_running() for child in children)


@real
def test_stream_that_is_not_done_in_time_is_told_that_the_server_stops(tmp_path: Path, smollm2_gguf: Path) -> None:
    registry = workspace_with_two_releases(tmp_path / "served", smollm2_gguf)
    token, _ = create_key(registry.engine, "test")
    with (tmp_path / "stderr").open("w+") as complaints:
        process, ready = start(registry, ServeParams(port=0, drain_s=0.1), complaints)
        body = asked(messages=STORY, max_tokens=450, stream=True, ignore_eos=True)
        lines = []
        with (
            httpx.Client(base_url=str(ready["url"]), trust_env=False, timeout=60) as http,
            http.stream("POST", CHAT, json=body, headers={"Authorization": f"Bearer {token}"}) as answer,
        ):
            for line in filter(None, answer.iter_lines()):
                if not lines:
                    process.terminate()
                lines.append(line)
        assert process.wait(30) == 0
        complaints.seek(0)
        assert "Cancel" not in complaints.read()
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["code"] == "stopping"
    [file] = (registry.store.root / FOLDER).glob(FILES)
    record = json.loads(file.read_text().splitlines()[-1])
    assert (record["status"], record["error"]) == (503, "stopping")


# A clock that jumps may not end, prolong or reorder anything: `time.time` is for records, what a certificate says, and
# the age of files that can be written anew. quotas: see below.
RECORDS = {"measured", "request_log", "file_store", "replies", "batch_worker", "kept_responses", "response_events",
    "webhooks", "ids", "quick", "faces", "responses", "batches", "tls", "openvino_file", "__init__",
    "quotas"}  # fmt: skip


def test_clock_on_the_wall_is_read_for_records_only() -> None:
    root = Path(inhouse.__file__).parent
    found = set()
    for folder in ("serve", "engines"):
        for path in (root / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and ast.unparse(node) == "time.time":
                    found.add(path.stem)
    assert found <= RECORDS, found - RECORDS


def test_key_expires_by_the_clock_and_comes_back_when_the_clock_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = open_registry(Store(tmp_path / "clock"))
    token, _ = create_key(registry.engine, "short", timedelta(minutes=30))
    now = [datetime.now(UTC)]

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return now[0]

    monkeypatch.setattr(key_ring, "datetime", Clock)

    async def found() -> bool:
        return await key_ring.KeyRing(registry.engine).find(token) is not None

    opened = []
    for jump in (0, 1, -1, 0):
        now[0] = datetime.now(UTC) + timedelta(hours=jump)
        opened.append(asyncio.run(found()))
    assert opened == [True, False, True, True]


def test_quota_forgets_what_it_counted_when_the_clock_is_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = open_registry(Store(tmp_path / "clock"))
    key = Key("ann", "ih-1", "", None, None, 7, Limits(requests_per_minute=1))
    real_time = time.time

    async def minutes(counted: Quotas, *jumps: int) -> list[int]:
        statuses = []
        for jump in jumps:
            monkeypatch.setattr(time, "time", lambda jump=jump: real_time() + jump)
            try:
                await counted.enter(key)
                statuses.append(200)
            except ApiError as refused:
                statuses.append(refused.status)
        return statuses

    assert asyncio.run(minutes(Quotas(registry.engine), 0, 0, -3600, -3600, 3600)) == [200, 429, 200, 429, 200]


def test_request_that_is_over_is_kept_without_its_text_and_without_a_figure_for_each_token() -> None:
    watchers = Watchers(Metrics(Gauges(list)), None, None)
    seen = Measured("one", "ann", "7", "r:v1", "desk", said="the answer")
    for _ in range(500):
        seen.add([Delta(text="x")])
    watchers.finished(seen)
    kept = watchers.recent("one", "7")
    assert kept is seen and (kept.said, kept.ask) == ("", None)
    assert "inter_token_latency_seconds_count" in watchers.metrics.text().decode()
    assert kept.gaps == []  # counted, and let go


def test_figures_for_each_token_that_are_not_counted_yet_are_bounded() -> None:
    """Nobody looks at the metrics meanwhile."""
    watchers = Watchers(Metrics(Gauges(list)), None, None)
    seen = [Measured(str(number), "ann", "7", "r:v1", "desk") for number in range(100)]
    for each in seen:
        for _ in range(300):
            each.add([Delta(text="x")])
        watchers.finished(each)
        assert sum(len(one.gaps) for one in seen) <= TOGETHER_GAPS + 300
    assert sum(bool(one.gaps) for one in seen) < TOGETHER
