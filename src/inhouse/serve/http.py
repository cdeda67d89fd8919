"""One HTTP request over ASGI: what came, who sent it, and the way back."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal
from urllib.parse import parse_qs

from inhouse.core.messages import text
from inhouse.release.keys import Key
from inhouse.serve.errors import STOPPING, ApiError, stopping
from inhouse.serve.exchange import Exchange, Header
from inhouse.serve.later import Later

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
READ_BODY_S = 30.0
HEADER_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
MOST_NAMES = 20  # of ignored fields, in a header
STILL_WANTED_S = 0.1  # how soon it is noticed that the last one who reads along has gone too
EVENTS = b"text/event-stream; charset=utf-8"
Shape = Literal["openai", "ollama", "anthropic"]
SHAPES: dict[Shape, tuple[Callable[[ApiError], bytes], bytes, bytes]] = {  # the body, and what is around it in a stream
    "openai": (ApiError.body, b"data: ", b"\n\n"),
    "ollama": (ApiError.plain_body, b"", b"\n"),
    "anthropic": (ApiError.message_body, b"event: error\ndata: ", b"\n\n"),
}
WATCHED = Later(0.025)  # most requests are over before it is worth a task to look whether somebody still waits


class Gone(Exception):
    """The client closed the connection before its request was answered."""


class Connection:
    """The client's side of one request: what was sent, and with which headers."""

    def __init__(self, send: Send, request_id: str, exchange: Exchange | None = None) -> None:
        """`exchange` writes without ASGI's messages, where our own server runs the gateway."""
        self.send = send
        self.exchange = exchange
        self.request_id = request_id
        self.headers: list[Header] = [(b"x-request-id", request_id.encode())]
        self.status = 0
        self.wrote_at = time.monotonic()
        self.shape: Shape = "openai"  # of errors: Ollama's clients read one text, and lines that are no events

    def tell(self, release: str, ignored: Iterable[str]) -> None:
        """Say in headers which release answers, and which fields of the body were not looked at."""
        self.headers.append((b"x-inhouse-release", release.encode()))
        self.ignore(ignored)

    def ignore(self, ignored: Iterable[str]) -> None:
        """Name in a header the fields that were not looked at."""
        names = [name if HEADER_NAME.fullmatch(name) else "?" for name in islice(ignored, MOST_NAMES)]
        if names:
            self.headers.append((b"x-inhouse-ignored-fields", ",".join(names).encode()))

    async def start(self, status: int, content_type: bytes, extra: Iterable[Header] = ()) -> None:
        """Send status and headers."""
        self.status = status
        headers = [(b"content-type", content_type), *self.headers, *extra]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def open_events(self) -> None:
        """Begin a stream of server-sent events, unless it has begun."""
        if not self.status:
            await self.start(200, EVENTS, [(b"cache-control", b"no-cache")])

    async def write(self, body: bytes, more: bool = True) -> None:
        """Send a piece of the body."""
        self.wrote_at = time.monotonic()
        await self.send({"type": "http.response.body", "body": body, "more_body": more})

    async def reply(
        self, status: int, body: bytes, content_type: bytes = b"application/json", extra: Iterable[Header] = ()
    ) -> None:
        """Send a whole answer."""
        headers = ((b"content-type", content_type), *self.headers, *extra)
        if self.exchange is not None and not self.status and self.exchange.whole_answer(status, headers, body):
            self.status = status
            return
        await self.start(status, content_type, [(b"content-length", str(len(body)).encode()), *extra])
        await self.write(body, more=False)

    async def refuse(self, error: ApiError) -> None:
        """Send an error: as a reply, or as the last event of a stream that has begun."""
        write, before, after = SHAPES[self.shape]
        if self.status:
            await self.write(before + write(error) + after, more=False)
        else:
            await self.reply(error.status, write(error), extra=error.headers)


