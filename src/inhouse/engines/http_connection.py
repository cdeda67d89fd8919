"""One connection to an engine: HTTP parsed by httptools, events by httpx-sse, on an asyncio protocol.

An event of one line that comes alone, as engines send tokens, is cut out by hand: httpx-sse, which reads all others,
takes a tenth of what a streamed token costs.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

from httptools import HttpParserError, HttpResponseParser
from httpx_sse._decoders import SSEDecoder, SSELineDecoder

from inhouse.core.serving import EngineLost, EngineSilent

EVENT_BYTES = 2**20  # a chunk with 20 log-probabilities per token is about 4 KB
HEAD_BYTES = 2**16
WHOLE_BYTES = 2**26  # 2,048 embeddings of 4,096 numbers in base64 are 45 MB
REFUSAL_BYTES = 2**16
UNREAD_EVENTS = 1024  # then the engine's connection is no longer read, until the client has caught up
DONE = "[DONE]"
ONE_EVENT = re.compile(rb"data: ([^\r\n]*)\n\n")


def nothing() -> None:
    """Nobody waits for this."""


class Connection(asyncio.Protocol):
    """One connection to an engine, with one request on it at a time."""

    def __init__(self, silence_s: float) -> None:
        self.silence_s = silence_s
        self.transport: asyncio.Transport | None = None
        self.on_lost = nothing
        self.on_whole = nothing
        self.busy = False
        self._loop = asyncio.get_running_loop()
        self._parser: HttpResponseParser | None = HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._paused = False
        self.begin(events=False)

    def begin(self, events: bool) -> None:
        """Make ready for one response: a stream of events, or a whole body."""
        self.status = 0
        self.answered = False  # a byte of the response has come
        self.whole = False
        self.reusable = False
        self.done = False  # the stream's end mark has come
        self.error: Exception | None = None
        self._events: list[str] | None = [] if events else None
        self.push: Callable[[list[str]], bool] | None = None  # takes events while somebody waits for them
        self._pushed = False  # it took all that came last
        self._body = bytearray()
        self._tail = b""
        self._since_event = 0
        self._framed = False
        self._unframed_bytes = 0
        if events:
            self._lines, self._decoder = SSELineDecoder(), SSEDecoder()
            self._between = True  # no event is half read

    def send(self, request: bytes) -> None:
        """Write a request, and begin to watch for silence."""
        assert self.transport is not None
        self.busy = True
        self._touched = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(self.silence_s, self._check)
        self.transport.write(request)

    async def head(self) -> int:
        """The status, once the headers are there. Raises EngineLost, EngineSilent."""
        while not self.status:
            if self.error is not None:
                raise self.error
            await self._wait()
        return self.status

    async def body(self) -> bytes:
        """The whole body. Raises EngineLost, EngineSilent."""
        while not self.whole:
            if self.error is not None:
                raise self.error
            await self._wait()
        return bytes(self._body)

    async def take(self) -> list[str] | None:
        """The events that have come since the last call; None after the end mark. Raises EngineLost, EngineSilent."""
        while not self._events:
            if self.done:
                return None
            if self.error is not None:
                raise self.error
            if self.whole:
                raise EngineLost
            await self._wait()
        found, self._events = self._events, []
        if self._paused and self.transport is not None:
            self._paused = False
            self._touched = self._loop.time()
            self.transport.resume_reading()
        return found

    def rest(self) -> None:
        """No request is on it any more."""
        self.busy = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def abort(self) -> None:
        """Close at once: an engine sees that nobody reads its answer."""
        self.rest()
        if self.transport is not None:
            self.transport.abort()

    # --- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if not self.busy or self._parser is None:  # nothing was asked
            self.abort()
            return
        self.answered = True
        self._pushed = False
        self._touched = self._loop.time()
        if not self.status:
            self._unframed_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserError:  # also what a callback raises: text that is not UTF-8, an event without an end
            self._fail(EngineLost())
            self.abort()
        if not self.status and self._unframed_bytes > HEAD_BYTES:
            self._fail(EngineLost())
        if not self._pushed or self.done:
            self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        if self.busy and self.status and not self._framed and not self.whole and error is None:
            self._end()  # HTTP/1.0: the response ends with its connection
        self.transport = None
        self._parser = None  # it holds this object, and this object it
        self._fail(EngineLost())
        self.on_lost()
        self.on_lost = self.on_whole = nothing  # they hold this object too

    # --- httptools' side

    def on_message_begin(self) -> None:
        if self.whole:
            raise ValueError("more than one response")

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._framed = True

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        status = self._parser.get_status_code()
        self.status = status if status >= 200 else 0  # 1xx says that the response follows

    def on_body(self, data: bytes) -> None:
        if self._events is not None and self.status == 200:
            if self._between and not self._tail and (alone := ONE_EVENT.fullmatch(data)):
                self._add([alone[1].decode("utf-8")])
            else:
                self._read_events(data)
            return
        if len(self._body) + len(data) > (WHOLE_BYTES if self.status == 200 else REFUSAL_BYTES):
            raise ValueError("the body is too long")
        self._body += data

    def on_message_complete(self) -> None:
        if self.status and self._parser is not None:
            self.reusable = self._framed and self._parser.should_keep_alive()
            self._end()

    # ---

    def _read_events(self, data: bytes) -> None:
        if self._tail:
            data = self._tail + data
        cut = data.rfind(b"\n") + 1  # whole lines only, so that no character is split
        self._tail = data[cut:]
        self._since_event += cut
        if cut:
            self._decode(data[:cut].decode("utf-8"))
        if self._since_event + len(self._tail) > EVENT_BYTES:
            raise ValueError("the event is too long")

    def _decode(self, text: str) -> None:
        told = [self._decoder.decode(line) for line in self._lines.decode(text)]
        self._between = text.endswith("\n\n")
        self._add([event.data for event in told if event is not None])

    def _add(self, told: list[str]) -> None:
        assert self._events is not None
        found: list[str] = []
        for data in told:
            if self.done:
                break
            self._since_event = 0
            if data == DONE:
                self.done = True
            elif data:
                found.append(data)
        waits = found and not self._events and self._waiter is not None and not self._waiter.done()
        self._pushed = bool(waits and self.push is not None and self.push(found))
        if not self._pushed:
            self._events += found
        if len(self._events) > UNREAD_EVENTS and not self._paused and self.transport is not None:
            self._paused = True
            self.transport.pause_reading()

    def _end(self) -> None:
        if self._events is not None and self.status == 200 and not self.done:
            self._decode("\n")  # the last event of those that leave out the empty line
        self.whole = True
        self._wake()
        self.on_whole()

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: Exception) -> None:
        if self.error is None and not self.whole:
            self.error = error
            self.abort()
            self._wake()

    def _check(self) -> None:
        """One timer a request, not one a token: it looks whether anything came meanwhile."""
        left = self.silence_s - (self._loop.time() - self._touched)
        if self._paused:  # it is the client that is slow
            left = self.silence_s
        if left > 0:
            self._timer = self._loop.call_later(left, self._check)
            return
        self._timer = None
        self._fail(EngineSilent())
