"""What a gRPC call must bring before anything works for it: a key, and one whole message in time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from inhouse.core.messages import text
from inhouse.release.keys import Key
from inhouse.serve.errors import ApiError, invalid, overloaded
from inhouse.serve.grpc.messages import message
from inhouse.serve.grpc.refusals import refuse
from inhouse.serve.ids import new_request_id
from inhouse.serve.routes import Services

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
MESSAGE_S = 10.0  # from a call's headers to the end of its message
MOST_WATCHERS = 64  # of health: they need no key and never end by themselves
MOST_OF_PEER = 16  # of these from one address
WATCH_S = 300.0  # after which a watcher asks anew; one that only takes a place does not come back by itself


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Refuses every call without a valid key, reflection too; only health needs none, as over HTTP."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._watchers: Counter[str] = Counter()  # by address

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        """The call's own handler, or one that refuses."""
        if details.method == f"/{HEALTH}/Watch":
            return self._bounded(await continuation(details))
        if details.method.startswith(f"/{HEALTH}/"):
            return await continuation(details)
        if await key_of(self._services, dict(details.invocation_metadata)) is None:
            # For any kind of call: this one does not wait for a message that may never come.
            return grpc.stream_unary_rpc_method_handler(_keyless)
        return await continuation(details)

    def _bounded(self, handler: Any) -> Any:
        async def watch(request: Any, context: Any) -> None:
            peer = address_of(context.peer())
            if self._watchers.total() >= MOST_WATCHERS or self._watchers[peer] >= MOST_OF_PEER:
                await refuse(context, overloaded(503), new_request_id())
            self._watchers[peer] += 1
            try:
                with suppress(TimeoutError):
                    async with asyncio.timeout(WATCH_S):
                        await handler.unary_stream(request, context)
            finally:
                self._watchers[peer] -= 1
                self._watchers += Counter()  # forgets those with none

        return grpc.unary_stream_rpc_method_handler(
            watch, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
        )


def address_of(peer: str) -> str:
    """The address in what gRPC calls a peer (`ipv4:10.0.0.7:51234`), without the port."""
    return peer.rpartition(":")[0]


async def key_of(services: Services, metadata: dict[str, Any]) -> Key | None:
    """The key that a call carries."""
    kind, _, token = str(metadata.get("authorization", "")).partition(" ")
    return await services.deployments.keys.find(token.strip()) if kind.lower() == "bearer" else None


async def read_message(kind: str, requests: AsyncIterator[bytes]) -> Any:
    """The one message of a call. Raises ApiError 408 when it does not come, 400 when it is none.

    Calls are declared with streams of bytes: gRPC itself waits for a message for ever, and tells a client of bytes
    that are none in its own words, after a traceback in the log.
    """
    try:
        async with asyncio.timeout(MESSAGE_S):
            told = await anext(aiter(requests))
    except TimeoutError:
        raise ApiError(408, "request_timeout", text("serve.slow_body", seconds=int(MESSAGE_S))) from None
    except StopAsyncIteration:
        raise invalid(text("serve_faces.no_message")) from None
    try:
        return message(kind).FromString(told)
    except DecodeError:
        raise invalid(text("serve_faces.bad_message", kind=kind)) from None


async def _keyless(requests: Any, context: Any) -> None:
    await refuse(context, ApiError(401, "invalid_api_key", text("serve.bad_key")), new_request_id())
