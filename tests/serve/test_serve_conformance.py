"""The list of what OpenAI's clients rely on, line by line, as bytes on the wire.

Line 9 (batches) is in test_serve_batches, 10 (gRPC) in test_serve_grpc, 14 (real clients, schemathesis) in
test_serve_clients and test_serve_openapi.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest
from serve_endpoint import Endpoint

from inhouse.serve.routes import Routes

pytestmark = pytest.mark.real
HELLO: Any = [{"role": "user", "content": "Repeat after me: 😀 你好 😀"}]
CHAT = "/v1/chat/completions"
ERROR_FIELDS = {"message", "type", "param", "code"}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "n": {"type": "integer", "enum": [1, 2]}},
    "required": ["name", "n"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "note", "parameters": SCHEMA}}


@pytest.fixture(scope="module")
def http(endpoint: Endpoint) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {endpoint.key}", "Cache-Control": "no-store"}
    with httpx.Client(base_url=endpoint.url, headers=headers, timeout=60, trust_env=False) as session:
        yield session


def chat(http: httpx.Client, **more: Any) -> httpx.Response:
    return http.post(CHAT, json={"model": "desk", "messages": HELLO, "max_tokens": 6, "temperature": 0} | more)


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    """Each event of a stream; the last one must be the end mark."""
    pieces = answer.text.split("\n\n")
    assert pieces[-2:] == ["data: [DONE]", ""] and all(piece.startswith("data: ") for piece in pieces[:-1])
    return [json.loads(piece.removeprefix("data: ")) for piece in pieces[:-2]]


def test_line_1_routes_are_there_and_others_are_told_so(http: httpx.Client) -> None:
    there = {(route.verb, route.path) for route in Routes().all()}
    posts = ("chat/completions", "completions", "embeddings", "responses", "responses/{id}/cancel", "files", "batches",
             "batches/{id}/cancel", "messages", "messages/count_tokens", "rerank", "score")  # fmt: skip
    gets = ("models", "models/{id}", "responses/{id}", "files", "files/{id}", "files/{id}/content", "batches/{id}")
    assert {("POST", f"/v1/{path}") for path in posts} | {("GET", f"/v1/{path}") for path in gets} <= there
    assert {("POST", f"/api/{name}") for name in ("chat", "generate", "embed", "show")} <= there
    assert {
        ("GET", path) for path in ("/health", "/ready", "/version", "/metrics", "/api/tags", "/api/version")
    } <= there
    assert {("POST", "/tokenize"), ("POST", "/detokenize")} <= there
    missing, wrong = http.get("/v1/nothing"), http.put(CHAT, json={})
    assert (missing.status_code, wrong.status_code, wrong.headers["allow"]) == (404, 405, "POST")
    assert set(missing.json()["error"]) == set(wrong.json()["error"]) == ERROR_FIELDS


def test_line_2_models_are_listed_stable_and_retrieved(http: httpx.Client) -> None:
    listed = http.get("/v1/models").json()
    assert listed["object"] == "list" and {"desk", "routing:v1"} <= {model["id"] for model in listed["data"]}
    for model in listed["data"]:
        assert set(model) == {"id", "object", "created", "owned_by"} and model["object"] == "model"
        assert http.get(f"/v1/models/{model['id']}").json() == model
    unknown = http.get("/v1/models/gpt-4")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


def test_line_3_a_reply_has_openais_fields_and_ours_are_in_headers(http: httpx.Client) -> None:
    answer = chat(http, n=2)
    told = answer.json()
    assert set(told) == {"id", "object", "created", "model", "choices", "usage"}
    assert told["id"].startswith("chatcmpl-") and (told["object"], told["model"]) == ("chat.completion", "desk")
    for index, choice in enumerate(told["choices"]):
        assert set(choice) == {"index", "message", "finish_reason", "logprobs"} and choice["index"] == index
        assert set(choice["message"]) == {"role", "content", "refusal"}
        assert choice["finish_reason"] in ("stop", "length")
    usage = told["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert answer.headers["x-request-id"] and answer.headers["x-inhouse-release"] == "routing:v1"


def test_line_4_streams_are_whole_events_that_add_up(http: httpx.Client) -> None:
    whole = chat(http, max_tokens=12).json()
    asked = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 12}
    answer = http.post(
        CHAT, json={"model": "desk", "messages": HELLO, "temperature": 0} | asked, headers={"Accept-Encoding": "gzip"}
    )
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache" and "content-encoding" not in answer.headers
    *chunks, last = events(answer)
    assert last["choices"] == [] and last["usage"] == whole["usage"]
    assert {chunk["id"] for chunk in chunks} == {last["id"]} and last["object"] == "chat.completion.chunk"
    deltas = [chunk["choices"][0] for chunk in chunks]
    assert deltas[0]["delta"]["role"] == "assistant" and all("role" not in each["delta"] for each in deltas[1:])
    assert [each["finish_reason"] for each in deltas[:-1]] == [None] * (len(deltas) - 1) and deltas[-1]["finish_reason"]
    assert "".join(each["delta"].get("content") or "" for each in deltas) == whole["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        (b"{", 400, "body", None),
        (b'{"model": "desk", "messages": []}', 400, "messages", None),
        (b'{"model": "desk", "messages": [{"role": "root", "content": "x"}]}', 400, "messages.0.role", None),
        (b'{"model": "gpt-4", "messages": [{"role": "user", "content": "x"}]}', 404, "model", "model_not_found"),
        (b'{"model": "desk", "messages": [{"role": "user", "content": "x"}], "n": 1000}', 400, "n", None),
        (b'{"model": "desk", "messages": [{"role": "user", "content": "x"}], "top_k": -1}', 400, "top_k", None),
        (
            b'{"model": "desk", "messages": [{"role": "user", "content": "x"}], "audio": {"voice": "a"}}',
            400, "audio", "unsupported_parameter",
        ),
        (
            json.dumps({"model": "desk", "messages": [{"role": "user", "content": "sea " * 2000}]}).encode(),
            400, "messages", "context_length_exceeded",
        ),
        (
            b'{"model": "desk", "messages": [{"role": "user", "content": "x"}], "logit_bias": {"9": 1, "49152": 1}}',
            400, "logit_bias", None,
        ),
    ],
)  # fmt: skip
def test_line_5_errors_name_the_field(
    http: httpx.Client, body: bytes, status: int, param: str | None, code: str | None
) -> None:
    answer = http.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (status, param, code) and set(error) == ERROR_FIELDS


def test_line_5_unknown_fields_are_ignored_and_named(http: httpx.Client) -> None:
    answer = chat(http, max_tokens=1, colour="blue", stream=False)
    assert answer.status_code == 200 and answer.headers["x-inhouse-ignored-fields"] == "colour"


def test_line_6_metrics_have_their_names(http: httpx.Client) -> None:
    told = http.get("/metrics").text
    for name in (
        "num_requests_running", "num_requests_waiting", "prompt_tokens_total", "generation_tokens_total",
        "time_to_first_token_seconds_bucket", "inter_token_latency_seconds_bucket",
        "e2e_request_latency_seconds_bucket", "request_success_total",
    ):  # fmt: skip
        assert f"inhouse_{name}" in told, name


@pytest.mark.parametrize(
    "field",
    [
        {"temperature": 1.5}, {"top_p": 0.5}, {"top_k": 3}, {"min_p": 0.1}, {"seed": 3}, {"stop": "x"},
        {"stop": ["x", "y"]}, {"max_completion_tokens": 2}, {"n": 2}, {"presence_penalty": 1.0},
        {"frequency_penalty": -1.0}, {"repetition_penalty": 1.1}, {"logit_bias": {"3": 5}},
        {"logprobs": True, "top_logprobs": 20}, {"user": "ann"},
        {"metadata": {"a": "b"}}, {"parallel_tool_calls": True, "tools": [TOOL], "tool_choice": "none"},
        {"response_format": {"type": "text"}}, {"response_format": {"type": "json_object"}},
        {"reasoning_effort": "low"}, {"stream_options": None}, {"tools": []},
    ],
    ids=lambda field: next(iter(field)),
)  # fmt: skip
def test_line_7_sampling_fields_are_taken(http: httpx.Client, field: dict[str, Any]) -> None:
    answer = chat(http, max_tokens=2, **field)
    assert answer.status_code == 200, answer.text
    assert set(answer.headers.get("x-inhouse-ignored-fields", "").split(",")) <= {"", "metadata", "reasoning_effort"}


def test_line_7_repetition_is_penalised_over_the_prompt_too(http: httpx.Client) -> None:
    said = [{"role": "user", "content": "Repeat this text: Hello, my friend. Hello, my friend"}]
    plain, less = (
        chat(http, messages=said, max_tokens=6, repetition_penalty=penalty).json()["choices"][0]["message"]["content"]
        for penalty in (1.0, 1.5)
    )
    assert plain.startswith("Hello, my friend") and not less.startswith("Hello, my")


def test_line_8_streamed_calls_tell_id_and_name_once_and_fit_the_schema(http: httpx.Client) -> None:
    answer = chat(http, tools=[TOOL], tool_choice="required", stream=True, max_tokens=60)
    deltas = [event["choices"][0] for event in events(answer)]
    pieces = [piece for each in deltas for piece in each["delta"].get("tool_calls") or ()]
    assert {piece["index"] for piece in pieces} == {0} and deltas[-1]["finish_reason"] == "tool_calls"
    assert [bool(piece.get("id")) for piece in pieces] == [True] + [False] * (len(pieces) - 1)
    assert [piece["function"].get("name") for piece in pieces if piece["function"].get("name")] == ["note"]
    jsonschema.validate(json.loads("".join(piece["function"].get("arguments") or "" for piece in pieces)), SCHEMA)
    held = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}
    for temperature in (0.0, 1.5):
        choice = chat(http, response_format=held, temperature=temperature, max_tokens=60).json()["choices"][0]
        if choice["finish_reason"] != "length":
            jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMA)
