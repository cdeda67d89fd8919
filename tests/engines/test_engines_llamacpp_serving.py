"""What becomes of requests to a llama.cpp that misbehaves: a small server plays the engine."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import cast

import pytest

from inhouse.core.serving import Ask, Constraint, Delta, EngineLost, EngineRefused, EngineSilent, Sampling, Usage
from inhouse.engines.backend import EngineSettings
from inhouse.engines.llamacpp import RunningEngine
from inhouse.engines.llamacpp_serving import LlamaCppServing, request_body
from inhouse.engines.process import Child

ASK = Ask(Sampling(max_tokens=4), messages=[{"role": "user", "content": "Hi"}])
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


def deltas_of(engine: RunningEngine, silence_s: float = 5.0) -> list[Delta]:
    async def collect() -> list[Delta]:
        serving = LlamaCppServing(engine, EngineSettings(silence_s=silence_s))
        try:
            return [delta async for deltas in serving.submit(ASK) for delta in deltas]
        finally:
            await serving.close()

    return asyncio.run(collect())


def test_pieces_come_until_the_end_mark_and_comments_are_skipped(engine: Engine) -> None:
    events = (
        b'data: null\n\n: ping\n\ndata: {"choices": [{"index": 0, "delta": {"role": "assistant"}}]}\n\n'
        b'data: {"choices": [{"index": 1, "delta": {"content": "Hi"}}]}\n\n'
        b'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 1}, "timings": {"prompt_ms": 2}}'
        b"\n\n"
        b'data: [DONE]\n\ndata: {"never": 1}\n\n'
    )
    assert deltas_of(engine(200, events)) == [
        Delta(tokens=0),
        Delta("Hi", index=1),
        Delta(tokens=0, usage=Usage(5, 1, prefill_s=0.002)),
    ]


def test_white_space_around_thoughts_is_left_out_and_no_other(engine: Engine) -> None:
    def event(index: int, **told: str) -> str:
        return f"data: {json.dumps({'choices': [{'index': index, 'delta': told}]})}\n\n"

    thought = [event(0, reasoning_content=text) for text in ("\n", " It", " is\n", "\n2.", "\n", " ")]
    answer = [event(0, content=text) for text in ("\n", "\n", " 2", "\n", "!")]
    plain = [event(1, content=text) for text in ("\n", "2 ")]
    body = "".join([*thought, *answer, *plain, "data: [DONE]\n\n"]).encode()
    thinking = replace(engine(200, body), template="{{ content.split('</think>')[-1] }}")
    told = deltas_of(thinking)
    assert "".join(delta.reasoning or "" for delta in told) == "It is\n\n2."
    assert ["".join(delta.text for delta in told if delta.index == index) for index in (0, 1)] == ["2\n!", "\n2 "]


@pytest.mark.parametrize("body", [b'data: {"choices": []}\n\n', b"data: {broken\n\n", b"data: " + b"x" * 3_000_000])
def test_stream_without_its_end_means_that_the_engine_is_lost(engine: Engine, body: bytes) -> None:
    with pytest.raises(EngineLost):
        deltas_of(engine(200, body))


def test_engine_that_is_not_there_is_lost() -> None:
    gone = RunningEngine(url="http://127.0.0.1:9", key="k", context_length=512, process=cast(Child, None))
    with pytest.raises(EngineLost):
        deltas_of(gone)


def test_engine_that_says_nothing_is_silent(engine: Engine) -> None:
    with pytest.raises(EngineSilent):
        deltas_of(engine(200, b""), silence_s=0.2)


@pytest.mark.parametrize(
    ("status", "body", "reason", "tokens"),
    [
        (500, b"<html>" + SECRET, "failed", None),
        (500, b'{"error": {"message": "' + SECRET + b'"}}', "failed", None),
        (500, b"[]", "failed", None),
        (400, b'{"error": {"message": "' + SECRET + b'"}}', "invalid", None),
        (200, b'data: {"error": {"message": "' + SECRET + b'"}}\n\n', "failed", None),
        (400, b'{"error": {"type": "exceed_context_size_error", "n_prompt_tokens": 900}}', "context", 900),
    ],
)
def test_refusal_of_the_engine_is_put_into_our_words(
    engine: Engine, status: int, body: bytes, reason: str, tokens: int | None
) -> None:
    with pytest.raises(EngineRefused) as error:
        deltas_of(engine(status, body))
    assert (error.value.reason, error.value.tokens) == (reason, tokens)
    assert SECRET.decode() not in str(error.value)


def test_seed_keeps_to_what_the_engine_takes_and_is_never_its_sign_for_random() -> None:
    seeds = [request_body(Ask(Sampling(1, seed=seed), prompt=""))["seed"] for seed in (0, 7, -1, 2**32 - 1, -(2**63))]
    assert seeds[:2] == [0, 7] and all(0 <= s < 2**32 - 1 for s in seeds)


def test_settings_that_are_left_out_are_neutral_and_not_the_engines_own() -> None:
    body = request_body(Ask(Sampling(5), prompt="x"))
    neutral = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0}
    assert body == {"max_tokens": 5, "temperature": 0.0, "prompt": "x"} | neutral


def test_every_setting_reaches_the_engine_under_its_name() -> None:
    sampling = Sampling(5, 1.0, 0.9, 5, 0.1, 3, ("x",), 2, 0.5, -0.5, {7: -100.0}, 3, True)
    body = request_body(Ask(sampling, messages=[], constraint=Constraint("regex", "a+", "start: /a+/")))
    assert (
        body["logit_bias"] == {"7": -100.0} and body["stop"] == ["x"] and body["verbose"] and body["ignore_eos"] is True
    )
    assert (body["logprobs"], body["top_logprobs"], body["n"]) == (True, 3, 2)
    assert body["grammar"] == "start: /a+/" and "tools" not in body
