"""Many clients at once, in one event loop, that notice everything: the tests of survival and bench/soak use it."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import psutil

CHAT = "/v1/chat/completions"
Body = Callable[[int], dict[str, Any]]


@dataclass
class Answer:
    """One answer."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Seen:
    """What a crowd saw. `cut`: connections that broke; `told`: streams that ended with an error event."""

    statuses: Counter[int] = field(default_factory=Counter)
    answered_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    unpaced: int = 0  # refusals without Retry-After
    cut: int = 0
    told: int = 0
    unfinished: int = 0  # streams without an end
    refused_to_connect: int = 0

    @property
    def requests(self) -> int:
        return sum(self.statuses.values()) + self.cut

    def add(self, answer: Answer, seconds: float) -> None:
        self.statuses[answer.status] += 1
        (self.answered_s if answer.status == 200 else self.refused_s).append(seconds)
        if answer.status in (429, 503) and "retry-after" not in answer.headers:
            self.unpaced += 1
        if answer.headers.get("content-type", "").startswith("text/event-stream"):
            self.told += b'"error"' in answer.body
            self.unfinished += b'"error"' not in answer.body and not answer.body.endswith(b"data: [DONE]\n\n")


def quantile(times: list[float], share: float) -> float:
    """Seconds that this share of the requests took at most; 0 without any."""
    return sorted(times)[min(len(times) - 1, int(share * len(times)))] if times else 0.0


class Wire:
    """One connection that is kept; opened again when it was closed."""

    def __init__(self, url: str, key: str) -> None:
        self.host, self.port = urlsplit(url).hostname or "", urlsplit(url).port or 80
        self.key = key
        self.open: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    def head(self, path: str, length: int) -> bytes:
        said = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self.key}\r\nCache-Control: no-store\r\n"
        return f"{said}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n".encode()

    async def send(self, body: dict[str, Any], path: str = CHAT) -> asyncio.StreamReader:
        if self.open is None:
            self.open = await asyncio.open_connection(self.host, self.port, limit=2**20)
        raw = json.dumps(body).encode()
        self.open[1].write(self.head(path, len(raw)) + raw)
        await self.open[1].drain()
        return self.open[0]

    async def ask(self, body: dict[str, Any], path: str = CHAT) -> Answer:
        reader = await self.send(body, path)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:-2])}
        if "content-length" in headers:
            found = await reader.readexactly(int(headers["content-length"]))
        else:
            pieces = []
            while size := int(await _line(reader), 16):
                pieces.append((await reader.readexactly(size + 2))[:-2])
            await reader.readline()
            found = b"".join(pieces)
        if headers.get("connection") == "close":
            self.close()
        return Answer(int(lines[0].split()[1]), headers, found)

    def close(self) -> None:
        if self.open is not None:
            self.open[1].close()
            self.open = None


async def _line(reader: asyncio.StreamReader) -> bytes:
    line = await reader.readline()
    if not line.endswith(b"\n"):
        raise asyncio.IncompleteReadError(line, None)
    return line


async def crowd(at: tuple[str, str], clients: int, until: float, body: Body, pause_s: float = 0.05) -> Seen:
    """`clients` ask one thing after another until that moment of the monotonic clock; refused ones pause a little."""
    seen = Seen()

    async def client(number: int) -> None:
        wire = Wire(*at)
        count = 0
        while time.monotonic() < until:
            count += 1
            began = time.monotonic()
            try:
                answer = await wire.ask(body(number * 1_000_000 + count))
            except ConnectionRefusedError:
                seen.refused_to_connect += 1
                await asyncio.sleep(pause_s)
                continue
            except (OSError, asyncio.IncompleteReadError):
                seen.cut += 1
                wire.close()
                continue
            seen.add(answer, time.monotonic() - began)
            if answer.status != 200:
                await asyncio.sleep(pause_s)
        wire.close()

    await asyncio.gather(*(client(number) for number in range(clients)))
    return seen


async def leaver(at: tuple[str, str], until: float, body: dict[str, Any]) -> int:
    """Ask for long answers and go away from each after a moment; how often."""
    count = 0
    while time.monotonic() < until:
        wire = Wire(*at)
        await wire.send(body | {"stream": bool(count % 2)})
        await asyncio.sleep(0.2)
        wire.close()
        count += 1
    return count


@dataclass(frozen=True)
class Size:
    """What a server and its engines take."""

    rss_mb: float
    engines_mb: float
    fds: int
    threads: int


def size_of(pid: int) -> Size:
    """Measured now."""
    server = psutil.Process(pid)
    engines = sum(child.memory_info().rss for child in server.children(recursive=True))
    return Size(server.memory_info().rss / 2**20, engines / 2**20, server.num_fds(), server.num_threads())
