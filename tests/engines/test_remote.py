"""The remote engine against real HTTP servers on loopback: good streams, refusals, silence, nonsense."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from inhouse.core.artifact import Artifact
from inhouse.core.errors import UserError
from inhouse.core.protocols import Input, Question
from inhouse.core.rows import Message
from inhouse.core.tool_words import read_calls
from inhouse.engines.remote import open_model

Answer = Callable[[BaseHTTPRequestHandler], None]
PROMPT = [Message(role="user", content="Which desk?")]


def endpoint(url: str) -> Input:
    facts = {"model": {"format": "remote", "main": url, "name": "house-model"}}
    record = Artifact(
        id="a" * 24,
        kind="model",
        stage="select",
        node="base",
        stage_version="1",
        recipe="r" * 24,
        params={},
        facts=facts,
        created="2026-01-01T00:00:00Z",
    )
    return Input(record, Path())


@contextmanager
def serving(answer: Answer) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server on a free port that answers every POST with `answer`; yields its URL and the bodies it got."""
    seen: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            seen.append({"path": self.path, "key": self.headers["authorization"], **body})
            answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", seen
    finally:
        server.shutdown()
        server.server_close()


def send(status: int, body: str, kind: str = "text/event-stream") -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        data = body.encode()
        request.send_response(status)
        request.send_header("content-type", kind)
        request.send_header("content-length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    return answer


def stream(*chunks: dict[str, Any], done: bool = True) -> str:
    events = [": keep-alive\n\n", *(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)]
    return "".join(events) + ("data: [DONE]\n\n" if done else "")


def piece(text: str | None, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}


def raised_by(answer: Answer, timeout_s: float = 5.0) -> UserError:
    with serving(answer) as (url, _), pytest.raises(UserError) as raised:
        open_model(endpoint(url), timeout_s=timeout_s).generate([PROMPT], 8, lambda done: None)
    assert url.split("/v1")[0] in str(raised.value)
    return raised.value


def test_remote_answer_is_assembled_from_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    usage = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 5}}
    body = stream(piece(""), piece("ea"), piece("rn"), piece(None, "length"), usage)
    ticks: list[int] = []
    with serving(send(200, body)) as (url, seen):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        engine = open_model(endpoint(url))
        answers = engine.generate([PROMPT, PROMPT], 8, ticks.append)
        engine.close()
    assert [(a.text, a.tokens, a.finish) for a in answers] == [("earn", 5, "length")] * 2
    assert 0 < answers[0].first_token_s <= answers[0].total_s
    assert ticks == [1, 1]
    assert seen[0]["path"] == "/v1/chat/completions" and seen[0]["key"] == "Bearer secret"
    assert seen[0]["temperature"] == 0 and seen[0]["max_tokens"] == 8 and seen[0]["model"] == "house-model"
    assert seen[0]["messages"] == [{"role": "user", "content": "Which desk?"}]


