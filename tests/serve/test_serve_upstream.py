"""What the gateway makes of an engine that misbehaves: a small server plays the engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, cast

import pytest

from inhouse.engines.llamacpp import RunningEngine
from inhouse.engines.process import Child
from inhouse.serve.errors import ApiError
from inhouse.serve.requests import Asked
from inhouse.serve.upstream import EngineLost, EngineSilent, open_session, stream

ASKED = Asked(chat=True, model="desk", payload={}, stream=True, usage=False, ignored=())
SECRET = b"/home/ann/model.gguf at 0x7f00"
Engine = Callable[[int, bytes], RunningEngine]


@pytest.fixture
def engine() -> Iterator[Engine]:
    """An engine that answers every request with this status and these bytes; no bytes at all: it never answers."""
    servers: list[HTTPServer] = []
    silence = threading.Event()

    def play(status: int, body: bytes) -> RunningEngine:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                if not body:
                    silence.wait(10)
                    return
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                return

        server = HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        return RunningEngine(url=url, key="k", context_length=512, process=cast(Child, None))

    yield play
    silence.set()
    for server in servers:
        server.shutdown()
        server.server_close()


def chunks_of(engine: RunningEngine, silence_s: float = 5.0) -> list[dict[str, Any]]:
    async def collect() -> list[dict[str, Any]]:
        async with open_session() as session:
            return [chunk async for chunk in stream(session, engine, ASKED, silence_s)]

    return asyncio.run(collect())


def test_chunks_come_until_the_end_mark_and_comments_are_skipped(engine: Engine) -> None:
    body = b'data: null\n\n: ping\n\ndata: {"choices": []}\n\ndata: [DONE]\n\ndata: {"never": 1}\n\n'
    assert chunks_of(engine(200, body)) == [{"choices": []}]


@pytest.mark.parametrize("body", [b'data: {"choices": []}\n\n', b"data: {broken\n\n", b"data: " + b"x" * 3_000_000])
def test_stream_without_its_end_means_that_the_engine_is_lost(engine: Engine, body: bytes) -> None:
    with pytest.raises(EngineLost):
        chunks_of(engine(200, body))


def test_engine_that_is_not_there_is_lost() -> None:
    gone = RunningEngine(url="http://127.0.0.1:9", key="k", context_length=512, process=cast(Child, None))
    with pytest.raises(EngineLost):
        chunks_of(gone)


def test_engine_that_says_nothing_is_silent(engine: Engine) -> None:
    with pytest.raises(EngineSilent):
        chunks_of(engine(200, b""), silence_s=0.2)


@pytest.mark.parametrize(
    ("status", "body", "expected", "code"),
    [
        (500, b"<html>" + SECRET, 500, "engine_error"),
        (500, b'{"error": {"message": "' + SECRET + b'"}}', 500, "engine_error"),
        (500, b"[]", 500, "engine_error"),
        (400, b'{"error": {"message": "' + SECRET + b'"}}', 400, None),
        (200, b'data: {"error": {"message": "' + SECRET + b'"}}\n\n', 500, "engine_error"),
        (
            400,
            b'{"error": {"type": "exceed_context_size_error", "n_prompt_tokens": 900, "n_ctx": 512}}',
            400,
            "context_length_exceeded",
        ),
    ],
)
def test_refusal_of_the_engine_is_put_into_our_words(
    engine: Engine, status: int, body: bytes, expected: int, code: str | None
) -> None:
    with pytest.raises(ApiError) as error:
        chunks_of(engine(status, body))
    assert (error.value.status, error.value.code) == (expected, code)
    assert SECRET not in error.value.body()
