"""A request that did not come over HTTP, answered by the same route: the lines of batches."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inhouse.core.messages import text
from inhouse.release.keys import Key
from inhouse.serve.constraints import current_tenant
from inhouse.serve.errors import ApiError
from inhouse.serve.http import Call, Connection
from inhouse.serve.ids import new_request_id

if TYPE_CHECKING:
    from inhouse.serve.routes import Route, Services

log = logging.getLogger("inhouse.serve")


@dataclass(frozen=True)
class Sent:
    """What the route answered: always JSON."""

    status: int
    request_id: str
    body: bytes


class Caught:
    """Takes what a route sends."""

    def __init__(self) -> None:
        self.status = 500
        self.pieces: list[bytes] = []

    async def __call__(self, message: dict[str, Any]) -> None:
        """One ASGI message of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.pieces.append(message.get("body", b""))


async def dispatch(services: Services, route: Route, key: Key, body: bytes) -> Sent:
    """Answer one request with a JSON body, when nobody else waits for the engine."""
    caught = Caught()
    connection = Connection(caught, new_request_id())
    scope = {"type": "http", "method": route.verb, "path": route.path, "query_string": b"", "headers": []}
    call = Call(scope, _receive(body), connection, {}, services.settings.max_body_bytes, key, background=True)
    current_tenant.set(key.id)
    try:
        if not key.allows(route.scope):
            raise ApiError(403, "insufficient_scope", text("serve.scope", scope=route.scope))
        await route.handle(services, call)
    except ApiError as error:
        await connection.refuse(error)
    except Exception:  # as at the gateway's border: a bug is logged, and its words stay inside
        log.exception("request %s failed", connection.request_id)
        await connection.refuse(ApiError(500, "internal_error", text("serve.internal")))
    return Sent(caught.status, connection.request_id, b"".join(caught.pieces))


def _receive(body: bytes) -> Any:
    told = False

    async def receive() -> dict[str, Any]:
        nonlocal told
        if told:  # this client never leaves
            await asyncio.Event().wait()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive
