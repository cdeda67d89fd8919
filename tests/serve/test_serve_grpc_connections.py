"""Connections to the gRPC port that have shown no key: so many at most, and none for long."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from inhouse.serve import door
from inhouse.serve.grpc import server

HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # and empty settings
MOST, IDLE_S = 10, 1


async def ended(reader: asyncio.StreamReader, within_s: float) -> bool:
    """Whether the server closes this connection in that time."""
    with suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(within_s):
            while await reader.read(4096):
                pass
        return True
    return reader.exception() is not None


async def flooded() -> tuple[int, int]:
    """Of 40 connections: those that are alive at once and those after the time of an idle one; then a client asks."""
    served = grpc.aio.server(options=server.bounds(deadline_s=5))
    served_health = health.aio.HealthServicer()
    await served_health.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(served_health, served)
    port = served.add_insecure_port("127.0.0.1:0")
    await served.start()
    opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(40)]
    for _, writer in opened:
        writer.write(HELLO)
    kept = [await asyncio.gather(*(ended(reader, seconds) for reader, _ in opened)) for seconds in (0.5, IDLE_S + 2)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for pause_s in (0, IDLE_S + 0.5):  # it comes back after its own connection was closed
            await asyncio.sleep(pause_s)
            assert (await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)).status == 1
    await served.stop(0)
    at_once, later = (sum(not one for one in row) for row in kept)
    return at_once, later


def test_connections_without_calls_are_bounded_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "most_connections", lambda: 4 * MOST)
    monkeypatch.setattr(server, "KEEP_S", IDLE_S)
    at_once, later = asyncio.run(flooded())
    assert 0 < at_once <= MOST and later == 0


def test_grpc_has_a_part_of_the_connections() -> None:
    assert [door.grpc_connections(most) for most in (16, 768, 65_280)] == [4, 192, 4096]
