"""A stream that says nothing for a while says that it lives, and can still be begun again."""

from __future__ import annotations

import asyncio
from typing import Any

from inhouse.core.serving import Ask, Delta, Sampling, Usage
from inhouse.serve.errors import unavailable
from inhouse.serve.http import Connection
from inhouse.serve.pings import Pings
from inhouse.serve.replies import StreamReply
from inhouse.serve.requests import Asked


class Wire:
    """What was sent."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    async def send(self, message: dict[str, Any]) -> None:
        self.messages.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.messages)


def test_silent_stream_is_kept_alive_and_its_answer_follows() -> None:
    async def scene() -> Wire:
        wire = Wire()
        connection = Connection(wire.send, "1")
        reply = StreamReply(connection, Asked("desk", Ask(Sampling(4), messages=[])))
        pings = Pings(connection, 0.02)
        await asyncio.sleep(0.07)
        assert wire.body.count(b": ping\n\n") >= 2 and not reply.sent
        await reply.add([Delta("Hi", finish="stop")])
        assert reply.sent
        await reply.finish(Usage(1, 1))
        pings.end()
        said = wire.body
        await asyncio.sleep(0.05)
        assert wire.body == said
        return wire

    wire = asyncio.run(scene())
    assert [m["status"] for m in wire.messages if m["type"] == "http.response.start"] == [200]
    assert wire.body.endswith(b"data: [DONE]\n\n")


def test_stream_that_speaks_gets_no_pings() -> None:
    async def scene() -> bytes:
        wire = Wire()
        connection = Connection(wire.send, "1")
        reply = StreamReply(connection, Asked("desk", Ask(Sampling(4), messages=[])))
        pings = Pings(connection, 0.2)
        for _ in range(6):
            await reply.add([Delta("Hi")])
            await asyncio.sleep(0.05)
        pings.end()
        return wire.body

    assert b"ping" not in asyncio.run(scene())


def test_error_after_a_ping_is_the_last_event() -> None:
    async def scene() -> Wire:
        wire = Wire()
        connection = Connection(wire.send, "1")
        pings = Pings(connection, 0.01)
        await asyncio.sleep(0.03)
        pings.end()
        await connection.refuse(unavailable())
        return wire

    wire = asyncio.run(scene())
    assert wire.body.split(b"\n\n")[-2].startswith(b'data: {"error"') and wire.messages[-1]["more_body"] is False
