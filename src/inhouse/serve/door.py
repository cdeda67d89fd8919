"""The door to the gateway: connections that take too long or too much are cut, so that others do not pay for them.

uvicorn bounds neither how long a request's head may take, nor how large it may be, nor how long a client may leave its
answer unread (0.54). Here all three are, and when there are too many connections, those that ask for nothing make room.
With TLS a connection is counted and timed from its first moment: uvicorn learns of it only after the handshake.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from httptools import parse_url
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvloop.loop import SSLProtocol  # type: ignore[attr-defined]  # what its create_server(ssl=…) uses; untyped

from inhouse.serve.errors import STOPPING
from inhouse.serve.exchange import UNREAD_BODY, Exchange

KEEP_S = 30  # without a request; longer than the clients' own pools keep one (httpx: 5 s), or they meet a closed one
HEAD_S = 10.0  # from the first byte of a request to the end of its headers; with TLS, for the handshake too
HEAD_BYTES = 64 * 2**10
STALLED_S = 30.0  # an answer of which the client reads nothing
LINGER_S = 5.0  # how long the rest of a body that was refused is read, so that the client sees why
PIPELINED = 16  # requests sent ahead of answers
UNSENT_BYTES = 2 * 2**20  # of an answer, kept here so that its engine need not wait for a client that reads slowly
UNREAD_BYTES = 256 * 2**10  # of an answer, in the kernel; the kernel's own bound is some megabytes
SWEEP_S = 1.0
MOST_FILES = 65_536
MOST_GRPC = 4096  # connections; as many calls
ASGI = {"version": "3.0", "spec_version": "2.3"}
HEAD_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Door:
    """The connections that wait for a request or for the rest of its head, each kind longest first."""

    def __init__(self, most: int, drain_s: float) -> None:
        self.most = most
        self.drain_s = drain_s
        self.idle: dict[Guarded | Handshake, float] = {}
        self.heads: dict[Guarded | Handshake, float] = {}
        self._sweeping = False

    def make_room(self, loop: asyncio.AbstractEventLoop, connections: int) -> None:
        """Close the connection that has asked for nothing for the longest time, when there are too many."""
        if not self._sweeping:
            self._sweeping = True
            loop.call_later(SWEEP_S, self._sweep, loop)
        if connections > self.most:
            for waiting in (self.heads, self.idle):
                if waiting:
                    next(iter(waiting)).cut()
                    return

    def forget(self, connection: Guarded | Handshake) -> None:
        """It waits no longer."""
        self.idle.pop(connection, None)
        self.heads.pop(connection, None)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        # One timer for all: a timer for each request would cost more than the request's parsing.
        now = loop.time()
        for waiting, most_s in ((self.idle, KEEP_S), (self.heads, HEAD_S)):
            for connection in [each for each, since in waiting.items() if now - since > most_s]:
                self.forget(connection)
                if waiting is self.heads:
                    connection.cut()
                elif not connection.transport.get_write_buffer_size():  # else it reads its answer: looked after
                    connection.transport.close()
        loop.call_later(SWEEP_S, self._sweep, loop)


@dataclass(frozen=True)
class Unsent:
    """What a client had not read when its answer was whole, or when the buffers were full."""

    timer: asyncio.TimerHandle
    bytes: int
    of: Exchange | None


class Guarded(HttpToolsProtocol):
    """One connection. Subclassed as uvicorn asks for: `Config(http=…)` takes a protocol class.

    Parsing, errors, shutting down and the flow of bytes are uvicorn's; requests are `Exchange`s, of HTTP only.
    """

    door: Door  # set by `guarded`
    cycle: Exchange  # type: ignore[assignment]
    pipeline: deque[tuple[Exchange, Any]]  # type: ignore[assignment]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self._in_head = True  # between requests too: what comes next begins one
        self._body_open = False
        self._head_bytes = 0
        self._unread = 0  # bytes behind a head that were no part of a body
        self._answering: Exchange | None = None
        self._task: asyncio.Task[None] | None = None  # that answers it
        self._unsent: Unsent | None = None
        self._has_read = False
        transport.set_write_buffer_limits(high=UNSENT_BYTES)
        self.door.make_room(self.loop, len(self.connections))
        self.door.idle[self] = self.loop.time()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone: every request that it has sent ahead is told, not only the last."""
        self.door.forget(self)
        if self._unsent is not None:
            self._unsent.timer.cancel()
        for cycle in (self._answering, *(cycle for cycle, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)
        self.cycle = self._answering = self._unsent = self._task = None  # type: ignore[assignment]  # they hold this object

    def data_received(self, data: bytes) -> None:
        """Read on, within bounds."""
        if not self._in_head:
            self._unread += len(data)
            super().data_received(data)
            if self._unread > HEAD_BYTES:  # the end of a body in chunks may hold fields, of any length
                self.cut()
            return
        self._head_bytes += len(data)
        super().data_received(data)
        if not self._in_head or not self._head_bytes or self.transport.is_closing():
            return  # not in the middle of a head: in a body, or behind a whole request
        if self._head_bytes > HEAD_BYTES:
            self._refuse_head()
        elif self not in self.door.heads:
            self.door.idle.pop(self, None)
            self.door.heads[self] = self.loop.time()

    def on_message_begin(self) -> None:
        """The first line of a request has begun."""
        self.url, self.headers, self.expect_100_continue = b"", [], False

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head; those behind a body are left out, as they could change what was checked."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is whole: begin to answer, or queue up behind what this connection asked before."""
        self._in_head, self._body_open = False, True
        self.door.forget(self)
        if self._head_bytes > HEAD_BYTES and len(self.url) + _size(self.headers) > HEAD_BYTES:
            self._refuse_head()
            raise ValueError("head too large")  # ends the parsing; the answer has been written
        self._begin()
        if len(self.pipeline) > PIPELINED:
            self.cut()

    def on_body(self, body: bytes) -> None:
        """Some of the body; a great one waits until it is read."""
        self._unread = 0
        if self.cycle.response_complete:
            return
        self.cycle.body += body
        if len(self.cycle.body) > UNREAD_BODY:
            self.flow.pause_reading()
            if self.cycle is not self._answering:  # sent ahead: unread, nobody sees that the client goes
                self.cut()
        self.cycle.message_event.set()

    def on_chunk_header(self) -> None:
        """A piece of a body in chunks begins."""
        self._unread = 0

    def on_message_complete(self) -> None:
        """The request is whole; another may follow."""
        self.cycle.more_body = False
        self.cycle.message_event.set()
        self._in_head, self._body_open, self._head_bytes, self._unread = True, False, 0, 0
        if self.cycle.response_complete and not self.transport.is_closing():  # it was refused before its body came
            self.door.idle[self] = self.loop.time()

    def on_response_complete(self) -> None:
        """The answer is sent: wait for the next request, but not for long for the rest of this one."""
        self.server_state.total_requests += 1
        self._look_after()
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._answer(self.pipeline.pop()[0])
        if self._body_open and self.cycle.response_complete:
            self.loop.call_later(LINGER_S, self._end_lingering, self.cycle)
        elif self.cycle.response_complete:
            self.door.idle[self] = self.loop.time()

    def pause_writing(self) -> None:
        """The client does not read, and the buffers are full."""
        super().pause_writing()
        self._look_after()

    def resume_writing(self) -> None:
        """It has read something."""
        super().resume_writing()
        self._has_read = True

    def shutdown(self) -> None:
        """The server stops: answer what is being answered, and close; what takes too long is told so."""
        super().shutdown()
        self._look_after()
        if self._task is not None and not self._task.done():
            self.loop.call_later(self.door.drain_s, self._task.cancel, STOPPING)

    def cut(self) -> None:
        """Close at once, whatever is unsent."""
        self.door.forget(self)
        if not self.transport.is_closing() or self.transport.get_write_buffer_size():
            self.transport.abort()

    def _begin(self) -> None:
        """Answer, when what was asked before on this connection is answered."""
        url = parse_url(self.url)
        path = url.path.decode("ascii")
        scope = {
            "type": "http",
            "asgi": ASGI,
            "http_version": self.parser.get_http_version(),
            "method": self.parser.get_method().decode("ascii"),
            "scheme": self.scheme,
            "path": unquote(path) if "%" in path else path,
            "raw_path": url.path,
            "query_string": url.query or b"",
            "root_path": "",
            "headers": self.headers,
            "client": self.client,
            "server": self.server,
        }
        keep = scope["http_version"] != "1.0" and self.parser.should_keep_alive()
        before = self.cycle
        self.cycle = exchange = Exchange(self, scope, keep, self.expect_100_continue)
        if before is None or before.response_complete:
            self._answer(exchange)
        else:
            self.pipeline.appendleft((exchange, self.app))

    def _answer(self, exchange: Exchange) -> None:
        self._answering = exchange
        self._task = task = self.loop.create_task(exchange.run_asgi(self.app))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP. Not said in the middle of an answer, nor after another refusal."""
        if self._busy:
            self.cut()
        elif not self.transport.is_closing():
            super().send_400_response(msg)
            self._look_after()

    @property
    def _busy(self) -> bool:
        return self._answering is not None and not self._answering.response_complete

    def _refuse_head(self) -> None:
        self.door.forget(self)
        if self._busy:
            self.cut()
        elif not self.transport.is_closing():
            self.transport.write(HEAD_TOO_LARGE)
            self.transport.close()
            self._look_after()

    def _look_after(self) -> None:
        """Look again in a while whether the client has read anything of what is unsent."""
        if self._unsent is None and (size := self.transport.get_write_buffer_size()):
            self._has_read = False
            self._unsent = Unsent(self.loop.call_later(STALLED_S, self._look), size, self._answering)

    def _look(self) -> None:
        before, self._unsent = self._unsent, None
        done = self._answering is None or self._answering.response_complete
        if before is None or not (done or self.flow.write_paused):
            return  # it is being written: more is unsent with every token
        size = self.transport.get_write_buffer_size()
        if size >= before.bytes and not self._has_read and before.of is self._answering:
            self.cut()
        elif size:
            self._look_after()
        elif done and self not in self.door.heads and not self.transport.is_closing():
            self.door.idle.setdefault(self, self.loop.time())

    def _end_lingering(self, cycle: Exchange) -> None:
        if self._body_open and self.cycle is cycle:
            self.cut()


class Handshake(asyncio.Protocol):
    """A connection that TLS does not secure yet: it counts as one in the middle of a head, and is cut like one."""

    def __init__(self, http: Guarded, context: ssl.SSLContext) -> None:
        self._http = http
        self._context = context
        self._begun = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """First a client has connected and has said nothing yet; then the handshake is done."""
        if not self._begun:
            self._begin(transport)
            return
        self._forget()
        transport.set_protocol(self._http)
        self._http.connection_made(transport)

    def shutdown(self) -> None:
        """The server stops."""
        self.cut()

    def cut(self) -> None:
        """Close at once."""
        self._forget()
        self.transport.abort()

    def _begin(self, transport: asyncio.Transport) -> None:
        self._begun, self.transport = True, transport
        http, loop = self._http, self._http.loop
        http.connections.add(self)  # type: ignore[arg-type]  # it is asked for its `shutdown` only
        http.door.make_room(loop, len(http.connections))
        http.door.heads[self] = loop.time()
        # Not loop.start_tls: it begins a turn of the loop later, when what the client says first has been read already.
        ended = loop.create_future()
        tls = SSLProtocol(loop, self, self._context, ended, server_side=True, ssl_shutdown_timeout=LINGER_S)
        ended.add_done_callback(self._end)
        transport.set_protocol(tls)
        tls.connection_made(transport)

    def _end(self, ended: asyncio.Future[None]) -> None:
        if ended.exception() is not None:  # whatever the client did
            self.cut()
            self._http.parser = None  # type: ignore[assignment]  # it holds the protocol, as long as garbage is kept
        self._forget()  # also when it went away

    def _forget(self) -> None:
        self._http.connections.discard(self)
        self._http.door.forget(self)


def guarded(most: int, tls: ssl.SSLContext | None = None, drain_s: float = 30.0) -> Any:
    """What uvicorn makes a protocol with, for a server that keeps so many connections at most.

    TLS is begun here: given to uvicorn, a connection would be known only when its handshake is done.
    """

    class Bounded(Guarded):
        door = Door(most, drain_s)

    return Bounded if tls is None else _securing(Bounded, tls)


def _securing(http: type[Guarded], context: ssl.SSLContext) -> Callable[..., Handshake]:
    def made(**given: Any) -> Handshake:  # uvicorn's config, state and loop
        return Handshake(http(**given), context)

    return made


def bound_unread(listener: socket.socket) -> None:
    """Let the kernel keep less of an unread answer; what is accepted inherits it."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREAD_BYTES)


def most_connections(reserved: int = 256) -> int:
    """As many connections as this process may open files, less what the engines and the registry need.

    Raises the soft limit to the hard one: 1,024 files, the usual soft limit, are soon used up.
    """
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return max(16, most - reserved)


def grpc_connections(most: int) -> int:
    """How many of these connections are gRPC's, where it has a port."""
    return min(MOST_GRPC, most // 4)


def _size(headers: list[tuple[bytes, bytes]]) -> int:
    return sum(len(name) + len(value) + 4 for name, value in headers)
