"""The HTTP surface as a plain ASGI application: a key, a checked body, a turn, the engine, the answer.

Plain ASGI and not a framework: at 2 tokens per 10 ms and 64 streams a framework costs more than the relay itself
(docs/decisions/0003-serving.md).
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from inhouse import __version__
from inhouse.core.messages import text
from inhouse.serve.deployments import Deployments, Target
from inhouse.serve.errors import ApiError, overloaded, too_late, unavailable
from inhouse.serve.metrics import Measured, Metrics
from inhouse.serve.replies import Connection, Reply, Send, StreamReply, WholeReply
from inhouse.serve.requests import Asked, prepare, read_chat, read_completion
from inhouse.serve.upstream import EngineLost, EngineSilent, open_session, stream

if TYPE_CHECKING:
    import aiohttp

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
READ_BODY_S = 30.0
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
HEADER_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
log = logging.getLogger("inhouse.serve")


class Gone(Exception):
    """The client closed the connection before its request was whole."""


class Gateway:
    """One deployment behind OpenAI's routes."""

    def __init__(self, deployments: Deployments, on_started: Callable[[], None]) -> None:
        self.deployments = deployments
        self.settings = deployments.params
        self.on_started = on_started
        self.started_at = int(time.time())
        self._session: aiohttp.ClientSession | None = None
        self.metrics = Metrics(
            running=lambda: deployments.current.target.admission.running,
            waiting=lambda: deployments.current.target.admission.waiting,
            restarts=lambda: deployments.current.target.supervisor.restarts,
        )
        deployments.on_switch = lambda result: self.metrics.switches.labels(result).inc()
        self.routes: dict[str, tuple[str, Callable[[Scope, Receive, Connection], Awaitable[None]]]] = {
            "/health": ("GET", self.health),
            "/ready": ("GET", self.ready),
            "/version": ("GET", self.version),
            "/metrics": ("GET", self.numbers),
            "/v1/models": ("GET", self.models),
            "/v1/chat/completions": ("POST", self.chat),
            "/v1/completions": ("POST", self.complete),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one ASGI connection."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._http(scope, receive, send)

    async def health(self, scope: Scope, receive: Receive, connection: Connection) -> None:
        """The process answers. Needs no key and tells nothing more."""
        await connection.reply(200, b'{"status":"ok"}')

    async def ready(self, scope: Scope, receive: Receive, connection: Connection) -> None:
        """Whether the engine can answer now."""
        if not self.deployments.ready:
            raise unavailable()
        label = self.deployments.current.target.release.label
        await connection.reply(200, json.dumps({"status": "ready", "release": label}).encode())

    async def version(self, scope: Scope, receive: Receive, connection: Connection) -> None:
        """The version of inhouse."""
        await connection.reply(200, json.dumps({"version": __version__}).encode())

    async def numbers(self, scope: Scope, receive: Receive, connection: Connection) -> None:
        """Prometheus metrics."""
        await connection.reply(200, self.metrics.text(), b"text/plain; version=0.0.4; charset=utf-8")

    async def models(self, scope: Scope, receive: Receive, connection: Connection) -> None:
        """The model list, or one model of it."""
        wanted = scope["path"].removeprefix("/v1/models").removeprefix("/")
        names = self.deployments.names()
        if wanted and wanted not in names:
            raise ApiError(404, "model_not_found", text("serve.model_unknown", model=wanted[:100]), "model")
        found = [
            {"id": name, "object": "model", "created": self.started_at, "owned_by": "inhouse"}
            for name in ([wanted] if wanted else names)
        ]
        await connection.reply(200, json.dumps(found[0] if wanted else {"object": "list", "data": found}).encode())

    async def chat(self, scope: Scope, receive: Receive, connection: Connection) -> None:
        """POST /v1/chat/completions."""
        body = read_chat(await self._body(scope, receive))
        await self._answer(body, receive, connection)

    async def complete(self, scope: Scope, receive: Receive, connection: Connection) -> None:
        """POST /v1/completions."""
        body = read_completion(await self._body(scope, receive))
        await self._answer(body, receive, connection)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        self._session = open_session()
        await send({"type": "lifespan.startup.complete"})
        self.on_started()
        await receive()
        await self._session.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        connection = Connection(send, given if REQUEST_ID.fullmatch(given) else secrets.token_hex(16))
        try:
            await self._route(scope, receive, connection, headers)
        except ApiError as error:
            await connection.refuse(error)
        except Gone:
            return
        except Exception:  # the border of the product: a bug is logged, and its words stay inside
            log.exception("request %s failed", connection.headers[0][1].decode())
            await connection.refuse(ApiError(500, "internal_error", text("serve.internal")))

    async def _route(self, scope: Scope, receive: Receive, connection: Connection, headers: dict[bytes, bytes]) -> None:
        path = scope["path"]
        if path != "/health":
            await self._authorise(headers)
        if path.startswith("/v1/models/"):
            path = "/v1/models"
        if path not in self.routes:
            raise ApiError(404, "not_found", text("serve.no_route"))
        verb, handler = self.routes[path]
        if scope["method"] != verb:
            raise ApiError(405, "method_not_allowed", text("serve.verb", verb=verb))
        await handler(scope, receive, connection)

    async def _authorise(self, headers: dict[bytes, bytes]) -> None:
        """Refuse everything without a valid key, routes that do not exist too."""
        kind, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if kind.lower() != "bearer" or not await self.deployments.authorised(token.strip()):
            raise ApiError(401, "invalid_api_key", text("serve.bad_key"))

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """The request's body, refused by its size before it is read."""
        headers = dict(scope["headers"])
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise ApiError(415, "unsupported_encoding", text("serve.encoding"))
        kind = headers.get(b"content-type", b"application/json").split(b";")[0].strip().lower()
        if kind != b"application/json":
            raise ApiError(415, "unsupported_media_type", text("serve.media_type"))
        length = headers.get(b"content-length", b"0")
        most = self.settings.max_body_bytes
        if not length.isdigit() or int(length) > most:
            raise ApiError(413, "request_too_large", text("serve.too_large", most=most))
        try:
            async with asyncio.timeout(READ_BODY_S):
                return await _read_all(receive, most)
        except TimeoutError:
            raise ApiError(408, "request_timeout", text("serve.slow_body", seconds=int(READ_BODY_S))) from None

    async def _answer(self, body: Any, receive: Receive, connection: Connection) -> None:
        """Answer until done, or until the client has gone: then the engine is let go at once."""
        target = self.deployments.enter(body.model)
        seen = Measured(model=target.release.label)
        began = time.monotonic()
        try:
            asked = prepare(body, target.limits)
            self._mark(connection, target, asked)
            work = asyncio.create_task(self._generate(target, asked, connection, seen))
            gone = asyncio.create_task(_closed(receive))
            try:
                await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
                seen.status = 200
                if not work.done():
                    seen.status = 499
                    raise Gone
                work.result()
            finally:
                gone.cancel()
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
        except ApiError as error:
            seen.status = error.status
            raise
        finally:
            self.deployments.leave(target)
            self.metrics.observe(seen, time.monotonic() - began)

    def _mark(self, connection: Connection, target: Target, asked: Asked) -> None:
        """Say in headers which release answers, and which fields were not looked at."""
        connection.headers.append((b"x-inhouse-release", target.release.label.encode()))
        if asked.ignored:
            names = [name if HEADER_NAME.fullmatch(name) else "?" for name in asked.ignored[:20]]
            connection.headers.append((b"x-inhouse-ignored-fields", ",".join(names).encode()))

    async def _generate(self, target: Target, asked: Asked, connection: Connection, seen: Measured) -> None:
        reply: Reply = (StreamReply if asked.stream else WholeReply)(connection, asked, seen)
        began = time.monotonic()
        admitted = False
        try:
            async with asyncio.timeout(self.settings.deadline_s), target.admission:
                admitted = True
                await self._relay(target, asked, reply, lambda: _first(seen, began), connection)
        except TimeoutError:
            raise too_late(self.settings.deadline_s) if admitted else overloaded(503) from None

    async def _relay(
        self, target: Target, asked: Asked, reply: Reply, on_chunk: Callable[[], None], connection: Connection
    ) -> None:
        """Pass the engine's chunks on. A lost engine is tried once more, unless the client has seen something."""
        assert self._session is not None
        for last in (False, True):
            engine = await target.engine()
            try:
                async with aclosing(stream(self._session, engine, asked, self.settings.first_token_s)) as chunks:
                    async for chunk in chunks:
                        on_chunk()
                        await reply.add(chunk)
                await reply.finish()
                return
            except EngineSilent:
                target.kill(engine)
                raise too_late(self.settings.first_token_s) from None
            except EngineLost:
                if last or connection.status:
                    raise unavailable() from None
                reply.reset()
                await target.lost(engine)


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


def _first(seen: Measured, began: float) -> None:
    if seen.first_token_s is None:
        seen.first_token_s = time.monotonic() - began