def test_remote_calls_are_told_in_words() -> None:
    def calls(*told: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {"choices": [{"index": 0, "delta": {"tool_calls": list(told)}, "finish_reason": finish}]}

    body = stream(
        piece("Let me see."),
        calls({"index": 0, "id": "a", "function": {"name": "look", "arguments": ""}}),
        calls({"index": 1, "id": "b", "function": {"name": "ask"}}),
        calls({"index": 0, "function": {"arguments": '{"at": '}}, finish="tool_calls"),
        calls({"index": 0, "function": {"arguments": '"noon"}'}}),
    )
    with serving(send(200, body)) as (url, _):
        [answer] = open_model(endpoint(url)).generate([PROMPT], 8, lambda done: None)
    assert answer.finish == "stop" and answer.text.startswith("Let me see.\n<tool_call>")
    assert read_calls(answer.text) == [("look", {"at": "noon"}), ("ask", {})]


def test_remote_endpoint_gets_a_rows_tools_and_no_control_tokens() -> None:
    tool = {"type": "function", "function": {"name": "look"}}
    asked = Question([Message(role="user", content="Look <|im_end|>")], [tool])
    with serving(send(200, stream(piece("a")))) as (url, seen):
        open_model(endpoint(url)).generate([asked], 4, lambda _: None)
    assert seen[0]["tools"] == [tool]
    assert seen[0]["messages"] == [{"role": "user", "content": "Look <\N{WORD JOINER}|im_end|>"}]


def test_remote_key_is_not_sent_to_an_address_it_was_not_set_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with serving(send(200, stream(piece("a", "stop")))) as (url, seen):
        open_model(endpoint(url)).generate([PROMPT], 8, lambda done: None)
    assert seen[0]["key"] is None


def test_remote_endpoint_without_usage_counts_its_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving(send(200, stream(piece("a"), piece("b", "stop"), done=False))) as (url, seen):
        [answer] = open_model(endpoint(url)).generate([PROMPT], 8, lambda done: None)
    assert (answer.text, answer.tokens, answer.finish) == ("ab", 2, "stop")
    assert seen[0]["key"] is None


def test_remote_empty_answer_is_an_empty_text() -> None:
    with serving(send(200, stream(piece(None, "stop")))) as (url, _):
        [answer] = open_model(endpoint(url)).generate([PROMPT], 8, lambda done: None)
    assert (answer.text, answer.tokens) == ("", 0) and answer.first_token_s == answer.total_s


@pytest.mark.parametrize("status", [401, 404, 500])
def test_remote_refusal_tells_status_and_reason(status: int) -> None:
    error = raised_by(send(status, '{"error": {"message": "no such model"}}', "application/json"))
    assert error.code == "remote.refused" and error.facts["status"] == status
    assert "no such model" in str(error)


@pytest.mark.parametrize(
    "body",
    [
        "<html>welcome</html>",
        'data: {"error": {"message": "boom"}}\n\n',
        "data: not json\n\n",
        'data: ["a"]\n\n',
        "data: [DONE]\n\n",
        'data: {"choices": [{"delta": {"content": {"a": 1}}}]}\n\n',
    ],
)
def test_remote_reply_that_is_no_openai_stream_is_refused(body: str) -> None:
    assert raised_by(send(200, body)).code == "remote.not_openai"


def test_remote_endpoint_that_stays_silent_times_out() -> None:
    released = threading.Event()

    def wait(request: BaseHTTPRequestHandler) -> None:
        released.wait(5)
        request.close_connection = True

    try:
        assert raised_by(wait, timeout_s=0.2).code == "remote.timeout"
    finally:
        released.set()


def test_remote_endpoint_that_hangs_up_is_unreachable() -> None:
    def hang_up(request: BaseHTTPRequestHandler) -> None:
        request.close_connection = True

    assert raised_by(hang_up).code == "remote.unreachable"


def test_remote_nobody_listening_is_unreachable() -> None:
    with serving(send(200, "")) as (url, _):
        pass
    with pytest.raises(UserError) as raised:
        open_model(endpoint(url)).generate([PROMPT], 8, lambda done: None)
    assert raised.value.code == "remote.unreachable"


def test_remote_model_offline_opens_no_connection() -> None:
    with serving(send(200, "")) as (url, seen), pytest.raises(UserError) as raised:
        open_model(endpoint(url), offline=True)
    assert raised.value.code == "remote.offline" and seen == []


def test_remote_engine_refuses_what_endpoints_do_not_tell() -> None:
    engine = open_model(endpoint("http://127.0.0.1:1/v1"))
    asks: list[Callable[[], object]] = [
        lambda: engine.token_ids(PROMPT),
        lambda: engine.score([PROMPT], [["a"]], lambda done: None),
        lambda: engine.next_logprobs([PROMPT], 3),
        lambda: engine.generate([PROMPT], 3, lambda done: None, ignore_end=True),
    ]
    for ask in asks:
        with pytest.raises(UserError) as raised:
            ask()
        assert raised.value.code == "remote.unsupported"
    assert engine.memory_bytes() == 0
