"""The door over a small application: clients that send, read or wait too long, and how the others fare meanwhile."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
import uvicorn

from inhouse.serve import door

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
OK = b"HTTP/1.1 200 OK"
LARGE = 2_500_000


class App:
    """`/` answers at once; `/stream` sends until the client is gone; `/slow` waits for `go` or for the client's end.

    `/late` answers after longer than a head may take.
    """

    def __init__(self) -> None:
        self.begun = 0
        self.ended = 0
        self.go = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.begun += 1
        try:
            if scope["path"] == "/stream":
                await self._stream(receive, send)
                return
            if scope["path"] == "/large":
                await _answer(send, 200, b"x" * LARGE)
                return
            if scope["path"] == "/drip":
                await self._drip(send)
                return
            if scope["path"] == "/late":
                await asyncio.sleep(0.6)
            while scope["path"] == "/slow" and not self.go.is_set() and not await _gone(receive):
                pass
            await _answer(send, 401 if scope["path"] == "/refuse" else 200)
        finally:
            self.ended += 1

    async def _drip(self, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(45):
            await send({"type": "http.response.body", "body": b"token", "more_body": number < 44})
            await asyncio.sleep(0.03)

    async def _stream(self, receive: Any, send: Any) -> None:
        watch = asyncio.create_task(_until_gone(receive))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not watch.done():
            await send({"type": "http.response.body", "body": b"x" * 4096, "more_body": True})
            await asyncio.sleep(0)


async def _answer(send: Any, status: int, body: bytes = b"ok") -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [length]})
    await send({"type": "http.response.body", "body": body})


async def _gone(receive: Any) -> bool:
    try:
        return bool((await asyncio.wait_for(receive(), 0.02))["type"] == "http.disconnect")
    except TimeoutError:
        return False


async def _until_gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Served:
    """The application behind a door, in a thread."""

    def __init__(self, most: int, tls: ssl.SSLContext | None = None) -> None:
        self.app = App()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        door.bound_unread(self.listener)
        config = uvicorn.Config(
            self.app, http=door.guarded(most, tls), ws="none", lifespan="off", log_config=None, access_log=False,
            timeout_keep_alive=int(door.KEEP_S), timeout_graceful_shutdown=1,
        )  # fmt: skip
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})
        self.thread.start()

    def connect(self) -> socket.socket:
        return socket.create_connection(self.listener.getsockname(), 10)

    def get(self) -> int:
        host, port = self.listener.getsockname()
        return httpx.get(f"http://{host}:{port}/", trust_env=False, timeout=5).status_code

    def connections(self) -> int:
        return len(self.server.server_state.connections)


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    """Short bounds: what takes seconds in service takes tenths here."""
    with pytest.MonkeyPatch.context() as patch:
        for name, seconds in (("KEEP_S", 1), ("HEAD_S", 0.3), ("STALLED_S", 0.6), ("LINGER_S", 0.3), ("SWEEP_S", 0.1)):
            patch.setattr(door, name, seconds)
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        yield
        logging.getLogger("uvicorn.error").setLevel(logging.NOTSET)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    made = Served(most=20)
    yield made
    made.app.go.set()
    made.server.should_exit = True
    made.thread.join(10)
    made.listener.close()


def closed(raw: socket.socket, within_s: float = 5) -> bytes:
    """What the server said until it closed the connection."""
    raw.settimeout(within_s)
    said = b""
    try:
        while piece := raw.recv(65536):
            said += piece
    except ConnectionError:
        pass
    return said


def wait_for(condition: Callable[[], bool], seconds: float = 5) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_header_sent_byte_by_byte_is_cut_while_others_are_answered(served: Served) -> None:
    slow = [served.connect() for _ in range(5)]
    for raw in slow:
        raw.sendall(GET[:-2] + b"X-Slow: ")
    began = time.monotonic()
    with pytest.raises(ConnectionError):
        while time.monotonic() - began < 5:
            for raw in slow:
                raw.sendall(b"x")
            assert served.get() == 200
            time.sleep(0.02)
    assert 0.25 < time.monotonic() - began < 3
    for raw in slow:
        raw.close()


@pytest.mark.parametrize("pieces", [1, 2])
def test_answer_may_take_longer_than_a_head(served: Served, pieces: int) -> None:
    whole = b"POST /late HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc"
    with served.connect() as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in (whole,) if pieces == 1 else (whole[:-2], whole[-2:]):
            raw.sendall(piece)
            time.sleep(0.02)
        assert closed(raw).startswith(OK)


def test_connection_that_asks_nothing_is_closed(served: Served) -> None:
    with served.connect() as never, served.connect() as once:
        once.sendall(GET)
        assert closed(once).startswith(OK)
        assert closed(never) == b""


@pytest.mark.parametrize("size", [70_000, 1_000_000])
def test_header_beyond_the_bound_is_refused_and_closed(served: Served, size: int) -> None:
    with served.connect() as raw:
        raw.settimeout(5)
        try:
            raw.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"a" * size + b"\r\n\r\n")
        except ConnectionError:  # closed before everything was taken
            return
        said = closed(raw)
        assert said == b"" or said.split(b"\r\n")[0] == b"HTTP/1.1 431 Request Header Fields Too Large"
        assert said.count(b"HTTP/1.1") <= 1


def test_many_headers_within_the_bound_are_taken(served: Served) -> None:
    with served.connect() as raw:
        raw.sendall(GET[:-2] + b"".join(b"X-%d: y\r\n" % n for n in range(2000)) + b"Connection: close\r\n\r\n")
        assert closed(raw).startswith(OK)


def test_what_is_no_http_is_refused_once_and_closed(served: Served) -> None:
    for sent in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET / HTTP/9.9\r\n\r\n", b"\x00" * 100):
        with served.connect() as raw:
            raw.sendall(sent)
            assert closed(raw).count(b"HTTP/1.1 400") == 1


def test_requests_sent_ahead_are_answered_in_order_and_bounded(served: Served) -> None:
    with served.connect() as raw:
        raw.sendall(GET * 10 + GET[:-2] + b"Connection: close\r\n\r\n")
        assert closed(raw).count(OK) == 11
    before = served.app.begun
    with served.connect() as raw:
        raw.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n" + GET * 5000)
        assert closed(raw).count(OK) == 0
    assert served.app.begun - before < 20
    assert served.get() == 200


def test_client_that_leaves_with_requests_ahead_frees_the_first(served: Served) -> None:
    running = served.app.begun - served.app.ended
    with served.connect() as raw:
        raw.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n" + GET * 3)
        wait_for(lambda: served.app.begun - served.app.ended == running + 1)
    wait_for(lambda: served.app.begun - served.app.ended == running)


def test_half_closed_client_counts_as_gone(served: Served) -> None:
    running = served.app.begun - served.app.ended
    with served.connect() as raw:
        raw.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: served.app.begun - served.app.ended == running + 1)
        raw.shutdown(socket.SHUT_WR)
        wait_for(lambda: served.app.begun - served.app.ended == running)


def test_stream_that_nobody_reads_is_dropped_with_a_bounded_buffer(served: Served) -> None:
    running = served.app.begun - served.app.ended
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(served.listener.getsockname())
        raw.sendall(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: served.app.begun - served.app.ended == running + 1)
        wait_for(lambda: served.app.begun - served.app.ended == running)
        assert len(closed(raw)) < 2**20 + door.UNSENT_BYTES


def unread(served: Served, path: str, window: int = 4096) -> socket.socket:
    """A client with a small window that has asked for something large."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
    raw.connect(served.listener.getsockname())
    raw.settimeout(5)
    raw.sendall(b"GET " + path.encode() + b" HTTP/1.1\r\nHost: x\r\n\r\n")
    return raw


