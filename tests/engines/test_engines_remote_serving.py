"""Endpoints of every kind, played on loopback: what they are taken for, what they are sent, what becomes of answers."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from http_fake import HEAD, Asked, Fake, chunk, events, listening, whole

from inhouse.core.errors import UserError
from inhouse.core.serving import (
    Ask,
    Constraint,
    Delta,
    EngineLost,
    EngineRefused,
    Sampling,
    ServingEngine,
    Stats,
    Usage,
)
from inhouse.engines.openai_deltas import Chunks, sse_deltas, whole_deltas
from inhouse.engines.remote_serving import RemoteServing, RemoteSettings, start

MESSAGES = [{"role": "user", "content": "hi"}]
ASK = Ask(Sampling(max_tokens=8), messages=MESSAGES)
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
NAMED = {"name": "answer", "schema": SCHEMA, "strict": True}
SECRET = "/home/ann/model at 0x7f00"


def card(owner: str, **more: Any) -> dict[str, Any]:
    """A model list with one model."""
    return {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": owner, **more}]}


# The routes by which each kind is told from the others, as their own servers answer them.
KINDS: dict[str, dict[str, Any]] = {
    "vllm": {"/v1/models": card("vllm", max_model_len=4096), "/version": {"version": "0.12.0"}},
    "sglang": {"/v1/models": card("sglang", max_model_len=4096), "/get_server_info": {"version": "0.5.4"}},
    "tgi": {"/v1/models": card("org/m"), "/info": {"model_id": "m", "version": "3.3.6", "max_total_tokens": 4096}},
    "ollama": {"/v1/models": card("library"), "/api/version": {"version": "0.12.1"}},
    "llama-server": {
        "/v1/models": card("llamacpp"),
        "/props": {"default_generation_settings": {"n_ctx": 4096}, "build_info": "b6800"},
    },
    "openai": {"/v1/models": card("system")},
}


@dataclass
class Endpoint:
    """A played endpoint: its routes, and what it answers on the others."""

    routes: dict[str, Any]
    answers: dict[str, bytes] = field(default_factory=dict)

    async def __call__(self, asked: Asked, writer: asyncio.StreamWriter) -> None:
        if asked.path in self.answers:
            writer.write(self.answers[asked.path])
        elif asked.path in self.routes:
            writer.write(whole(self.routes[asked.path]))
        else:
            writer.write(whole({"detail": "Not Found"}, 404))


Use = Callable[[RemoteServing, Fake], Coroutine[Any, Any, Any]]


def run(kind: str, use: Use, answers: dict[str, bytes] | None = None, routes: dict[str, Any] | None = None) -> Any:
    """Find the endpoint as the gateway does, and use it."""

    async def go() -> Any:
        async with asyncio.timeout(10), listening(Endpoint(routes or KINDS[kind], answers or {})) as fake:
            settings = RemoteSettings(url=fake.url + "/v1", model="m", context_length=2048)
            backend = await asyncio.to_thread(start, settings)
            assert backend.found.kind == kind
            engine = backend.open()
            fake.asked.clear()
            try:
                return await use(engine, fake)
            finally:
                await engine.close()

    return asyncio.run(go())


async def gathered(engine: ServingEngine, ask: Ask) -> list[Delta]:
    return [delta async for together in engine.submit(ask) for delta in together]


def sent(kind: str, ask: Ask) -> dict[str, Any]:
    """The body that an endpoint of this kind gets for a request."""

    async def use(engine: RemoteServing, fake: Fake) -> dict[str, Any]:
        await gathered(engine, ask)
        body: dict[str, Any] = fake.asked[0].json
        return body

    stream = events('{"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":"stop"}]}')
    return run(kind, use, {"/v1/chat/completions": stream, "/v1/completions": stream})


# --- what is found


@pytest.mark.parametrize("kind", KINDS)
def test_kind_of_an_endpoint_is_found_with_its_version(kind: str) -> None:
    async def go() -> None:
        async with listening(Endpoint(KINDS[kind])) as fake:
            settings = RemoteSettings(url=fake.url, model="m", context_length=None if kind in TOLD else 2048)
            backend = await asyncio.to_thread(start, settings)
            assert (backend.found.kind, backend.found.api) == (kind, fake.url + "/v1")
            assert backend.context_length == (4096 if kind in TOLD else 2048)
            assert await asyncio.to_thread(backend.healthy)
            assert backend.open().capabilities.tools == {"vllm": "forced", "sglang": "forced"}.get(kind, "auto")

    asyncio.run(go())


TOLD = ("vllm", "sglang", "tgi", "llama-server")


def found(routes: dict[str, Any], **settings: Any) -> Any:
    async def go() -> Any:
        async with listening(Endpoint(routes)) as fake:
            return await asyncio.to_thread(start, RemoteSettings(**{"url": fake.url, "model": "m", **settings}))

    return asyncio.run(go())


def test_address_that_is_below_another_path_is_used_as_it_is() -> None:
    assert found({"/models": card("x")}, context_length=100).found.kind == "openai"


def test_adapters_of_vllm_are_those_of_our_model() -> None:
    listed = card("vllm", max_model_len=512)
    listed["data"] += [{"id": "tone", "parent": "m"}, {"id": "other", "parent": "n"}]
    backend = found({"/v1/models": listed, "/version": {"version": "0.9"}})
    assert backend.open().capabilities.adapters == ("tone",)


@pytest.mark.parametrize(
    ("routes", "settings", "code"),
    [
        (KINDS["vllm"], {"model": "other"}, "remote_serving.no_model"),
        (KINDS["openai"], {}, "remote_serving.no_context"),
        (KINDS["openai"], {"api_key_env": "INHOUSE_UPSTREAM_MISSING"}, "remote_serving.no_key"),
        (KINDS["openai"], {"headers": {"X": "a\r\nb"}}, "remote_serving.bad_header"),
        ({}, {}, "remote.refused"),
        ({"/v1/models": [], "/models": {"data": 1}}, {}, "remote.not_openai"),
        ({}, {"url": "http://127.0.0.1:9"}, "remote.unreachable"),
    ],
)
def test_endpoint_that_cannot_serve_is_refused_in_words(
    routes: dict[str, Any], settings: dict[str, Any], code: str
) -> None:
    with pytest.raises(UserError) as error:
        found(routes, **settings)
    assert error.value.code == code


def test_offline_opens_no_socket() -> None:
    with pytest.raises(UserError) as error:
        start(RemoteSettings(url="http://127.0.0.1:9", model="m"), offline=True)
    assert error.value.code == "remote.offline"


def test_endpoint_that_has_gone_is_not_healthy() -> None:
    backend = found(KINDS["vllm"])
    assert not backend.healthy()


def test_key_is_sent_from_its_own_variable_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INHOUSE_UPSTREAM_ONE", "sk-1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")

    async def go(variable: str | None) -> set[str | None]:
        async with listening(Endpoint(KINDS["vllm"])) as fake:
            settings = RemoteSettings(url=fake.url, model="m", api_key_env=variable)
            engine = (await asyncio.to_thread(start, settings)).open()
            with pytest.raises(EngineRefused):
                await gathered(engine, ASK)
            await engine.close()
            return {asked.headers.get("authorization") for asked in fake.asked}

    assert asyncio.run(go("INHOUSE_UPSTREAM_ONE")) == {"Bearer sk-1"}
    assert asyncio.run(go(None)) == {None}


@pytest.mark.parametrize("value", ["AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "INHOUSE_UPSTREAM_"])
def test_variable_of_another_program_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="api_key_env"):
        RemoteSettings(url="http://x", model="m", api_key_env=value)


# --- what is sent


def test_request_is_sent_in_openais_fields() -> None:
    sampling = Sampling(
        max_tokens=5, temperature=0.5, top_p=0.9, seed=2**40, stop=("a",), n=2, presence_penalty=1.0,
        frequency_penalty=-1.0, logit_bias={7: 2.0}, logprobs=3,
    )  # fmt: skip
    body = sent("openai", Ask(sampling, messages=MESSAGES, tools=({"type": "function"},), tool_choice="required"))
    assert body == {
        "model": "m", "messages": MESSAGES, "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "seed": 256,
        "stop": ["a"], "n": 2, "presence_penalty": 1.0, "frequency_penalty": -1.0, "logit_bias": {"7": 2.0},
        "logprobs": True, "top_logprobs": 3, "tools": [{"type": "function"}], "tool_choice": "required",
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip


def test_penalty_of_repetition_has_the_kinds_name_and_is_refused_where_there_is_none() -> None:
    ask = Ask(Sampling(4, repetition_penalty=1.2), prompt="a")
    assert sent("vllm", ask)["repetition_penalty"] == sent("sglang", ask)["repetition_penalty"] == 1.2
    told = sent("llama-server", ask)
    assert told["repeat_penalty"] == 1.2 and "repetition_penalty" not in told
    for kind in ("openai", "ollama", "tgi"):
        with pytest.raises(EngineRefused) as refused:
            sent(kind, ask)
        assert refused.value.reason == "unsupported"


@pytest.mark.parametrize("kind", ["vllm", "sglang", "llama-server"])
def test_sampling_that_only_some_know_is_sent_to_those(kind: str) -> None:
    body = sent(kind, Ask(Sampling(4, top_k=5, min_p=0.1, ignore_end=True), prompt=[1, 2]))
    assert (body["top_k"], body["min_p"], body["ignore_eos"], body["prompt"]) == (5, 0.1, True, [1, 2])


@pytest.mark.parametrize(
    ("kind", "constraint", "expected"),
    [
        ("vllm", Constraint("regex", "a+"), {"structured_outputs": {"regex": "a+"}}),
        ("vllm", Constraint("choice", ("a", "b")), {"structured_outputs": {"choice": ["a", "b"]}}),
        ("vllm", Constraint("json_object"), {"response_format": {"type": "json_object"}}),
        ("sglang", Constraint("grammar", "root ::= x"), {"ebnf": "root ::= x"}),
        ("sglang", Constraint("choice", ("a.", "b")), {"regex": r"(a\.|b)"}),
        ("tgi", Constraint("json_schema", SCHEMA), {"response_format": {"type": "json_object", "value": SCHEMA}}),
        ("tgi", Constraint("regex", "a"), {"response_format": {"type": "regex", "value": "a"}}),
        ("llama-server", Constraint("choice", ("a", "b")), {"grammar": 'root ::= "a" | "b"'}),
        ("llama-server", Constraint("grammar", "root ::= x"), {"grammar": "root ::= x"}),
        (
            "openai",
            Constraint("json_schema", SCHEMA),
            {"response_format": {"type": "json_schema", "json_schema": NAMED}},
        ),
    ],
)  # fmt: skip
def test_constraint_is_sent_in_the_words_of_the_kind(
    kind: str, constraint: Constraint, expected: dict[str, Any]
) -> None:
    body = sent(kind, Ask(Sampling(4), messages=MESSAGES, constraint=constraint))
    assert {name: body.get(name) for name in expected} == expected


def test_older_vllm_is_asked_with_guided_fields() -> None:
    async def use(engine: RemoteServing, fake: Fake) -> Any:
        await gathered(engine, Ask(Sampling(4), messages=MESSAGES, constraint=Constraint("regex", "a")))
        return fake.asked[0].json

    routes = {**KINDS["vllm"], "/version": {"version": "0.10.2"}}
    body = run("vllm", use, {"/v1/chat/completions": events('{"choices":[]}')}, routes)
    assert body["guided_regex"] == "a"


@pytest.mark.parametrize(
    ("kind", "ask"),
    [
        ("openai", Ask(Sampling(4, top_k=5), messages=MESSAGES)),
        ("ollama", Ask(Sampling(4, min_p=0.1), messages=MESSAGES)),
        ("tgi", Ask(Sampling(4, n=2), messages=MESSAGES)),
        ("ollama", Ask(Sampling(4, logit_bias={1: 1.0}), messages=MESSAGES)),
        ("openai", Ask(Sampling(4), prompt=[1, 2])),
        ("openai", Ask(Sampling(4), messages=MESSAGES, constraint=Constraint("regex", "a"))),
        ("ollama", Ask(Sampling(4), messages=MESSAGES, tools=({},), tool_choice="required")),
    ],
)
def test_what_the_kind_cannot_do_is_refused_and_not_left_out(kind: str, ask: Ask) -> None:
    async def use(engine: RemoteServing, fake: Fake) -> int:
        with pytest.raises(EngineRefused) as error:
            await gathered(engine, ask)
        assert error.value.reason == "unsupported"
        return len(fake.asked)

    assert run(kind, use) == 0


def test_adapter_is_asked_for_by_its_name() -> None:
    assert sent("vllm", Ask(Sampling(4), messages=MESSAGES, adapter="tone"))["model"] == "tone"


@pytest.mark.parametrize(("kind", "streamed"), [("vllm", False), ("openai", False), ("llama-server", True)])
def test_answer_that_nobody_reads_in_pieces_is_asked_whole_unless_it_would_run_on(kind: str, streamed: bool) -> None:
    async def use(engine: RemoteServing, fake: Fake) -> tuple[str, bool]:
        deltas = await gathered(engine, Ask(Sampling(4), messages=MESSAGES, whole=True))
        return "".join(delta.text for delta in deltas), bool(fake.asked[0].json.get("stream"))

    choice = {"index": 0, "message": {"content": "ab"}, "finish_reason": "stop"}
    answer = whole({"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 2}})
    pieces = (f'{{"choices":[{{"index":0,"delta":{{"content":"{c}"}}}}]}}' for c in "ab")
    assert run(kind, use, {"/v1/chat/completions": events(*pieces) if streamed else answer}) == ("ab", streamed)


# --- what comes back


def test_chunks_become_deltas() -> None:
    chunks = [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {"content": "a"}}, {"index": 1, "delta": {"content": "b"}}]},
        {"choices": [{"index": 0, "delta": {"reasoning_content": "hm"}}]},
        {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "id": "c"}]}, "finish_reason": "tool_calls"}]},
        {
            "choices": [],
            "usage": {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}},
            "timings": {"prompt_ms": 500, "predicted_ms": 1500.0},
        },
    ]

    async def use(engine: RemoteServing, fake: Fake) -> list[Delta]:
        return await gathered(engine, ASK)

    assert run("vllm", use, {"/v1/chat/completions": events(*map(json.dumps, chunks))}) == [
        Delta(tokens=0),
        Delta("a"),
        Delta("b", index=1),
        Delta(reasoning="hm"),
        Delta(tool_calls=[{"index": 0, "id": "c"}], finish="tool_calls"),
        Delta(tokens=0, usage=Usage(9, 3, 4, 0.5, 1.5)),
    ]


def test_text_completions_logprobs_get_the_shape_of_chats() -> None:
    told = {"tokens": ["é"], "token_logprobs": [-0.5], "top_logprobs": [{"é": -0.5, "e": -1.5}]}
    chunk = {"choices": [{"index": 0, "text": "é", "logprobs": told, "finish_reason": "eos_token"}]}
    [delta] = sse_deltas(json.dumps(chunk))
    top = [{"token": "é", "logprob": -0.5, "bytes": [195, 169]}, {"token": "e", "logprob": -1.5, "bytes": [101]}]
    entry = {"token": "é", "logprob": -0.5, "bytes": [195, 169], "top_logprobs": top}
    assert (delta.text, delta.finish, delta.logprobs) == ("é", "stop", [entry])


def test_usage_in_the_last_content_chunk_belongs_to_it_and_running_usage_to_none() -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    running = {"choices": [{"index": 0, "delta": {"content": "a"}}], "usage": usage}
    last = {"choices": [{"index": 0, "delta": {"content": "b"}, "finish_reason": "length"}], "usage": usage}
    assert [d.usage for d in sse_deltas(json.dumps(running))] == [None]
    assert [d.usage for d in sse_deltas(json.dumps(last))] == [Usage(1, 1)]


@pytest.mark.parametrize("data", ["{broken", '{"choices": 3}', '{"choices": [{"delta": 3}]}', '{"usage": {"a": 1}}'])
def test_event_that_is_none_of_openais_means_that_the_engine_is_lost(data: str) -> None:
    with pytest.raises(EngineLost):
        sse_deltas(data)


def test_answer_that_was_aborted_is_not_taken_for_whole() -> None:
    with pytest.raises(EngineLost):
        sse_deltas('{"choices":[{"index":0,"delta":{},"finish_reason":"abort"}]}')


def test_null_is_skipped() -> None:
    assert sse_deltas("null") == []


def test_whole_answer_with_several_choices_tools_and_thoughts() -> None:
    entry = {"token": "b"}
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    answer = {
        "choices": [
            {"index": 0, "message": {"tool_calls": [call], "reasoning": "hm"}, "finish_reason": "tool_calls"},
            {"index": 1, "message": {"content": "b"}, "finish_reason": "length", "logprobs": {"content": [entry]}},
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 5},
    }  # fmt: skip

    async def use(engine: RemoteServing, fake: Fake) -> list[Delta]:
        return await gathered(engine, Ask(Sampling(4, n=2), messages=MESSAGES, whole=True))

    first, second = run("vllm", use, {"/v1/chat/completions": whole(answer)})
    assert (first.tool_calls, first.reasoning, first.usage) == ([{"index": 0, **call}], "hm", Usage(3, 5))
    assert (second.text, second.finish, second.logprobs) == ("b", "length", [entry])


def test_whole_text_completion() -> None:
    async def use(engine: RemoteServing, fake: Fake) -> list[Delta]:
        return await gathered(engine, Ask(Sampling(4), prompt="a", whole=True))

    answer = {"choices": [{"index": 0, "text": "b", "finish_reason": "stop"}]}
    assert run("vllm", use, {"/v1/completions": whole(answer)}) == [Delta("b", finish="stop")]


@pytest.mark.parametrize("body", [b"[]", b"{}", b"<html>", b'{"choices": []}'])
def test_whole_answer_that_is_none_means_that_the_engine_is_lost(body: bytes) -> None:
    async def use(engine: RemoteServing, fake: Fake) -> None:
        with pytest.raises(EngineLost):
            await gathered(engine, Ask(Sampling(4), messages=MESSAGES, whole=True))

    run("vllm", use, {"/v1/chat/completions": whole(body)})


@pytest.mark.parametrize(
    ("status", "body", "reason", "tokens"),
    [
        (400, {"error": {"type": "exceed_context_size_error", "n_prompt_tokens": 900}}, "context", 900),
        (400, {"error": {"code": "context_length_exceeded", "message": SECRET}}, "context", None),
        (400, {"error": {"message": "This model's maximum context length is 512 tokens. However, you requested 900 "
                                    "tokens"}}, "context", 900),
        (400, {"object": "error", "message": "The input (3000 tokens) is longer than the model's context length (2048 "
                                             "tokens)."}, "context", 3000),
        (422, {"error": "Input validation error: `inputs` must have less than 1024 tokens. Given: 2000",
               "error_type": "validation"}, "context", 2000),
        (400, {"error": {"message": SECRET}}, "invalid", None),
        (422, {"error": SECRET, "error_type": "validation"}, "invalid", None),
        (429, {"error": {"message": "slow down"}}, "busy", None),
        (503, {}, "busy", None),
        (401, {"error": {"message": SECRET}}, "failed", None),
        (404, {}, "failed", None),
        (500, b"<html>", "failed", None),
        (500, b"[]", "failed", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("whole_answer", [False, True])
def test_refusal_is_put_into_our_words(
    status: int, body: Any, reason: str, tokens: int | None, whole_answer: bool
) -> None:
    async def use(engine: RemoteServing, fake: Fake) -> EngineRefused:
        with pytest.raises(EngineRefused) as error:
            await gathered(engine, Ask(Sampling(4), messages=MESSAGES, whole=whole_answer))
        return error.value

    refused = run("vllm", use, {"/v1/chat/completions": whole(body, status)})
    assert (refused.reason, refused.tokens) == (reason, tokens)
    assert SECRET not in str(refused)


def test_error_inside_a_stream_is_a_refusal() -> None:
    async def use(engine: RemoteServing, fake: Fake) -> str:
        with pytest.raises(EngineRefused) as error:
            await gathered(engine, ASK)
        return error.value.reason

    inside = events(json.dumps({"error": {"message": SECRET, "code": 400}}))
    assert run("vllm", use, {"/v1/chat/completions": inside}) == "invalid"


@pytest.mark.parametrize(("last", "reason"), [('{"error": {"code": 400}}', EngineRefused), ("[[", EngineLost)])
def test_what_is_wrong_in_a_stream_is_raised_where_it_is_waited_for_also_when_tokens_are_pushed(
    last: str, reason: type[Exception]
) -> None:
    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> bool | None:
        if asked.path != "/v1/chat/completions":
            return await Endpoint(KINDS["vllm"])(asked, writer)
        writer.write(HEAD)
        for data in (*['{"choices":[{"index":0,"delta":{"content":"x"}}]}'] * 3, last):
            writer.write(chunk(f"data: {data}\n\n".encode()))
            await writer.drain()
            await asyncio.sleep(0.01)
        return True

    async def go() -> tuple[int, int]:
        async with asyncio.timeout(5), listening(answer) as fake:
            engine = (await asyncio.to_thread(start, RemoteSettings(url=fake.url, model="m"))).open()
            pushed: list[Delta] = []
            given: list[Delta] = []
            with pytest.raises(reason):
                async for deltas in engine.submit(ASK, lambda deltas: not pushed.extend(deltas)):
                    given += deltas
            await engine.close()
            return len(given), len(pushed)

    given, pushed = asyncio.run(go())
    assert given + pushed == 3
    assert pushed > 0


def test_text_in_front_of_a_fault_is_told_before_it() -> None:
    chunks = [json.dumps({"choices": [{"index": 0, "delta": {"content": word}}]}) for word in "ab"]
    inside = events(*chunks, json.dumps({"error": {"code": 400}}))

    async def use(engine: RemoteServing, fake: Fake) -> str:
        said = ""
        with pytest.raises(EngineRefused):
            async for deltas in engine.submit(ASK, lambda deltas: False):
                said += "".join(delta.text for delta in deltas)
        return said

    assert run("vllm", use, {"/v1/chat/completions": inside}) == "ab"


@pytest.mark.parametrize(
    "second",
    ["x y", "你好", 'a "quote"', "a \\ slash", "tab\there", "\u200b", "😀", "", " word", "x", '","index":1,"x":"'],
)
@pytest.mark.parametrize("dump", [json.dumps, lambda told: json.dumps(told, ensure_ascii=False)])
def test_chunk_that_differs_in_its_text_alone_is_read_as_any_other(second: str, dump: Callable[[Any], str]) -> None:
    chunks = Chunks(alone=False)
    for text in (" word", second, "x", "model", second):
        told = {"model": "m", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}], "id": "x"}
        assert chunks.read([dump(told)]) == sse_deltas(dump(told))


def test_chunk_is_parsed_where_anything_but_a_text_differs() -> None:
    chunks = Chunks(alone=False)
    plain = '{"choices":[{"index":%s,"delta":{"content":"%s"},"finish_reason":%s}]}'
    for told in ((0, "a", "null"), (0, "b", "null"), (1, "c", "null"), (0, "d", '"stop"'), (0, "e", "null")):
        assert chunks.read([plain % told]) == sse_deltas(plain % told)
    with pytest.raises(EngineLost):
        chunks.read([plain % (0, "raw\ttab", "null")])


MALFORMED = (
    {"tool_calls": "abc"}, {"tool_calls": [1]}, {"tool_calls": [{"function": "f"}]}, {"reasoning_content": 5},
    {"tool_calls": [{"index": "x", "function": {"name": "f"}}]}, {"tool_calls": [{"function": {"arguments": {}}}]},
)  # fmt: skip


@pytest.mark.parametrize("piece", MALFORMED)
def test_piece_of_no_known_shape_means_that_the_engine_is_lost_streamed_or_whole(piece: dict[str, Any]) -> None:
    with pytest.raises(EngineLost):
        sse_deltas(json.dumps({"choices": [{"index": 0, "delta": piece}]}))
    with pytest.raises(EngineLost):
        whole_deltas(json.dumps({"choices": [{"index": 0, "message": piece, "finish_reason": "stop"}]}).encode())


def test_index_that_is_not_said_is_that_of_the_first_choice() -> None:
    assert [d.index for d in sse_deltas('{"choices":[{"index":null,"delta":{"content":"x"}}]}')] == [0]
    with pytest.raises(EngineLost):
        sse_deltas('{"choices":[{"index":[0],"delta":{"content":"x"}}]}')


def test_left_stream_closes_the_connection_at_once() -> None:
    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> bool | None:
        if asked.path != "/v1/chat/completions":
            return await Endpoint(KINDS["vllm"])(asked, writer)
        writer.write(events('{"choices":[{"index":0,"delta":{"content":"x"}}]}', done=False)[:-5])
        await writer.drain()
        while not asked.client_gone():
            await asyncio.sleep(0.005)
        return False

    async def go() -> float:
        async with asyncio.timeout(5), listening(answer) as fake:
            engine = (await asyncio.to_thread(start, RemoteSettings(url=fake.url, model="m"))).open()
            stream = engine.submit(ASK)
            assert (await anext(stream))[0].text == "x"
            fake.gone.clear()
            began = asyncio.get_running_loop().time()
            await stream.aclose()
            await fake.gone.wait()
            return asyncio.get_running_loop().time() - began

    assert asyncio.run(go()) < 0.05


# --- the other questions


@pytest.mark.parametrize("as_text", [True, False])
def test_embeddings_are_read_from_base64_and_from_numbers_and_get_unit_length(as_text: bool) -> None:
    vectors = [[3.0, 4.0], [0.0, 2.0]]
    rows = [
        {
            "index": place,
            "embedding": base64.b64encode(struct.pack("<2f", *vectors[place])).decode() if as_text else vectors[place],
        }
        for place in (1, 0)  # out of order
    ]

    async def use(engine: RemoteServing, fake: Fake) -> Any:
        return await engine.embed(["a", "b"]), fake.asked[0].json["input"]

    answer = whole({"data": rows, "usage": {"prompt_tokens": 4}})
    (found_vectors, read), asked = run("vllm", use, {"/v1/embeddings": answer})
    assert (found_vectors, read, asked) == ([pytest.approx([0.6, 0.8]), pytest.approx([0.0, 1.0])], 4, ["a", "b"])


@pytest.mark.parametrize("body", [{"data": 3}, {"data": [{"index": 0, "embedding": "***"}]}, [], b"{"])
def test_embeddings_that_are_none_mean_that_the_engine_is_lost(body: Any) -> None:
    async def use(engine: RemoteServing, fake: Fake) -> None:
        with pytest.raises(EngineLost):
            await engine.embed(["a"])

    run("vllm", use, {"/v1/embeddings": whole(body)})


@pytest.mark.parametrize(
    ("kind", "text_field", "asked_field"),
    [("vllm", "prompt", "prompt"), ("sglang", "text", "prompt"), ("llama-server", "content", "content")],
)
def test_tokens_are_asked_in_the_words_of_the_kind(kind: str, text_field: str, asked_field: str) -> None:
    async def use(engine: RemoteServing, fake: Fake) -> Any:
        ids, said = await engine.tokenize("ab", special=True), await engine.detokenize([1, 2])
        assert fake.asked[0].json[asked_field] == "ab" and fake.asked[1].json["tokens"] == [1, 2]
        return ids, said

    answers = {"/tokenize": whole({"tokens": [1, 2]}), "/detokenize": whole({text_field: "ab"})}
    assert run(kind, use, answers) == ([1, 2], "ab")


def test_conversation_is_rendered_by_the_endpoint() -> None:
    async def use(engine: RemoteServing, fake: Fake) -> str:
        return await engine.render(ASK)

    assert run("llama-server", use, {"/apply-template": whole({"prompt": "<hi>"})}) == "<hi>"
    answers = {"/tokenize": whole({"tokens": [1]}), "/detokenize": whole({"prompt": "<hi>"})}
    assert run("vllm", use, answers) == "<hi>"


def test_question_that_a_kind_has_no_route_for_is_refused() -> None:
    async def use(engine: RemoteServing, fake: Fake) -> None:
        for question in (engine.tokenize("a", True), engine.detokenize([1]), engine.render(ASK)):
            with pytest.raises(EngineRefused):
                await question

    run("openai", use)


def test_answer_without_its_field_means_that_the_engine_is_lost() -> None:
    async def use(engine: RemoteServing, fake: Fake) -> None:
        with pytest.raises(EngineLost):
            await engine.tokenize("a", True)

    run("vllm", use, {"/tokenize": whole({})})


def test_load_is_read_from_the_metrics_of_the_kind() -> None:
    text = (
        b"# TYPE vllm:num_requests_running gauge\n"
        b'vllm:num_requests_running{engine="0"} 2.0\nvllm:num_requests_running{engine="1"} 1.0\n'
        b'# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{engine="0"} 0.25\n'
    )

    async def use(engine: RemoteServing, fake: Fake) -> Stats:
        return await engine.stats()

    assert run("vllm", use, {"/metrics": whole(text)}) == Stats(running=3, waiting=0, cache_used=0.25)
    assert run("vllm", use) == Stats()
    assert run("openai", use) == Stats()


@pytest.mark.parametrize(
    ("told", "stop"),
    [
        ({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "stop_reason": "###"}]}, "###"),  # vLLM
        ({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "matched_stop": "###"}]}, "###"),  # SGLang
        ({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "matched_stop": 2}]}, None),  # a token
        (
            {"choices": [{"index": 0, "text": "", "finish_reason": "stop"}], "__verbose": {"stopping_word": "###"}},
            "###",
        ),  # llama.cpp
        (
            {"choices": [{"index": 0, "text": "", "finish_reason": "stop"}], "__verbose": {"stopping_word": ""}},
            None,
        ),
    ],
)
def test_stop_string_that_was_met_is_read_from_every_dialect(told: dict[str, Any], stop: str | None) -> None:
    [delta] = sse_deltas(json.dumps(told))
    assert (delta.finish, delta.stop) == ("stop", stop)


@pytest.mark.parametrize("content", [5, ["part"], {"text": "x"}])
def test_answer_whose_text_is_no_text_is_no_answer(content: Any) -> None:
    piece = {"choices": [{"index": 0, "delta": {"content": content}}]}
    whole = {"choices": [{"index": 0, "message": {"content": content}, "finish_reason": "stop"}]}
    plain = {"choices": [{"index": 0, "text": content}]}
    for read, told in ((sse_deltas, piece), (sse_deltas, plain), (whole_deltas, whole), (whole_deltas, plain)):
        with pytest.raises(EngineLost):
            read(json.dumps(told).encode() if read is whole_deltas else json.dumps(told))


def test_usage_below_nothing_is_nothing() -> None:
    told = {"choices": [{"text": "a"}], "usage": {"prompt_tokens": -5, "completion_tokens": -1}}
    (found,) = whole_deltas(json.dumps(told).encode())
    assert found.usage == Usage(0, 0)
