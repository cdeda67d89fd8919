"""HTTP to an engine: a JSON body out, an event stream or a whole answer back.

A small client of our own because this is the hot path: per streamed token aiohttp takes 33 µs of CPU and httpx 108
(docs/decisions/0003-serving.md). Redirects are never followed.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from inhouse.core.serving import EngineLost
from inhouse.engines.http_connection import Connection, nothing

END_S = 1.0  # an engine gets so long to end a response properly after its last event


class Refused(Exception):
    """The engine answered with another status than 200. `body` holds its words, which no client may see."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(status)
        self.status = status
        self.body = body


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a connection is waited for, how long an engine may say nothing, how many connections are kept."""

    connect_s: float = 5.0
    silence_s: float = 300.0
    most_idle: int = 256


class Origin:
    """An address with its idle connections. Used inside one event loop."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str] | None = None,
        patience: Patience = Patience(),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`headers` go with every request. `tls`: who vouches for an https address; absent: the machine's issuers."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or not url.isascii():
            raise ValueError(f"not an http address: {url}")
        self.host = parts.hostname
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        self.base = parts.path.rstrip("/")
        self.patience = patience
        self._tls = (tls or ssl.create_default_context()) if parts.scheme == "https" else None
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._common = b"Host: %b\r\n" % parts.netloc.rpartition("@")[2].encode("ascii")
        self._common += b"Content-Type: application/json\r\nAccept: text/event-stream, application/json\r\n"
        self._common += _lines(headers or {})

    async def stream(
        self, path: str, body: bytes, push: Callable[[list[str]], bool] | None = None
    ) -> AsyncGenerator[list[str], None]:
        """The data of each event, as lists of what arrived together. Closing the generator closes the connection.

        `push` is offered what comes while the next list is waited for (core.serving.Push).

        Raises Refused, EngineLost (also when the stream ends without its end mark), EngineSilent.
        """
        connection = await self._ask(self._request("POST", path, body, None), events=True)
        connection.push = push
        try:
            if connection.status != 200:
                raise Refused(connection.status, await connection.body())
            while (found := await connection.take()) is not None:
                yield found
        except BaseException:  # also GeneratorExit and cancellation: the slot is freed by the closed connection
            self._drop(connection)
            raise
        finally:
            connection.push = None  # it holds the answer
        self._let_end(connection)

    async def call(
        self, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Status and body of one request; GET without a body. Being cancelled closes the connection.

        Raises EngineLost, EngineSilent.
        """
        verb = "GET" if body is None else "POST"
        connection = await self._ask(self._request(verb, path, body or b"", headers), events=False)
        try:
            found = await connection.body()
        except BaseException:  # also cancellation
            self._drop(connection)
            raise
        self._let_end(connection)
        return connection.status, found

    async def close(self) -> None:
        """Close every connection, those in use too."""
        for connection in (*self._idle, *self._busy):
            connection.abort()
        self._idle.clear()
        self._busy.clear()

    def _request(self, verb: str, path: str, body: bytes, headers: Mapping[str, str] | None) -> bytes:
        own = _lines(headers) if headers else b""
        head = f"{verb} {self.base}{path} HTTP/1.1\r\n".encode("ascii")
        return b"%b%b%bContent-Length: %d\r\n\r\n%b" % (head, self._common, own, len(body), body)

    async def _ask(self, request: bytes, events: bool) -> Connection:
        """A connection on which the status of the response has come."""
        if self._idle:
            connection = self._idle.pop()
            try:
                return await self._sent(connection, request, events)
            except EngineLost:
                # An engine may close an idle connection at any time, llama.cpp after every stream without saying so.
                if connection.answered:
                    raise
        return await self._sent(await self._connect(), request, events)

    async def _sent(self, connection: Connection, request: bytes, events: bool) -> Connection:
        connection.begin(events)
        self._busy.add(connection)
        try:
            connection.send(request)
            await connection.head()
        except BaseException:  # also cancellation
            self._drop(connection)
            raise
        return connection

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.patience.connect_s):
                _, connection = await loop.create_connection(
                    lambda: Connection(self.patience.silence_s), self.host, self.port, ssl=self._tls
                )
        except (OSError, TimeoutError) as error:
            raise EngineLost from error
        connection.on_lost = lambda: self._forget(connection)
        return connection

    def _let_end(self, connection: Connection) -> None:
        """Keep a connection for the next request, once its response has ended properly."""
        if connection.whole:
            self._keep(connection)
            return
        timer = asyncio.get_running_loop().call_later(END_S, self._drop, connection)

        def ended() -> None:
            timer.cancel()
            self._keep(connection)

        connection.on_whole = ended

    def _keep(self, connection: Connection) -> None:
        connection.on_whole = nothing
        if connection.reusable and connection.transport is not None and len(self._idle) < self.patience.most_idle:
            connection.rest()
            self._busy.discard(connection)
            self._idle.append(connection)
        else:
            self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        connection.abort()
        self._forget(connection)

    def _forget(self, connection: Connection) -> None:
        self._busy.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)


def _lines(headers: Mapping[str, str]) -> bytes:
    """Header lines; a value that would begin another line is refused."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    if lines.count("\r") != len(headers) or lines.count("\n") != len(headers):
        raise ValueError("a header may not hold a line break")
    return lines.encode("latin-1")
