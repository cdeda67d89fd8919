"""The chat client against real sockets that answer well, badly, or not at all."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from inhouse.api.chat import Endpoint, authorization, stream_chat
from inhouse.core.errors import UserError
from inhouse.core.rows import Message

QUESTION = [Message(role="user", content="Hello")]


def chunk(text: str | None) -> str:
    return f"data: {json.dumps({'choices': [{'delta': {'content': text}}]})}\n\n"


@pytest.fixture
def answering() -> Iterator[Callable[[int, str, str], tuple[str, list[dict]]]]:
    """Start a server that gives every request this status, content type and body; returns its URL and what it got."""
    servers = []

    def start(status: int, kind: str, body: str) -> tuple[str, list[dict]]:
        got: list[dict] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                got.append(
                    {"path": self.path, "key": self.headers["Authorization"], **json.loads(self.rfile.read(length))}
                )
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: object) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/v1", got

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_answer_comes_in_pieces_until_done(answering) -> None:
    body = chunk("你") + ": ping\n\n" + chunk(None) + chunk("好") + "data: [DONE]\n\n" + chunk("never")
    url, got = answering(200, "text/event-stream; charset=utf-8", body)
    assert list(stream_chat(Endpoint(url, "k"), "m", QUESTION, 7)) == ["你", "好"]
    (asked,) = got
    assert asked["path"] == "/v1/chat/completions" and asked["key"] == "Bearer k"
    assert asked["max_tokens"] == 7 and asked["stream"] and asked["messages"] == [{"role": "user", "content": "Hello"}]


def test_refusal_gives_the_servers_reason(answering) -> None:
    url, _ = answering(401, "application/json", json.dumps({"error": {"message": "bad key"}}))
    with pytest.raises(UserError, match=r"401.*bad key"):
        list(stream_chat(Endpoint(url, None), "m", QUESTION, 7))
    url, _ = answering(502, "text/html", "<html>gateway")
    with pytest.raises(UserError, match=r"502.*gateway"):
        list(stream_chat(Endpoint(url, None), "m", QUESTION, 7))


@pytest.mark.parametrize(
    ("kind", "body", "reason"),
    [
        ("text/event-stream", chunk("a"), "ended early"),
        ("text/event-stream", "data: {\n\n", "not an OpenAI stream"),
        ("text/event-stream", 'data: {"error": {"message": "engine died"}}\n\n', "engine died"),
        ("application/json", "{}", "text/event-stream"),
    ],
)
def test_broken_answer_says_what_came(answering, kind: str, body: str, reason: str) -> None:
    url, _ = answering(200, kind, body)
    with pytest.raises(UserError) as caught:
        list(stream_chat(Endpoint(url, None), "m", QUESTION, 7))
    assert caught.value.code == "chat.broken_answer" and reason in str(caught.value)


def test_proxy_of_the_environment_sees_nothing_that_is_sent_to_this_machine(answering, monkeypatch) -> None:
    proxy, seen = answering(502, "text/plain", "")
    url, got = answering(200, "text/event-stream", chunk("好") + "data: [DONE]\n\n")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.removesuffix("/v1"))
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert list(stream_chat(Endpoint(url, "k"), "m", QUESTION, 7)) == ["好"]
    assert len(got) == 1 and not seen


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://[", "nonsense"])
def test_nobody_there_says_how_to_start_one(url: str) -> None:
    with pytest.raises(UserError, match="inhouse serve"):
        list(stream_chat(Endpoint(url, None), "m", QUESTION, 7))


@pytest.mark.parametrize("key", ["“ih-key”", "ключ", "ih-\x00key", "ih-one\nih-two"])
def test_key_that_cannot_be_sent_is_told_and_not_shown(key: str) -> None:
    with pytest.raises(UserError) as error:
        list(stream_chat(Endpoint("http://127.0.0.1:9", key), "x", QUESTION))
    assert error.value.code == "chat.bad_key" and key not in str(error.value)


def test_line_break_behind_a_key_is_left_out() -> None:
    assert authorization("ih-key\n") == {"Authorization": "Bearer ih-key"}
    assert authorization(None) == authorization("") == {}
