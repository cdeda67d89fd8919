"""Measuring an endpoint: a played one on loopback, and the bounds by hand."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engines"))

from http_fake import Answer, Asked, Fake, events, listening, whole

from inhouse.api.bench_serve import BenchServe, BenchServeRequest, ServeLine, at, bench_serve
from inhouse.api.machine_bounds import Bounds, Decode, measure_bounds
from inhouse.cli.bench_views import bench_serve as show
from inhouse.core.errors import UserError
from inhouse.core.model import ModelFacts
from inhouse.core.run import Events

PIECE = '{"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}'
USAGE = '{"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":3}}'
FACTS = ModelFacts(
    format="gguf", main="m.gguf", name="m", parameters=100, layers=2, hidden=8, heads=4, kv_heads=2, bytes=1000
)


def played(answer: Answer) -> Iterator[Fake]:
    """An endpoint in a thread of its own, with its own event loop."""
    ready, stop = threading.Event(), asyncio.Event()
    found: list[tuple[Fake, asyncio.AbstractEventLoop]] = []

    async def serve() -> None:
        async with listening(answer) as fake:
            found.append((fake, asyncio.get_running_loop()))
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    assert ready.wait(5)
    yield found[0][0]
    found[0][1].call_soon_threadsafe(stop.set)
    thread.join(5)


@pytest.fixture
def endpoint() -> Iterator[Fake]:
    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(events(PIECE, PIECE, PIECE, USAGE))

    yield from played(answer)


@pytest.fixture
def busy_endpoint() -> Iterator[Fake]:
    """Answers the first two requests and refuses the others."""
    count = iter(range(1000))

    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(events(PIECE, USAGE) if next(count) < 2 else whole({"error": {"message": "slow down"}}, 429))

    yield from played(answer)


def request_for(fake: Fake, tmp_path: Path, **more: object) -> BenchServeRequest:
    asked = {"url": fake.url + "/v1", "deployment": "desk", "key": "k", "clients": (1, 3), "workspace": tmp_path}
    return BenchServeRequest.model_validate(asked | more)


def test_every_client_asks_its_requests_and_tokens_are_the_endpoints_own_count(endpoint: Fake, tmp_path: Path) -> None:
    found = bench_serve(request_for(endpoint, tmp_path, requests=2), Events())
    assert [(line.clients, line.requests, line.failed, line.tokens) for line in found.lines] == [
        (1, 2, 0, 6),
        (3, 6, 0, 18),
    ]
    assert len(endpoint.asked) == 1 + 2 + 6  # one before, to warm up
    assert all(line.tokens_per_s > 0 and line.ttft_ms_p50 and line.whole_ms_p50 for line in found.lines)
    assert (found.bounds, found.started, found.deployment) == (None, False, "desk")


def test_requests_are_streamed_all_different_and_not_answered_from_memory(endpoint: Fake, tmp_path: Path) -> None:
    bench_serve(request_for(endpoint, tmp_path, max_tokens=7, clients=(4,)), Events())
    sent = endpoint.asked[1:]
    assert len({asked.json["messages"][0]["content"] for asked in sent}) == len(sent)
    first = sent[0]
    assert (first.json["model"], first.json["max_tokens"], first.json["stream"]) == ("desk", 7, True)
    assert (first.headers["cache-control"], first.headers["authorization"]) == ("no-store", "Bearer k")
    assert "ignore_eos" not in first.json  # not ours: it may refuse what it does not know


def test_refused_requests_are_counted_apart(busy_endpoint: Fake, tmp_path: Path) -> None:
    [line] = bench_serve(request_for(busy_endpoint, tmp_path, clients=(1,), requests=3), Events()).lines
    assert (line.requests, line.failed, line.tokens) == (3, 2, 3)


def test_nothing_begins_after_the_time_is_up(endpoint: Fake, tmp_path: Path) -> None:
    [line] = bench_serve(request_for(endpoint, tmp_path, clients=(2,), requests=1000, minutes=0.0005), Events()).lines
    assert line.requests < 2000


def test_progress_counts_all_requests(endpoint: Fake, tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    bench_serve(request_for(endpoint, tmp_path, requests=2), Events(log))
    last = json.loads(log.read_text().splitlines()[-1])
    assert (last["done"], last["total"], last["unit"]) == (8, 8, "requests")


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({}, "serve.no_deployment"),
        ({"url": "http://127.0.0.1:9"}, "chat.which_model"),
        ({"url": "http://127.0.0.1:9", "deployment": "x"}, "bench_serve.no_answer"),
        ({"url": "http://127.0.0.1:99999", "deployment": "x"}, "chat.unreachable"),
        ({"url": "http://[::1", "deployment": "x"}, "chat.unreachable"),
        ({"url": "müller", "deployment": "x"}, "chat.unreachable"),
        ({"url": "http://127.0.0.1:9", "deployment": "x", "key": "“ih-key”"}, "chat.bad_key"),
        ({"clients": (0,)}, "bench_serve.clients"),
        ({"clients": (1000,)}, "bench_serve.clients"),
    ],
)
def test_what_cannot_be_measured_is_refused(asked: dict[str, object], code: str, tmp_path: Path) -> None:
    (tmp_path / "objects").mkdir()
    with pytest.raises(UserError) as error:
        bench_serve(BenchServeRequest.model_validate({"workspace": tmp_path, **asked}), Events())
    assert error.value.code == code


def test_bound_is_the_smaller_of_memory_and_compute_by_hand() -> None:
    slow_memory = Bounds(threads=1, read_bytes_per_s=20_000, fp32_flops_per_s=1e9)
    # kept: 2 tensors x 2 bytes x 2 layers x 2 heads x (8 / 4) = 32 bytes a token, 10 tokens; 1000 bytes of weights
    alone = Decode.of(FACTS, slow_memory, 1, 10, 5.0)
    assert alone == Decode(most_tokens_per_s=20_000 / (1000 + 320), bound_by="memory", share=5.0 / (20_000 / 1320))
    shared = Decode.of(FACTS, slow_memory, 10, 10, 5.0)
    assert shared is not None and shared.most_tokens_per_s == pytest.approx(20_000 / (100 + 320))
    slow_compute = Bounds(threads=1, read_bytes_per_s=1e12, fp32_flops_per_s=4000)
    assert Decode.of(FACTS, slow_compute, 1, 10, 5.0) == Decode(most_tokens_per_s=20.0, bound_by="compute", share=0.25)


def test_bound_of_a_model_without_sizes_is_not_told() -> None:
    bounds = Bounds(threads=1, read_bytes_per_s=1, fp32_flops_per_s=1)
    assert Decode.of(ModelFacts(format="remote", main="u", name="m"), bounds, 1, 1, 1) is None


def test_machine_is_measured_in_plausible_numbers() -> None:
    found = measure_bounds()
    assert 1e8 < found.read_bytes_per_s < 1e13
    assert 1e8 < found.fp32_flops_per_s < 1e15


def test_quantiles_are_those_of_the_sorted_times() -> None:
    assert (at([], 0.5), at([3.0, 1.0, 2.0], 0.5), at([0.001 * n for n in range(100)], 0.95)) == (None, 2000.0, 95.0)


def test_table_names_times_shares_and_failures() -> None:
    from rich.console import Console

    decode = Decode(most_tokens_per_s=100, bound_by="memory", share=0.5)
    line = ServeLine(
        clients=8, requests=4, failed=1, tokens=10, tokens_per_s=50, ttft_ms_p50=1200, ttft_ms_p95=1300,
        inter_token_ms_p50=5.5, inter_token_ms_p95=12, whole_ms_p50=5000, decode=decode,
    )  # fmt: skip
    bounds = Bounds(threads=2, read_bytes_per_s=34.5e9, fp32_flops_per_s=150e9)
    result = BenchServe(url="u", deployment="d", started=True, lines=(line,), bounds=bounds, formula=Decode.formula())
    out = StringIO()
    show(result, Console(file=out, width=160))
    said = out.getvalue()
    for expected in ("50.0", "1,200", "5.5", "50% (memory)", "after 1.20 s", "after 5.00 s", "1 request", "34.5 GB/s"):
        assert expected in said
