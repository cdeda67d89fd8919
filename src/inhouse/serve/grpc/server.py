"""The endpoint over gRPC: the same keys, limits and answers as over HTTP, in the same event loop."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from inhouse.core.messages import text
from inhouse.core.serving import Usage
from inhouse.release.keys import Scope
from inhouse.serve.constraints import current_tenant
from inhouse.serve.direct import borrowed, vectors
from inhouse.serve.door import KEEP_S, grpc_connections, most_connections
from inhouse.serve.errors import END_S, STOPPING, ApiError, stopping
from inhouse.serve.grpc.border import HEALTH, WATCH_S, Guard, key_of, read_message
from inhouse.serve.grpc.faces import StreamFace, WholeFace, tell
from inhouse.serve.grpc.messages import (
    SERVICE,
    chat_body,
    completion_body,
    embedding_body,
    message,
    pool,
    usage_of,
)
from inhouse.serve.grpc.refusals import refuse
from inhouse.serve.http import STILL_WANTED_S
from inhouse.serve.ids import new_request_id
from inhouse.serve.pipeline import Caller
from inhouse.serve.requests import ChatBody, CompletionBody, prepare, read_body, read_chat, read_completion
from inhouse.serve.routes import Services
from inhouse.serve.routes.embeddings import EmbeddingBody, shorten
from inhouse.serve.tls import Secured

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
LOOK_S = 0.25  # how soon health tells that engines have come or gone, and that the server stops
MOST_CALLS = 4096  # at the same time; the queue of a release is far shorter
# Calls that nobody has looked at yet. Of more than 1,000, gRPC's own bound, it cancels some without a reason.
MOST_PENDING = 10_000
HANDSHAKE_MS = 10_000
AGE_MS = 3_600_000  # of a connection: after that its client connects anew
log = logging.getLogger("inhouse.serve")


class Twin:
    """The gRPC server beside the HTTP one."""

    def __init__(self, services: Services, host: str, port: int, tls: Secured | None = None) -> None:
        self.services = services
        options = [
            ("grpc.max_receive_message_length", services.settings.max_body_bytes),
            ("grpc.so_reuseport", 0),
            ("grpc.http2.max_ping_strikes", 2),
            ("grpc.server.max_pending_requests", MOST_PENDING),
            ("grpc.server.max_pending_requests_hard_limit", 2 * MOST_PENDING),
            ("grpc.server_handshake_timeout_ms", HANDSHAKE_MS),
            *bounds(services.settings.deadline_s),
        ]
        guard = Guard(services)
        self._server = grpc.aio.server(interceptors=(guard,), options=options, maximum_concurrent_rpcs=MOST_CALLS)
        self._calls = Calls(services)
        self._server.add_generic_rpc_handlers((self._calls.handlers(),))
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE, HEALTH, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server, pool=pool())
        shown = f"[{host}]" if ":" in host else host
        self.port: int = _take_port(self._server, f"{shown}:{port}", tls)
        self._watch: asyncio.Task[None] | None = None

    async def start(self, stopping: Callable[[], bool]) -> None:
        """Answer from now on. When `stopping` says so, no further call is taken, while HTTP drains too."""
        await self._server.start()
        self._watch = asyncio.create_task(self._follow(stopping))

    async def stop(self) -> None:
        """Take no further call, let the running ones finish within serve.drain_s, tell the rest that it is over."""
        if self._watch is not None:
            self._watch.cancel()
            with suppress(asyncio.CancelledError):
                await self._watch
        await self._drain()

    async def _follow(self, stopping: Callable[[], bool]) -> None:
        told: bool | None = None
        while not stopping():
            if (ready := self.services.deployments.ready) != told:
                told = ready
                status = health_pb2.HealthCheckResponse
                for name in ("", SERVICE):
                    await self._health.set(name, status.SERVING if ready else status.NOT_SERVING)
            await asyncio.sleep(LOOK_S)
        await self._drain()

    async def _drain(self) -> None:
        await self._health.enter_graceful_shutdown()
        drain_s = self.services.settings.drain_s
        ending = asyncio.create_task(self._server.stop(drain_s + END_S))
        await asyncio.wait({ending}, timeout=drain_s)
        for work in list(self._calls.running):
            work.cancel(STOPPING)
        await ending


def bounds(deadline_s: float) -> list[tuple[str, int]]:
    """How many connections there may be, and for how long: none of them has shown a key yet.

    gRPC refuses what is beyond the bound. Clients connect again by themselves, and calls that run are not cut.
    """
    return [
        ("grpc.max_allowed_incoming_connections", grpc_connections(most_connections())),
        ("grpc.max_connection_idle_ms", 1000 * KEEP_S),
        ("grpc.max_connection_age_ms", AGE_MS),
        ("grpc.max_connection_age_grace_ms", 1000 * ceil(deadline_s + WATCH_S)),
    ]


def _take_port(server: Any, address: str, tls: Secured | None) -> int:
    if tls is None:
        return int(server.add_insecure_port(address))
    return int(server.add_secure_port(address, grpc.ssl_server_credentials([(tls.key, tls.certificate)])))


@dataclass(frozen=True)
class Method:
    """A call: its path, what a key needs for it, the name of its message, and what answers."""

    route: str
    scope: Scope
    asked: str
    work: Callable[[Any, Any, Caller], Awaitable[Any]]


class Calls:
    """The calls of inhouse.v1.Inference."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.running: set[asyncio.Future[None]] = set()  # answers that are being made

    def handlers(self) -> Any:
        """What gRPC needs to know of them."""
        one, many = grpc.stream_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        calls: tuple[tuple[str, Any, Any, str, Scope], ...] = (
            ("Chat", one, self._chat, "ChatRequest", "chat"),
            ("ChatStream", many, self._chat_stream, "ChatRequest", "chat"),
            ("Complete", one, self._complete, "CompleteRequest", "chat"),
            ("CompleteStream", many, self._complete_stream, "CompleteRequest", "chat"),
            ("Embed", one, self._embed, "EmbedRequest", "embed"),
            ("ListModels", one, self._list_models, "ListModelsRequest", "chat"),
        )
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                name: make(
                    partial(self._attend, Method(f"/{SERVICE}/{name}", scope, asked, work)),
                    response_serializer=lambda made: made.SerializeToString(),
                )
                for name, make, work, asked, scope in calls
            },
        )

    async def _attend(self, method: Method, requests: Any, context: Any) -> Any:
        """The border of these calls: who asks, and refusals in gRPC's shape."""
        metadata = dict(context.invocation_metadata() or ())
        given = str(metadata.get("x-request-id", ""))
        request_id = given if REQUEST_ID.fullmatch(given) else new_request_id()
        try:
            key = await key_of(self.services, metadata)
            if key is None:  # revoked since the call began
                raise ApiError(401, "invalid_api_key", text("serve.bad_key"))
            current_tenant.set(key.id)
            if not key.allows(method.scope):
                raise ApiError(403, "insufficient_scope", text("serve.scope", scope=method.scope))
            request = await read_message(method.asked, requests)
            headers = {name.encode(): str(value).encode("latin-1", "replace") for name, value in metadata.items()}
            fresh = str(metadata.get("cache-control", "")) in ("no-store", "no-cache")
            return await method.work(
                request, context, Caller(key, request_id, method.route, None, headers, fresh=fresh)
            )
        except ApiError as error:
            refused = error
            if error.code == "model_not_found":  # told in the words of this face: it has no GET
                error.message = text("serve.model_unknown_call", model=request.model[:100])
        except Exception:  # the border of the product: a bug is logged, and its words stay inside
            log.exception("request %s failed", request_id)
            refused = ApiError(500, "internal_error", text("serve.internal"))
        if not refused.counted:
            self.services.metrics.refused.add((str(refused.status), refused.code or "invalid_request"))
        return await refuse(context, refused, request_id)

    async def _chat(self, request: Any, context: Any, caller: Caller) -> Any:
        face = WholeFace(context, caller)
        await self._answer(read_chat(chat_body(request, stream=False)), caller, face)
        return face.made

    async def _chat_stream(self, request: Any, context: Any, caller: Caller) -> None:
        await self._answer(read_chat(chat_body(request, stream=True)), caller, StreamFace(context, caller))

    async def _complete(self, request: Any, context: Any, caller: Caller) -> Any:
        face = WholeFace(context, caller)
        await self._answer(read_completion(completion_body(request, stream=False)), caller, face)
        return face.made

    async def _complete_stream(self, request: Any, context: Any, caller: Caller) -> None:
        await self._answer(read_completion(completion_body(request, stream=True)), caller, StreamFace(context, caller))

    async def _embed(self, request: Any, context: Any, caller: Caller) -> Any:
        body = read_body(EmbeddingBody, embedding_body(request))
        async with borrowed(self.services, caller, body.model, turn=True) as lent:
            found, tokens = await vectors(lent, body.inputs())
            caller.notes.append((b"x-inhouse-release", lent.release.encode()))
        if body.dimensions is not None:
            found = [shorten(vector, body.dimensions) for vector in found]
        await tell(context, caller)
        return message("Embeddings")(
            model=body.model,
            data=[message("Vector")(values=vector) for vector in found],
            usage=usage_of(Usage(tokens, 0)),
        )

    async def _list_models(self, request: Any, context: Any, caller: Caller) -> Any:
        made = message("ModelList")()
        for name in self.services.deployments.names(caller.key):
            made.data.add(id=name, created=self.services.started_at, owned_by="inhouse")
        await tell(context, caller)
        return made

    async def _answer(self, body: ChatBody | CompletionBody, caller: Caller, face: WholeFace | StreamFace) -> None:
        """Run the pipeline. gRPC cancels this call at its deadline, or when its client has gone."""
        asking = replace(caller, user=body.user)
        work = asyncio.create_task(self.services.pipeline.run(body.model, partial(prepare, body), asking, face))
        self.running.add(work)
        work.add_done_callback(self.running.discard)
        await while_wanted(work, caller)


async def while_wanted(task: asyncio.Task[None], caller: Caller) -> None:
    """Wait for the work; when this call is cancelled, go on as long as others read along with it.

    Raises what the work raises, and that the server stops where it was cancelled for that.
    """
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        if task.cancelled():  # the work, not this call
            raise stopping() from None
        while caller.wanted() and not task.done():
            await asyncio.wait({task}, timeout=STILL_WANTED_S)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        raise
