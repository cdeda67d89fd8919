"""A small HTTP server inside the test's event loop that sends exactly the bytes it is told to."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Asked:
    """One request as it came."""

    verb: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int
    client_gone: Callable[[], bool]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Fake:
    """Where it listens, what was asked, and how many connections clients have closed."""

    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0
    gone: asyncio.Event = field(default_factory=asyncio.Event)


Answer = Callable[[Asked, asyncio.StreamWriter], Awaitable[bool | None]]


@asynccontextmanager
async def listening(answer: Answer) -> AsyncIterator[Fake]:
    """Serve until the block ends. `answer` writes the response; when it returns False the connection is closed."""
    fake = Fake()
    writers: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fake.connections += 1
        number = fake.connections
        writers.add(writer)
        try:
            while (asked := await _read(reader, number)) is not None:
                fake.asked.append(asked)
                work = asyncio.create_task(_answered(answer, asked, writer))
                if await work is False:
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            fake.gone.set()
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield fake
    finally:
        server.close()
        for writer in writers:
            writer.close()


async def _answered(answer: Answer, asked: Asked, writer: asyncio.StreamWriter) -> bool | None:
    keep = await answer(asked, writer)
    await writer.drain()
    return keep


async def _read(reader: asyncio.StreamReader, number: int) -> Asked | None:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    verb, path, _ = first.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Asked(verb, path, headers, body, number, reader.at_eof)


def whole(body: Any, status: int = 200, extra: str = "") -> bytes:
    """A response with its length."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(data)}\r\n{extra}\r\n".encode() + data


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """A chunk of HTTP's chunked encoding; none = the end."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def events(*payloads: str, done: bool = True) -> bytes:
    """A whole stream of events, each in a chunk of its own."""
    sent = [chunk(f"data: {payload}\n\n".encode()) for payload in (*payloads, *(["[DONE]"] if done else []))]
    return HEAD + b"".join(sent) + chunk(b"")
