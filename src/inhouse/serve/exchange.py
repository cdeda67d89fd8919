"""One request and its answer on a connection, where uvicorn has its RequestResponseCycle: the same with less work.

A body that has come whole is handed over at once, and an answer, or a piece of one, is written at once (an ASGI
extension, below). uvicorn makes a timer, an event loop's turn and a few regular expressions of each step: a third of
a plain request.
"""

from __future__ import annotations

import asyncio
import http
import logging
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inhouse.serve.door import Guarded

EXCHANGE = "inhouse.exchange"  # the ASGI extension: this object, for what ASGI's messages make dear
Header = tuple[bytes, bytes]
UNREAD_BODY = 64 * 2**10  # then the connection is not read until the application has taken it
NOT_IN_HEAD = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
FAILED = b"Internal Server Error"
FAILED_BYTES = b"%d" % len(FAILED)
PHRASES = {status.value: status.phrase for status in http.HTTPStatus}
STATUS_LINES = {status: f"HTTP/1.1 {status} {PHRASES.get(status, '')}\r\n".encode() for status in range(100, 600)}
BODILESS = (204, 304)
log = logging.getLogger("inhouse.serve")


class Exchange:
    """One request. uvicorn's protocol looks at `response_complete`, and sets `disconnected`, `body` and `more_body`."""

    def __init__(self, connection: Guarded, scope: dict[str, Any], keep_alive: bool, waits: bool) -> None:
        """`waits`: the client sends its body when it has been told to go on."""
        self.connection = connection
        self.scope = scope
        self._head_only = scope["method"] == "HEAD"
        # HTTP/1.0 knows no chunks: an answer without a length ends with its connection.
        self._old = scope["http_version"] == "1.0"
        self.keep_alive = keep_alive
        self.message_event = asyncio.Event()  # something has come
        self.body = bytearray()
        self.more_body = True
        self.disconnected = False
        self.response_complete = False
        self._waits = waits
        self._started = False
        self._chunked = False
        self._open = False  # of unknown length, and not in chunks
        self._left = 0  # bytes of the answer, as its head has said

    async def run_asgi(self, app: Any) -> None:
        """Let the application answer; where it does not, that is said for it, and logged."""
        scope, self.scope = self.scope, {}  # it holds this object, and would keep it until garbage is looked for
        scope["extensions"] = {EXCHANGE: self}
        try:
            await app(scope, self.receive, self.send)
        except Exception:  # the application has its own border, and this is behind it
            log.exception("a request failed outside of the application")
        finally:
            if not self.response_complete and not self.disconnected:
                self._give_up()

    def whole_body(self) -> bytes | None:
        """The body, where all of it has come."""
        if self.more_body or self.disconnected:
            return None
        self.connection.flow.resume_reading()  # a great one has stopped it
        found, self.body = bytes(self.body), bytearray()
        return found

    def whole_answer(self, status: int, headers: Iterable[Header], body: bytes) -> bool:
        """Write status, headers and body in one piece. False, and nothing written, where more is to be minded."""
        if self.connection.flow.write_paused or self._started or self._head_only or status in BODILESS:
            return False
        if not self.disconnected:
            head = self._head(status, [*headers, (b"content-length", b"%d" % len(body))])
            self.connection.transport.write(head + body)
            self._complete()
        return True

    @property
    def flows(self) -> bool:
        """Whether another piece of an answer that has begun can be written without waiting for the client."""
        return self._started and not self.response_complete and not self.connection.flow.write_paused

    def write(self, piece: bytes) -> None:
        """Write a piece that is not the last one, where it `flows`."""
        if self._chunked and not self._head_only and not self.disconnected:  # the usual: one call less a token
            self.connection.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        elif not self.disconnected:
            self._write(piece, more=True)

    async def receive(self) -> dict[str, Any]:
        """ASGI's: what has come of the body, or that the client has gone."""
        connection = self.connection
        if self._waits and not connection.transport.is_closing():
            self._waits = False
            connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not self.disconnected and not self.response_complete:
            connection.flow.resume_reading()
            await self.message_event.wait()
            self.message_event.clear()
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        found, self.body = bytes(self.body), bytearray()
        return {"type": "http.request", "body": found, "more_body": self.more_body}

    async def send(self, message: dict[str, Any]) -> None:
        """ASGI's: status and headers, then the body piece by piece."""
        flow = self.connection.flow
        if flow.write_paused and not self.disconnected:
            await flow.drain()
        if self.disconnected:
            return
        if message["type"] == "http.response.start" and not self._started:
            self.connection.transport.write(self._head(message["status"], message["headers"]))
        elif message["type"] == "http.response.body" and self._started and not self.response_complete:
            self._write(message.get("body", b""), message.get("more_body", False))
        else:
            raise RuntimeError(f"unexpected: {message['type']}")

    def _head(self, status: int, headers: Iterable[Header]) -> bytes:
        if self._waits:  # it was not told to send its body, and may send it or not
            self._waits = self.keep_alive = False
        lines = [STATUS_LINES[status]]
        sized = False
        for name, value in (*self.connection.server_state.default_headers, *headers):
            if name == b"content-length":
                sized, self._left = True, int(value)
            elif name == b"connection" and value == b"close":
                self.keep_alive = False
                continue
            if NOT_IN_HEAD.search(value):
                raise RuntimeError(f"a line break in {name!r}")
            lines.append(b"%b: %b\r\n" % (name, value))
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        if not sized and status not in BODILESS and not self._old:
            self._chunked = True
            lines.append(b"transfer-encoding: chunked\r\n")
        self._open = not sized and not self._chunked and status not in BODILESS
        lines.append(b"\r\n")
        self._started = True
        return b"".join(lines)

    def _write(self, body: bytes, more: bool) -> None:
        if self._head_only:
            self._left = 0
        elif self._chunked:
            piece = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            self.connection.transport.write(piece if more else piece + b"0\r\n\r\n")
        elif self._open:
            self.connection.transport.write(body)
        else:
            self._left -= len(body)
            if self._left < 0 or (self._left and not more):
                raise RuntimeError("an answer of another length than its head says")
            self.connection.transport.write(body)
        if not more:
            self._complete()

    def _complete(self) -> None:
        self._left = 0
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.connection.transport.close()
        self.connection.on_response_complete()

    def _give_up(self) -> None:
        log.error("a request was left without its answer")
        if not self._started:
            self.keep_alive = False
            head = self._head(500, ((b"content-type", b"text/plain; charset=utf-8"), (b"content-length", FAILED_BYTES)))
            self.connection.transport.write(head if self._head_only else head + FAILED)
            self._complete()
        self.connection.transport.close()
