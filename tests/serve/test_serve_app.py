from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from inhouse.core.errors import UserError
from inhouse.core.rows import Message
from inhouse.serve.app import bind, is_loopback
from inhouse.serve.client import stream_chat

HELLO = [Message(role="user", content="Hello")]


def test_taken_port_is_named_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError) as error:
            bind("127.0.0.1", port)
    assert error.value.code == "serve.port_in_use" and error.value.exit_code == 2
    assert str(port) in str(error.value) and "--port" in str(error.value)


@pytest.mark.parametrize("host", ["203.0.113.7", "no such host", "::ffff:0:0:0:0:1:2:3:4"])
def test_address_of_another_machine_is_refused(host: str) -> None:
    with pytest.raises(UserError) as error:
        bind(host, 0)
    assert error.value.code == "serve.bad_host"


def test_loopback_is_told_from_other_addresses() -> None:
    assert [is_loopback(h) for h in ("127.0.0.1", "::1", "localhost")] == [True] * 3
    assert [is_loopback(h) for h in ("0.0.0.0", "192.168.1.5", "example.org")] == [False] * 3


def test_importing_the_app_loads_no_web_library() -> None:
    code = (
        "import sys, inhouse.serve.app, inhouse.serve.client;"
        "print([m for m in ('uvicorn', 'aiohttp', 'httpx', 'sqlalchemy', 'prometheus_client') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.fixture
def answering() -> Callable[[bytes], str]:
    """Start an HTTP server that answers every POST with these bytes as an event stream."""
    servers: list[HTTPServer] = []

    def answer_with(body: bytes) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                return

        server = HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield answer_with  # type: ignore[misc]
    for server in servers:
        server.shutdown()
        server.server_close()


def test_chat_client_reads_events_and_skips_comments(answering: Callable[[bytes], str]) -> None:
    events = (
        b': ping\n\ndata: {"choices":[{"delta":{"role":"assistant"}}]}\n\n'
        + 'data: {"choices":[{"delta":{"content":"你"}}]}\n\n'.encode()
        + 'data: {"choices":[{"delta":{"content":"好"}}]}\n\n'.encode()
        + b'data: {"choices":[]}\n\ndata: [DONE]\n\n'
    )
    assert list(stream_chat(answering(events), None, "m", HELLO, 5)) == ["你", "好"]


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        (b'data: {"error": {"message": "engine lost"}}\n\n', "engine lost"),
        (b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n', "ended early"),
        (b"data: {broken\n\n", "not an OpenAI stream"),
        (b"data: []\n\n", "not an OpenAI stream"),
        (b"data: 5\n\n", "not an OpenAI stream"),
        (b"", "ended early"),
    ],
)
def test_chat_client_tells_how_a_stream_broke(answering: Callable[[bytes], str], events: bytes, reason: str) -> None:
    with pytest.raises(UserError) as error:
        list(stream_chat(answering(events), None, "m", HELLO, 5))
    assert error.value.code == "serve.broken_answer" and reason in str(error.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://[broken", "ftp://127.0.0.1/"])
def test_chat_client_tells_that_nothing_answers(url: str) -> None:
    with pytest.raises(UserError) as error:
        list(stream_chat(url, None, "m", HELLO, 5))
    assert error.value.code == "serve.unreachable" and "inhouse serve" in str(error.value)