@dataclass
class Call:
    """One request with a checked key. `parts` are the values of the route's `{names}`."""

    scope: Scope
    receive: Receive
    connection: Connection
    headers: dict[bytes, bytes]
    most_bytes: int
    key: Key | None = None  # None only on routes that need none
    parts: dict[str, str] = field(default_factory=dict)
    background: bool = False  # of a batch: only when nobody else waits

    @property
    def path(self) -> str:
        """The path, without the query."""
        return str(self.scope["path"])

    def header(self, name: str) -> str:
        """A header's value; empty when it was not sent."""
        return self.headers.get(name.encode(), b"").decode("latin-1")

    @property
    def fresh(self) -> bool:
        """Whether the client wants neither an answer from memory nor its own kept there."""
        said = self.headers.get(b"cache-control", b"")
        return b"no-store" in said or b"no-cache" in said

    def query(self, name: str) -> str | None:
        """The first value of a query parameter."""
        found = parse_qs(self.scope.get("query_string", b"").decode("latin-1")).get(name)
        return found[0] if found else None

    async def json_body(self) -> bytes:
        """The body of a request that says it is JSON; an empty content type is taken for it."""
        kind = self.headers.get(b"content-type", b"application/json").split(b";")[0].strip().lower()
        if kind != b"application/json":
            raise ApiError(415, "unsupported_media_type", text("serve.media_type"))
        return await self.body(self.most_bytes)

    async def body(self, most: int) -> bytes:
        """The whole body, refused by its size before it is read."""
        if self.headers.get(b"content-encoding", b"identity") != b"identity":
            raise ApiError(415, "unsupported_encoding", text("serve.encoding"))
        length = self.headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > most:
            raise ApiError(413, "request_too_large", text("serve.too_large", most=most))
        exchange = self.connection.exchange
        if exchange is not None and (found := exchange.whole_body()) is not None:
            if len(found) > most:
                raise ApiError(413, "request_too_large", text("serve.too_large", most=most))
            return found
        try:
            async with asyncio.timeout(READ_BODY_S):
                return await _read_all(self.receive, most)
        except TimeoutError:
            raise ApiError(408, "request_timeout", text("serve.slow_body", seconds=int(READ_BODY_S))) from None

    async def reply(self, value: Any, status: int = 200) -> None:
        """Answer with JSON."""
        await self.connection.reply(status, json.dumps(value, ensure_ascii=False).encode())

    async def while_there(self, work: Coroutine[Any, Any, None], wanted: Callable[[], bool] = bool) -> None:
        """Run the work until it is done, or until the client has gone and nobody else wants it: then it is cancelled.

        The body must have been read. Raises Gone, and what the work raises.
        """
        # One task and not two: the work stays in the task of the request, and is cancelled from beside it.
        watch = Watch(asyncio.current_task(), self.receive, wanted)
        try:
            await work
        except asyncio.CancelledError as cancelled:
            if watch.gone:
                raise Gone from None
            if STOPPING in cancelled.args:
                raise stopping() from None
            raise
        finally:
            watch.end()


class Watch:
    """Cancels a request's task when its client has gone and nobody else wants the answer."""

    def __init__(self, task: asyncio.Task[Any] | None, receive: Receive, wanted: Callable[[], bool]) -> None:
        assert task is not None
        self.task = task
        self.receive = receive
        self.wanted = wanted
        self.gone = False
        self._beside: asyncio.Task[None] | None = None
        self._timer = WATCHED.add(self._begin)

    def end(self) -> None:
        """The request is over."""
        WATCHED.cancel(self._timer)
        if self._beside is not None:
            self._beside.cancel()
            self._beside = None  # it holds this object, and would keep all of the request until garbage is looked for

    def _begin(self) -> None:
        self._beside = asyncio.create_task(self._look())

    async def _look(self) -> None:
        await _closed(self.receive)
        while self.wanted():
            await asyncio.sleep(STILL_WANTED_S)
        self.gone = True
        self.task.cancel()


async def _read_all(receive: Receive, most: int) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > most:
            raise ApiError(413, "request_too_large", text("serve.too_large", most=most))
        if not message.get("more_body", False):
            return b"".join(pieces)


async def _closed(receive: Receive) -> None:
    """Return when the client has closed its side."""
    while (await receive())["type"] != "http.disconnect":
        pass
