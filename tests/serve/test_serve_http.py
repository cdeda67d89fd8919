"""One HTTP request: what is watched while it is answered."""

from __future__ import annotations

import asyncio
import gc
import weakref
from types import SimpleNamespace
from typing import Any, cast

import pytest

from inhouse.serve import http
from inhouse.serve.errors import ApiError
from inhouse.serve.exchange import Exchange
from inhouse.serve.http import Call, Connection, Shape, Watch


async def unsent(message: dict[str, Any]) -> None:
    """Nothing is looked at."""


def test_request_that_was_watched_is_gone_with_its_end_and_not_when_garbage_is_looked_for() -> None:
    watches: list[weakref.ref[Watch]] = []

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    async def request() -> None:
        async def work() -> None:
            await asyncio.sleep(3 * http.WATCHED.delay_s)  # longer than it takes until somebody looks
            watches.extend(weakref.ref(each) for each in gc.get_objects() if isinstance(each, Watch))

        call = Call({"path": "/"}, receive, Connection(unsent, "r1"), {}, 100)
        await call.while_there(work())

    async def go() -> None:
        gc.disable()
        try:
            await asyncio.create_task(request())
            await asyncio.sleep(0.05)
        finally:
            gc.enable()

    asyncio.run(go())
    assert watches
    assert [watch() for watch in watches] == [None]


def test_body_that_has_come_whole_and_is_too_large_is_refused() -> None:
    async def go(size: int) -> bytes:
        exchange = Exchange(
            cast(Any, SimpleNamespace(flow=SimpleNamespace(resume_reading=bool))),
            {"method": "POST", "http_version": "1.1"},
            True,
            False,
        )
        exchange.body, exchange.more_body = bytearray(b"x" * size), False
        return await Call({"path": "/"}, nothing_more, Connection(unsent, "r1", exchange), {}, 100).body(100)

    assert asyncio.run(go(100)) == b"x" * 100
    with pytest.raises(ApiError) as refused:
        asyncio.run(go(101))
    assert refused.value.status == 413


async def nothing_more() -> dict[str, Any]:
    raise AssertionError


@pytest.mark.parametrize(
    ("shape", "line"),
    [
        ("openai", b'data: {"error": {"message": "no", "type": "server_error", "param": null, "code": "c"}}\n\n'),
        (
            "anthropic",
            b"event: error\ndata: "
            b'{"type": "error", '
            b'"error": {"message": "no", "type": "overloaded_error", "param": null, "code": "c"}}\n\n',
        ),
        ("ollama", b'{"error": "no"}\n'),
    ],
)
def test_error_inside_a_stream_has_the_shape_of_its_face(shape: Shape, line: bytes) -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def go() -> None:
        connection = Connection(send, "r1")
        connection.shape = shape
        await connection.open_events()
        await connection.refuse(ApiError(503, "c", "no"))

    asyncio.run(go())
    assert (sent[-1]["body"], sent[-1]["more_body"]) == (line, False)
