"""The HTTP surface as a plain ASGI application: a key, a route, an answer.

Plain ASGI and not a framework: at 2 tokens per 10 ms and 64 streams a framework costs more than the relay itself
(docs/decisions/0003-serving.md).
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from inhouse.core.errors import InhouseError
from inhouse.core.messages import text
from inhouse.release.keys import Key
from inhouse.serve.constraints import current_tenant
from inhouse.serve.deployments import Deployments
from inhouse.serve.errors import STOPPING, ApiError, stopping
from inhouse.serve.exchange import EXCHANGE
from inhouse.serve.http import Call, Connection, Gone, Receive, Scope, Send
from inhouse.serve.ids import new_request_id
from inhouse.serve.measured import Measured
from inhouse.serve.routes import Routes, Services

ANTHROPIC = "/v1/messages"
OLLAMA = "/api/"
if TYPE_CHECKING:
    from inhouse.serve.grpc.server import Twin
    from inhouse.serve.tls import Secured

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
log = logging.getLogger("inhouse.serve")


class Gateway:
    """Deployments behind OpenAI's routes."""

    def __init__(self, deployments: Deployments, on_started: Callable[[], None], tls: Secured | None = None) -> None:
        self.tls = tls
        self.services = Services.over(deployments)
        self.routes = Routes()
        self.on_started = on_started
        self.stopping: Callable[[], bool] = bool  # whether the server drains

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one ASGI connection."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._http(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        await self.services.start()
        twin = await self._twin()
        await send({"type": "lifespan.startup.complete"})
        self.on_started()
        await receive()
        if twin is not None:
            await twin.stop()
        await self.services.stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def _twin(self) -> Twin | None:
        """The same over gRPC, where a port is set."""
        settings = self.services.settings
        if settings.grpc_port is None:
            return None
        from inhouse.serve.grpc.server import Twin

        found = Twin(self.services, settings.host, settings.grpc_port, self.tls)
        await found.start(self.stopping)
        return found

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        id = given if given and REQUEST_ID.fullmatch(given) else new_request_id()
        connection = Connection(send, id, scope.get("extensions", {}).get(EXCHANGE))
        if scope["path"].startswith(OLLAMA):
            connection.shape = "ollama"
        elif scope["path"].startswith(ANTHROPIC):
            connection.shape = "anthropic"
        call = Call(scope, receive, connection, headers, self.services.settings.max_body_bytes)
        try:
            await self._route(call)
        except ApiError as error:
            if not error.counted:
                self.services.metrics.refused.add((str(error.status), error.code or "invalid_request"))
            await connection.refuse(error)
        except Gone:
            return
        except asyncio.CancelledError as cancelled:
            if STOPPING not in cancelled.args:
                raise
            await connection.refuse(stopping())
        except (InhouseError, DBAPIError) as error:  # the registry is locked, away or full; an engine does not load
            log.error("request %s: %s", connection.request_id, error)
            await connection.refuse(unable(error))
        except Exception:  # the border of the product: a bug is logged, and its words stay inside
            log.exception("request %s failed", connection.request_id)
            await connection.refuse(ApiError(500, "internal_error", text("serve.internal")))

    async def _route(self, call: Call) -> None:
        """Refuse everything without a valid key, routes that do not exist too."""
        if call.path != "/health":
            call.key = await self._authorise(call)
            current_tenant.set(call.key.id)
        route, call.parts = self.routes.find(call.scope["method"], call.path)
        if call.key is not None and not call.key.allows(route.scope):
            raise ApiError(403, "insufficient_scope", text("serve.scope", scope=route.scope))
        began = time.monotonic()
        try:
            await route.handle(self.services, call)
        except ApiError as error:
            if call.key is not None and route.verb == "POST":
                id, key = call.connection.request_id, call.key
                self._note(Measured(id, key.name, str(key.id), began=began, route=route.path), error)
            raise

    def _note(self, seen: Measured, error: ApiError) -> None:
        """Tell who watches of a request that was refused before it had a release, so that it can be found."""
        watchers = self.services.watchers
        known = watchers.recent(seen.request_id, seen.tenant)
        if known is None or known.began < seen.began:  # else it came further, and was told
            seen.fail(error)
            watchers.refused(seen)

    async def _authorise(self, call: Call) -> Key:
        kind, _, token = call.header("authorization").partition(" ")
        if not kind and call.path.startswith(ANTHROPIC):  # whose clients have a header of their own
            kind, token = "bearer", call.header("x-api-key")
        key = await self.services.deployments.keys.find(token.strip()) if kind.lower() == "bearer" else None
        if key is None:
            raise ApiError(401, "invalid_api_key", text("serve.bad_key"))
        return key


def unable(error: InhouseError | DBAPIError) -> ApiError:
    """Our words for what this server cannot do now: 507 where the disk is full, which trying again does not help."""
    if (isinstance(error, InhouseError) and error.code == "store.no_space") or "disk is full" in str(error):
        return ApiError(507, "insufficient_storage", text("serve.disk_full"))
    return ApiError(503, "temporarily_unavailable", text("serve.not_now"))
