"""Requests and answers over real connections: in one piece, in pieces, and from an application with faults."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import pytest
import uvicorn
from test_serve_door import closed, wait_for

from inhouse.serve import door
from inhouse.serve.exchange import EXCHANGE, UNREAD_BODY, Exchange

TEXT = (b"content-type", b"text/plain")
PIECES, PIECE_BYTES = 300, 40_000  # more than the buffers of both sides hold


class App:
    """`/echo…` sends the body back; the other paths do what their name says, wrongly."""

    def __init__(self) -> None:
        self.in_one_piece: list[bool] = []
        self.seen: list[dict[str, Any]] = []
        self.headers: list[tuple[bytes, bytes]] = []
        self.flowed: list[bool] = []
        self.kept: list[weakref.ref[Exchange]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.seen.append({name: scope[name] for name in ("method", "path", "raw_path", "query_string", "http_version")})
        self.kept.append(weakref.ref(receive.__self__))
        path = scope["path"]
        if path == "/raise":
            raise ZeroDivisionError
        if path == "/nothing":
            return
        if path.startswith("/echo"):
            await self._echo(scope, receive, send)
            return
        if path == "/pushed":
            await self._pushed(scope, send)
            return
        size = {"/short": b"9", "/long": b"1"}.get(path, b"5")
        value = b"a\r\nx-made: up" if path == "/break" else b"a"
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-length", size), (b"x", value)]}
        )
        if path == "/stop":
            return
        await send({"type": "http.response.body", "body": b"12345"})
        await send({"type": "http.response.body", "body": b"again"})

    async def _pushed(self, scope: Any, send: Any) -> None:
        exchange: Exchange = scope["extensions"][EXCHANGE]
        assert not exchange.flows  # nothing has begun
        await send({"type": "http.response.start", "status": 200, "headers": [TEXT]})
        for number in range(PIECES):
            piece = b"%d" % (number % 10) * PIECE_BYTES
            self.flowed.append(exchange.flows)
            if exchange.flows:
                exchange.write(piece)
            else:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        assert not exchange.flows  # all is said

    async def _echo(self, scope: Any, receive: Any, send: Any) -> None:
        if "late" in scope["path"]:
            await asyncio.sleep(0.05)
        exchange: Exchange = scope["extensions"][EXCHANGE]
        body = exchange.whole_body()
        self.in_one_piece.append(body is not None)
        more = body is None
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return  # raised, it would be logged, and the log holds what was being done
            body = (body or b"") + message["body"]
            more = message["more_body"]
        self.headers = list(scope["headers"])
        status = 204 if "empty" in scope["path"] else 201
        if "pieces" not in scope["path"] and exchange.whole_answer(status, [TEXT], body):
            return
        await send({"type": "http.response.start", "status": status, "headers": [TEXT]})
        for place in range(0, len(body), 1000):
            await send({"type": "http.response.body", "body": body[place : place + 1000], "more_body": True})
        await send({"type": "http.response.body", "body": b""})


class Served:
    """The application behind a door, in a thread."""

    def __init__(self) -> None:
        self.app = App()
        self.listener = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(
            self.app, http=door.guarded(20), ws="none", lifespan="off", log_config=None, access_log=False
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})
        self.thread.start()
        host, port = self.listener.getsockname()
        self.url = f"http://{host}:{port}"

    def say(self, raw: bytes) -> bytes:
        """What is answered until the connection is closed, for what is sent in one piece."""
        with socket.create_connection(self.listener.getsockname(), 10) as client:
            client.sendall(raw)
            return closed(client)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    made = Served()
    yield made
    made.server.should_exit = True
    made.thread.join(10)
    made.listener.close()


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, trust_env=False, timeout=10) as found:
        yield found


@pytest.mark.parametrize("path", ["/echo", "/echo-late", "/echo-pieces", "/echo-late-pieces"])
@pytest.mark.parametrize("size", [0, 1, 1500, UNREAD_BODY + 1, 1_000_000])
def test_body_comes_back_as_it_was_sent(client: httpx.Client, path: str, size: int) -> None:
    sent = bytes(number % 251 for number in range(size))
    for _ in range(2):  # the second one over the same connection
        found = client.post(path, content=sent)
        assert (found.status_code, found.content) == (201, sent)
        assert found.headers["content-type"] == "text/plain"
        assert ("content-length" in found.headers) == ("pieces" not in path)


def test_pieces_are_written_without_waiting_as_long_as_the_client_reads(served: Served) -> None:
    with socket.create_connection(served.listener.getsockname(), 10) as client:
        client.sendall(b"GET /pushed HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        time.sleep(0.3)  # it does not read: the buffers are full
        said = closed(client)
    wanted = b"".join(b"%x\r\n%b\r\n" % (PIECE_BYTES, b"%d" % (n % 10) * PIECE_BYTES) for n in range(PIECES))
    assert said.partition(b"\r\n\r\n")[2] == wanted + b"0\r\n\r\n"
    assert set(served.app.flowed) == {True, False}


def test_answer_in_pieces_to_a_client_of_http_1_0_is_not_in_chunks(served: Served) -> None:
    said = served.say(b"POST /echo-pieces HTTP/1.0\r\nhost: x\r\ncontent-length: 5\r\n\r\nhello")
    head, _, body = said.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head and b"connection: close" in head
    assert body == b"hello"


def test_body_that_comes_with_its_head_is_there_at_once(served: Served) -> None:
    served.app.in_one_piece.clear()
    served.say(b"POST /echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}")
    assert served.app.in_one_piece == [True]


def test_body_in_chunks_is_taken(client: httpx.Client) -> None:
    found = client.post("/echo", content=iter([b"one", b"two", b"", b"three" * 30_000]))
    assert found.content == b"onetwo" + b"three" * 30_000


def test_fields_behind_a_body_change_nothing_of_the_head(served: Served) -> None:
    head = b"POST /echo-late HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: a\r\n"
    said = served.say(head + b"transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nauthorization: b\r\nx-late: c\r\n\r\n")
    assert said.endswith(b"\r\n\r\nok")
    assert dict(served.app.headers) == {
        b"host": b"x", b"connection": b"close", b"authorization": b"a", b"transfer-encoding": b"chunked"
    }  # fmt: skip


def test_answers_tell_their_date(client: httpx.Client) -> None:
    found = [client.get(path).headers["date"] for path in ("/echo", "/echo-pieces", "/raise")]
    for told in found:
        assert abs(parsedate_to_datetime(told) - datetime.now(UTC)) < timedelta(seconds=10)


def test_client_that_waited_in_vain_gets_its_answer_and_no_more_on_this_connection(served: Served) -> None:
    with socket.create_connection(served.listener.getsockname(), 10) as client:
        client.sendall(b"POST /nothing HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n")
        said = closed(client)
    assert said.startswith(b"HTTP/1.1 500") and b"connection: close\r\n" in said
    assert b"100 Continue" not in said


def test_client_that_waits_to_be_told_is_told(served: Served) -> None:
    with socket.create_connection(served.listener.getsockname(), 10) as client:
        client.settimeout(5)
        client.sendall(b"POST /echo HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n")
        assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"abc")
        said = client.recv(1000)
    assert said.startswith(b"HTTP/1.1 201 Created\r\n")
    assert said.endswith(b"\r\n\r\nabc")


def test_path_and_query_are_read_as_uvicorn_does(served: Served, client: httpx.Client) -> None:
    client.get("/echo/%E4%B8%AD%20x?a=%2F&b")
    assert served.app.seen[-1] == {
        "method": "GET", "path": "/echo/中 x", "raw_path": b"/echo/%E4%B8%AD%20x", "query_string": b"a=%2F&b",
        "http_version": "1.1",
    }  # fmt: skip


def test_head_has_no_body(served: Served) -> None:
    for path, status in ((b"/echo", b"201 Created"), (b"/raise", b"500 Internal Server Error")):
        said = served.say(b"HEAD %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n" % path)
        assert said.startswith(b"HTTP/1.1 %b\r\n" % status)
        assert said.endswith(b"\r\n\r\n")


def test_answer_without_a_body_tells_no_length(served: Served) -> None:
    said = served.say(b"GET /echo-empty HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 204 No Content\r\n")
    assert b"content-length" not in said and b"chunked" not in said


@pytest.mark.parametrize("first", [b"POST /echo HTTP/1.0\r\n", b"POST /echo HTTP/1.1\r\nconnection: close\r\n"])
def test_connection_ends_where_the_client_says_so(served: Served, first: bytes) -> None:
    with socket.create_connection(served.listener.getsockname(), 10) as client:
        client.sendall(first + b"host: x\r\ncontent-length: 2\r\n\r\nok")
        said = closed(client)
    assert said.endswith(b"\r\n\r\nok")
    assert b"connection: close\r\n" in said


def test_answers_to_requests_sent_ahead_come_in_order(served: Served) -> None:
    asked = b"".join(
        b"POST /echo%s HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\n%d" % (b"-late" if number % 2 else b"", number)
        for number in range(6)
    )
    with socket.create_connection(served.listener.getsockname(), 10) as client:
        client.settimeout(5)
        client.sendall(asked)
        said = b""
        while said.count(b"201 Created") < 6 or not said.endswith(b"5"):
            said += client.recv(10_000)
    assert [part[-1:] for part in said.split(b"HTTP/1.1 201")[1:]] == [b"0", b"1", b"2", b"3", b"4", b"5"]


@pytest.mark.parametrize("path", ["/raise", "/nothing", "/break"])
def test_fault_before_the_answer_is_a_500_that_names_nothing(client: httpx.Client, path: str) -> None:
    found = client.get(path)
    assert (found.status_code, found.text) == (500, "Internal Server Error")
    assert "x-made" not in found.headers
    assert client.get("/echo").status_code == 201


@pytest.mark.parametrize("path", ["/stop", "/short", "/long"])
def test_fault_in_the_answer_ends_the_connection(client: httpx.Client, path: str) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        client.get(path)
    assert client.get("/echo").status_code == 201


def test_answer_that_is_sent_twice_is_sent_once(client: httpx.Client) -> None:
    assert client.get("/twice").text == "12345"
    assert client.get("/echo").status_code == 201


def test_exchange_is_gone_with_its_connection_and_not_when_garbage_is_looked_for(served: Served) -> None:
    served.app.kept.clear()
    gc.collect()
    others = [each for each in gc.get_objects() if isinstance(each, Exchange)]  # of servers of other tests
    gc.disable()
    try:
        with httpx.Client(base_url=served.url, trust_env=False) as client:
            client.post("/echo", content=b"x")
            client.post("/echo-pieces", content=b"x" * 5000)
            wait_for(lambda: served.app.kept[0]() is None)
        with suppress(httpx.HTTPError):
            httpx.get(served.url + "/stop", trust_env=False)
        with socket.create_connection(served.listener.getsockname(), 10) as raw:
            raw.sendall(b"GET /echo-late HTTP/1.1\r\nhost: x\r\n\r\n" * 5)  # four of them never begin
        wait_for(lambda: [kept() for kept in served.app.kept] == [None] * len(served.app.kept))
        wait_for(lambda: all(each in others for each in gc.get_objects() if isinstance(each, Exchange)))
    finally:
        gc.enable()