def test_answer_that_nobody_reads_is_whole_at_once_and_dropped_later(served: Served) -> None:
    ended = served.app.ended
    with unread(served, "/large") as raw:
        wait_for(lambda: served.app.ended == ended + 1, 0.3)
        wait_for(lambda: served.connections() == 0, 5)
        assert len(closed(raw)) < LARGE


def test_answer_that_is_read_slowly_comes_whole(served: Served) -> None:
    """It takes many times as long as a client may read nothing, and as long as a connection may be idle."""
    began, found = time.monotonic(), 0
    with unread(served, "/large", window=65_536) as raw:
        while found < LARGE:
            piece = raw.recv(30_000)
            assert piece
            found += len(piece)
            time.sleep(0.02)
        assert time.monotonic() - began > 1.2


def test_stream_goes_on_while_somebody_reads(served: Served) -> None:
    with served.connect() as raw:
        raw.sendall(b"GET /drip HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert closed(raw).count(b"token") == 45


def test_body_that_goes_on_after_a_refusal_is_cut(served: Served) -> None:
    with served.connect() as raw:
        raw.sendall(b"POST /refuse HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 401")
        began = time.monotonic()
        with pytest.raises(ConnectionError):
            while time.monotonic() - began < 5:
                raw.sendall(b"x" * 1000)
                time.sleep(0.01)
        assert time.monotonic() - began < 3


@pytest.mark.parametrize("rest", [b"abc", b"abcGET", b"abcGET / HTTP/1.1\r\nx: y"])
def test_body_that_comes_after_its_refusal_leaves_no_connection_for_ever(served: Served, rest: bytes) -> None:
    with served.connect() as raw:
        raw.sendall(b"POST /refuse HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n")
        assert raw.recv(1000).startswith(b"HTTP/1.1 401")
        raw.sendall(rest)
        assert closed(raw, 4) == b""
    wait_for(lambda: served.connections() == 0)


def test_large_body_sent_ahead_does_not_hide_that_the_client_has_gone(served: Served) -> None:
    served.app.go.clear()
    began, ended = served.app.begun, served.app.ended
    with served.connect() as raw:
        raw.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: served.app.begun == began + 1)
        with suppress(OSError):
            raw.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3000000\r\n\r\n" + b"x" * 3_000_000)
    wait_for(lambda: served.app.ended == ended + 1)
    assert served.app.begun == began + 1


@pytest.mark.parametrize("path", [b"/", b"/refuse", b"/slow"])
@pytest.mark.parametrize("field", [b"a: b\r\n" * 1000, b"a" * 6000, b"5;" + b"x" * 6000])
def test_what_follows_a_body_in_chunks_is_bounded(served: Served, path: bytes, field: bytes) -> None:
    served.app.go.clear()
    sent = 0
    with served.connect() as raw, suppress(OSError):
        raw.sendall(b"POST %b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % path)
        raw.sendall(b"0\r\n" if field[0] == ord("a") else b"")
        while sent < 1000:
            raw.sendall(field)
            sent += 1
            time.sleep(0.001)
    assert sent < 200  # cut after 64 KiB; what lies in the sockets' buffers comes on top


def test_too_many_connections_close_those_that_wait_longest(served: Served) -> None:
    first = served.connect()
    rest = [served.connect() for _ in range(30)]
    assert served.get() == 200
    assert served.connections() <= 21
    assert closed(first, 1) == b""
    for raw in (first, *rest):
        raw.close()
    wait_for(lambda: served.connections() == 0)


def test_files_are_as_many_as_allowed_less_a_reserve() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))
        most = door.most_connections(reserved=100)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == most + 100
        assert most + 100 == min(before[1], door.MOST_FILES) if before[1] > 0 else door.MOST_FILES
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
