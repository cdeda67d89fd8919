"""An engine that computes nothing: OpenAI's routes with answers made in advance, so that only the gateway is measured.

    python bench/serve/mock_upstream.py --port 9001 [--every-ms 10] [--tokens 64]

Speaks HTTP/1.1 by hand on asyncio protocols, because it must cost less than what it measures. Every stream sends one
chunk each `every-ms`, all streams on one clock, as an engine that answers them in one batch does. `max_tokens` of the
request says how many. Prints its address when it listens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re

STREAM = re.compile(rb'"stream":\s*true')
MOST = re.compile(rb'"(?:max_tokens|max_completion_tokens)":\s*(\d+)')
ID = '"id":"chatcmpl-0123456789abcdef","created":1700000000,"model":"mock"'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunked(text: str) -> bytes:
    """One event as a chunk of HTTP's chunked encoding."""
    body = f"data: {text}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(body), body)


def event(delta: dict, finish: str | None = None) -> bytes:
    choice = json.dumps({"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish})
    return chunked(f'{{{ID},"object":"chat.completion.chunk","choices":[{choice}]}}')


FIRST, TOKEN, LAST = event({"role": "assistant", "content": ""}), event({"content": " word"}), event({}, "stop")


def ending(tokens: int) -> bytes:
    """The last events of a stream."""
    usage = {"prompt_tokens": 8, "completion_tokens": tokens, "total_tokens": 8 + tokens}
    said = chunked(f'{{{ID},"object":"chat.completion.chunk","choices":[],"usage":{json.dumps(usage)}}}')
    return LAST + said + chunked("[DONE]") + b"0\r\n\r\n"


def whole(tokens: int) -> bytes:
    """An answer in one piece."""
    message = {"role": "assistant", "content": " word" * min(tokens, 8)}
    choice = json.dumps({"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"})
    usage = json.dumps({"prompt_tokens": 8, "completion_tokens": tokens, "total_tokens": 8 + tokens})
    return reply(f'{{{ID},"object":"chat.completion","choices":[{choice}],"usage":{usage}}}')


def reply(body: str) -> bytes:
    """A JSON answer."""
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
        len(body),
        body.encode(),
    )


MODELS = reply(
    '{"object":"list","data":[{"id":"mock","object":"model","created":1,"owned_by":"vllm","max_model_len":4096}]}'
)
VERSION = reply('{"version":"0.12.0"}')
WHOLE = whole(8)


class Clock:
    """Sends the next token to every stream at once."""

    def __init__(self, every_s: float) -> None:
        self.every_s = every_s
        self.streams: dict[Session, int] = {}
        self.running = False

    def add(self, session: Session, tokens: int) -> None:
        """Begin to send tokens to a connection."""
        session.transport.write(HEAD + FIRST)
        if self.every_s <= 0:
            session.transport.write(TOKEN * tokens + ending(tokens))
            return
        self.streams[session] = tokens
        session.asked = tokens
        if not self.running:
            self.running = True
            asyncio.get_running_loop().call_later(self.every_s, self.tick)

    def tick(self) -> None:
        """One step of the engine."""
        for session, left in list(self.streams.items()):
            if session.transport.is_closing():
                del self.streams[session]
            elif left:
                session.transport.write(TOKEN)
                self.streams[session] = left - 1
            else:
                session.transport.write(ending(session.asked))
                del self.streams[session]
        self.running = bool(self.streams)
        if self.running:
            asyncio.get_running_loop().call_later(self.every_s, self.tick)


class Session(asyncio.Protocol):
    """A client's connection."""

    def __init__(self, clock: Clock, tokens: int) -> None:
        self.clock = clock
        self.tokens = tokens
        self.asked = tokens
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def connection_lost(self, error: Exception | None) -> None:
        self.clock.streams.pop(self, None)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
        size = int(length[1]) if length else 0
        if len(rest) < size:
            return
        self.buffer = rest[size:]
        self.answer(head, rest[:size])

    def answer(self, head: bytes, body: bytes) -> None:
        """Answer one request."""
        path = head.split(b" ", 2)[1]
        if path.endswith(b"/completions"):
            if STREAM.search(body):
                asked = MOST.search(body)
                self.clock.add(self, int(asked[1]) if asked else self.tokens)
            else:
                self.transport.write(WHOLE)
        elif path.endswith(b"/models"):
            self.transport.write(MODELS)
        elif path.endswith(b"/version"):
            self.transport.write(VERSION)
        elif path.endswith(b"/streams"):  # for the measurement of how fast a client's end is noticed
            self.transport.write(reply(json.dumps({"running": len(self.clock.streams)})))
        else:
            self.transport.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")


async def serve(port: int, every_s: float, tokens: int) -> None:
    clock = Clock(every_s)
    server = await asyncio.get_running_loop().create_server(lambda: Session(clock, tokens), "127.0.0.1", port)
    print(json.dumps({"ready": {"port": server.sockets[0].getsockname()[1]}}), flush=True)
    await server.serve_forever()


def main() -> None:
    import uvloop

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--every-ms", type=float, default=10.0)
    parser.add_argument("--tokens", type=int, default=64, help="of a stream that does not say")
    parser.add_argument("--parent", type=int, help="end with this process")
    options = parser.parse_args()
    if options.parent:
        from inhouse.core.run import die_with_parent

        die_with_parent(options.parent)
    uvloop.run(serve(options.port, options.every_ms / 1000, options.tokens))


if __name__ == "__main__":
    main()
