"""The endpoint as clients meet it: the official client, and requests that no client would send."""

from __future__ import annotations

import gzip
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, Literal

import httpx
import openai
import pytest
from pydantic import BaseModel
from serve_endpoint import Endpoint

from inhouse.api.chat import Endpoint as Asked
from inhouse.api.chat import stream_chat
from inhouse.core.errors import UserError
from inhouse.core.rows import Message
from inhouse.release.keys import create_key, revoke_key
from inhouse.release.request_records import FILES, FOLDER

pytestmark = pytest.mark.real
FRESH = {"Cache-Control": "no-store"}  # the engine answers, not the cache
HELLO: Any = [{"role": "user", "content": "Write one short sentence about the sea."}]
EMOJI: Any = [{"role": "user", "content": "Repeat after me: 😀 你好 😀"}]


@pytest.fixture
def client(endpoint: Endpoint) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{endpoint.url}/v1", api_key=endpoint.key, max_retries=0, timeout=120, default_headers=FRESH
    )


@pytest.fixture
def http(endpoint: Endpoint) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {endpoint.key}"} | FRESH
    with httpx.Client(base_url=endpoint.url, headers=headers, timeout=60, trust_env=False) as session:
        yield session


def metric(http: httpx.Client, name: str) -> float:
    lines = http.get("/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def wait_for_idle(http: httpx.Client, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if metric(http, "inhouse_num_requests_running") == 0:
            return True
    return False


def test_chat_answers_with_text_and_usage(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="desk", messages=HELLO, max_tokens=12)
    assert answer.id.startswith("chatcmpl-") and answer.object == "chat.completion" and answer.model == "desk"
    assert answer.choices[0].message.role == "assistant" and answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None and answer.usage.completion_tokens <= 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@pytest.mark.parametrize("messages", [HELLO, EMOJI])
def test_stream_says_the_same_as_the_whole_answer(client: openai.OpenAI, messages: Any) -> None:
    whole = client.chat.completions.create(model="desk", messages=messages, max_tokens=8, temperature=0)
    chunks = list(
        client.chat.completions.create(
            model="desk",
            messages=messages,
            max_tokens=8,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert all(c.choices[0].finish_reason is None for c in chunks[:-2])
    assert chunks[-1].choices == [] and chunks[-1].usage is not None and whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({c.id for c in chunks}) == 1


def test_several_choices_and_log_probabilities_come_in_openai_shape(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="desk", messages=HELLO, max_tokens=4, n=2, temperature=1.0, logprobs=True, top_logprobs=2
    )
    assert [c.index for c in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert choice.logprobs is not None and choice.logprobs.content is not None
        assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)


def test_log_probabilities_of_chosen_tokens_alone_are_told_too(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="desk", messages=HELLO, max_tokens=4, logprobs=True)
    told = answer.choices[0].logprobs
    assert told is not None and told.content is not None and len(told.content) == 4
    assert all(token.logprob <= 0 and token.top_logprobs == [] for token in told.content)
    bare = client.completions.create(model="desk", prompt="The sea is", max_tokens=3, logprobs=0).choices[0].logprobs
    assert bare is not None and len(bare.token_logprobs or ()) == 3 and bare.top_logprobs == [None] * 3


def test_completion_answers_plain_and_streamed(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="desk", prompt="The sea is", max_tokens=8)
    parts = client.completions.create(model="desk", prompt="The sea is", max_tokens=8, stream=True)
    assert whole.object == "text_completion" and whole.choices[0].text
    assert "".join(p.choices[0].text for p in parts if p.choices) == whole.choices[0].text


def test_default_answer_length_is_the_one_the_release_was_made_with(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="routing:v1", messages=[{"role": "user", "content": "Count to 500."}])
    assert answer.usage is not None and answer.usage.completion_tokens <= 16


def test_models_are_the_deployment_and_its_release(client: openai.OpenAI) -> None:
    assert [m.id for m in client.models.list()] == ["desk", "routing:v1"]
    assert client.models.retrieve("desk").object == "model"


def test_unknown_model_is_404(client: openai.OpenAI) -> None:
    for call in (
        lambda: client.chat.completions.create(model="gpt-4", messages=HELLO),
        lambda: client.models.retrieve("gpt-4"),
    ):
        with pytest.raises(openai.NotFoundError) as error:
            call()
        assert error.value.code == "model_not_found"


def test_prompt_that_does_not_fit_is_named_so(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model="desk", messages=[{"role": "user", "content": "word " * 800}])
    assert error.value.code == "context_length_exceeded" and "512" in error.value.message
    assert error.value.param == "messages"
    for route, field in (("completions", "prompt"), ("responses", "input")):
        with pytest.raises(openai.BadRequestError) as error:
            client.post(f"/{route}", body={"model": "desk", field: "word " * 700}, cast_to=httpx.Response)
        assert (error.value.code, error.value.param) == ("context_length_exceeded", field)


@pytest.mark.parametrize("key", ["-", "ih-wrong", "x" * 5000, "ü"])
@pytest.mark.parametrize("path", ["/v1/models", "/ready", "/metrics", "/version", "/v1/chat/completions", "/nowhere"])
def test_every_route_but_health_needs_a_key(endpoint: Endpoint, path: str, key: str) -> None:
    headers = {"Authorization": f"Bearer {key}".encode()}
    answer = httpx.get(endpoint.url + path, headers=headers, params={"api_key": endpoint.key}, trust_env=False)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert httpx.get(f"{endpoint.url}/health", trust_env=False).json() == {"status": "ok"}


def test_key_made_just_before_a_request_opens(endpoint: Endpoint) -> None:
    for _ in range(5):
        token, key = create_key(endpoint.registry.engine, "newcomer")
        headers = {"Authorization": f"Bearer {token}"}
        assert httpx.get(f"{endpoint.url}/version", headers=headers, trust_env=False).status_code == 200
        revoke_key(endpoint.registry.engine, key.prefix)


def test_revoked_key_is_refused_within_a_second(endpoint: Endpoint) -> None:
    token, key = create_key(endpoint.registry.engine, "leaver")
    headers = {"Authorization": f"Bearer {token}"}
    until = time.monotonic() + 5
    while httpx.get(f"{endpoint.url}/ready", headers=headers, trust_env=False).status_code != 200:
        assert time.monotonic() < until
    revoke_key(endpoint.registry.engine, key.prefix)
    until = time.monotonic() + 5
    while httpx.get(f"{endpoint.url}/ready", headers=headers, trust_env=False).status_code != 401:
        assert time.monotonic() < until


@pytest.mark.parametrize(
    ("verb", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
        ("OPTIONS", "/v1/models", 405),
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/models/../../etc/passwd", 404),
        ("GET", "/v1/models/%00", 404),
        ("GET", "/v1/models/" + "a" * 4000, 404),
    ],
)
def test_wrong_routes_and_verbs_get_an_error_in_openai_shape(
    http: httpx.Client, verb: str, path: str, status: int
) -> None:
    answer = http.request(verb, path)
    assert answer.status_code == status and set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert "access-control-allow-origin" not in answer.headers


def test_body_of_the_wrong_kind_is_refused(http: httpx.Client) -> None:
    path = "/v1/chat/completions"
    packed = gzip.compress(b"{" + b" " * 10_000_000)
    assert http.post(path, content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    json_type = {"content-type": "application/json"}
    assert http.post(path, content=packed, headers=json_type | {"content-encoding": "gzip"}).status_code == 415
    assert http.post(path, content=b"{}", headers=json_type).status_code == 400


def test_large_body_is_refused_before_it_is_read(endpoint: Endpoint) -> None:
    """60 MB are announced and not one byte is sent: the answer comes all the same."""
    with socket.create_connection(("127.0.0.1", int(endpoint.url.rsplit(":", 1)[1])), 10) as raw:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {endpoint.key}\r\n"
        raw.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 60000000\r\n\r\n".encode())
        assert b"413" in raw.recv(1000).split(b"\r\n")[0]


def test_large_body_of_unknown_length_is_refused_while_it_is_read(http: httpx.Client) -> None:
    pieces = (b" " * 65536 for _ in range(100))
    answer = http.post("/v1/chat/completions", content=pieces, headers={"content-type": "application/json"})
    assert answer.status_code == 413


def test_headers_carry_the_request_id_the_release_and_what_was_ignored(http: httpx.Client) -> None:
    body = {"model": "desk", "messages": HELLO, "max_tokens": 1, "user": "ann", "bad\r\nname": 1}
    answer = http.post("/v1/chat/completions", json=body, headers={"x-request-id": "abc-1"})
    assert answer.headers["x-request-id"] == "abc-1"
    assert answer.headers["x-inhouse-release"] == "routing:v1"
    assert answer.headers["x-inhouse-ignored-fields"] == "?"
    assert http.get("/version", headers={"x-request-id": "a b"}).headers["x-request-id"] != "a b"


def test_metrics_count_requests_and_tokens(http: httpx.Client) -> None:
    names = ("inhouse_requests_total", "inhouse_generation_tokens_total", "inhouse_time_to_first_token_seconds_count")
    before = [metric(http, name) for name in names]
    body = {"model": "desk", "messages": HELLO, "max_tokens": 3}
    assert http.post("/v1/chat/completions", json=body).status_code == 200
    after = [metric(http, name) for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 3, 1]


@pytest.mark.parametrize("stream", [True, False])
def test_client_that_leaves_frees_its_turn(endpoint: Endpoint, http: httpx.Client, stream: bool) -> None:
    body = json.dumps({"model": "desk", "messages": HELLO, "max_tokens": 450, "temperature": 2.0, "stream": stream})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {endpoint.key}\r\n"
    request = f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    with socket.create_connection(("127.0.0.1", int(endpoint.url.rsplit(":", 1)[1])), 10) as raw:
        raw.sendall(request)
        until = time.monotonic() + 20
        while metric(http, "inhouse_num_requests_running") == 0 and time.monotonic() < until:
            pass
    assert wait_for_idle(http, 1.5)


def test_more_requests_than_the_queue_holds_get_429_and_never_500(endpoint: Endpoint, http: httpx.Client) -> None:
    answers: list[httpx.Response] = []

    def ask() -> None:
        body = {"model": "desk", "messages": HELLO, "max_tokens": 6}
        headers = {"Authorization": f"Bearer {endpoint.key}"} | FRESH
        url = f"{endpoint.url}/v1/chat/completions"
        answers.append(httpx.post(url, json=body, headers=headers, timeout=120, trust_env=False))

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    codes = [a.status_code for a in answers]
    assert set(codes) == {200, 429} and codes.count(200) >= 10
    assert {a.headers["retry-after"] for a in answers if a.status_code == 429} == {"1"}
    assert wait_for_idle(http, 5)


def test_equal_request_is_answered_from_memory(http: httpx.Client) -> None:
    body = {"model": "desk", "messages": [{"role": "user", "content": "Name a colour."}], "max_tokens": 6}
    answers = [
        http.post("/v1/chat/completions", json=body | {"stream": stream}, headers={"Cache-Control": ""})
        for stream in (False, False, False, True)
    ]
    assert [a.headers["x-cache"] for a in answers] == ["miss", "hit", "hit", "hit"]
    first, second, third = (a.json() for a in answers[:3])
    assert first["choices"] == second["choices"] == third["choices"] and first["usage"] == second["usage"]
    assert len({first["id"], second["id"], third["id"]}) == 3 and third["usage"] == first["usage"]
    assert first["choices"][0]["message"]["content"] in answers[3].text.replace('\\"', '"')
    assert "x-cache" not in http.post("/v1/chat/completions", json=body).headers


def test_chat_client_yields_the_answer_in_pieces(endpoint: Endpoint) -> None:
    pieces = list(
        stream_chat(Asked(endpoint.url, endpoint.key), "desk", [Message(role="user", content="Say hello")], 8)
    )
    assert len(pieces) > 1 and "".join(pieces).strip()


def test_chat_client_tells_what_the_server_refused(endpoint: Endpoint) -> None:
    for key, model, status in (("wrong", "desk", 401), (None, "desk", 401), (endpoint.key, "gpt-4", 404)):
        with pytest.raises(UserError) as error:
            list(stream_chat(Asked(f"{endpoint.url}/v1", key), model, [Message(role="user", content="x")], 8))
        assert error.value.code == "chat.refused" and error.value.facts["status"] == status


WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
        },
    },
}
ASK_WEATHER: Any = [{"role": "user", "content": "How warm is it in Paris?"}]


def test_answer_is_held_to_a_schema(client: openai.OpenAI) -> None:
    class Desk(BaseModel):
        desk: Literal["acq", "crude"]
        sure: bool

    parsed = client.chat.completions.parse(model="desk", messages=HELLO, response_format=Desk, max_tokens=40)
    assert isinstance(parsed.choices[0].message.parsed, Desk)


@pytest.mark.parametrize(
    ("limit", "pattern"),
    [({"guided_regex": "[a-c]{3}"}, "[a-c]{3}"), ({"structured_outputs": {"choice": ["yes", "no"]}}, "yes|no")],
)
def test_answer_is_held_to_an_expression_or_a_choice(http: httpx.Client, limit: Any, pattern: str) -> None:
    answer = http.post("/v1/chat/completions", json={"model": "desk", "messages": HELLO, "max_tokens": 8} | limit)
    assert re.fullmatch(pattern, answer.json()["choices"][0]["message"]["content"])


def test_forced_tool_is_called_whole_and_streamed_and_its_result_goes_back(client: openai.OpenAI) -> None:
    asked: Any = {"model": "desk", "messages": ASK_WEATHER, "tools": [WEATHER], "max_tokens": 60}
    whole = client.chat.completions.create(tool_choice="required", **asked)
    assert whole.choices[0].finish_reason == "tool_calls"
    calls: Any = whole.choices[0].message.tool_calls
    assert calls[0].function.name == "weather" and set(json.loads(calls[0].function.arguments)) == {"city", "unit"}
    named: Any = {"type": "function", "function": {"name": "weather"}}
    names, arguments, finish = [], "", None
    for chunk in client.chat.completions.create(tool_choice=named, stream=True, **asked):
        for call in chunk.choices[0].delta.tool_calls or ():
            assert call.function is not None
            names += [call.function.name] if call.function.name else []
            arguments += call.function.arguments or ""
        finish = chunk.choices[0].finish_reason or finish
    assert (names, finish) == (["weather"], "tool_calls")
    assert json.loads(arguments) == json.loads(calls[0].function.arguments)
    result = {"role": "tool", "tool_call_id": calls[0].id, "content": "21 C"}
    turns: Any = [*ASK_WEATHER, whole.choices[0].message.model_dump(exclude_none=True), result]
    told = client.chat.completions.create(model="desk", messages=turns, tools=[WEATHER], max_tokens=12)
    assert told.choices[0].finish_reason in ("stop", "length", "tool_calls")


def test_every_forced_call_is_valid_however_wildly_it_is_drawn(client: openai.OpenAI) -> None:
    import jsonschema

    booking: Any = {
        "type": "object",
        "properties": {
            "guest": {"type": "string", "minLength": 1, "maxLength": 12},
            "nights": {"type": "integer", "minimum": 1, "maximum": 30},
            "beds": {"type": "array", "items": {"enum": ["single", "double", "双人"]}, "minItems": 1, "maxItems": 3},
            "paid": {"type": "boolean"},
            "address": {"type": "object", "properties": {"zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
                        "required": ["zip"], "additionalProperties": False},
        },
        "required": ["guest", "nights", "beds", "paid", "address"],
        "additionalProperties": False,
    }  # fmt: skip
    tools: Any = [{"type": "function", "function": {"name": "book", "parameters": booking}}, WEATHER]
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    made = []
    for seed in range(24):
        turns: Any = [
            {"role": "user", "content": f"Request {seed}: {['book a room', 'how is the weather?'][seed % 2]}"}
        ]
        answer = client.chat.completions.create(
            model="desk",
            messages=turns,
            tools=tools,
            tool_choice="required",
            max_tokens=200,
            temperature=1.5,
            seed=seed,
        )
        calls: Any = answer.choices[0].message.tool_calls
        assert answer.choices[0].finish_reason == "tool_calls" and calls
        for call in calls:
            jsonschema.validate(json.loads(call.function.arguments), schemas[call.function.name])
            made.append(call.function.arguments)
    assert len(set(made)) > 20  # drawn, and not one answer again and again


def test_old_functions_are_answered_in_their_shape(http: httpx.Client) -> None:
    body = {"model": "desk", "messages": ASK_WEATHER, "functions": [WEATHER["function"]], "max_tokens": 60}
    answer = http.post("/v1/chat/completions", json=body | {"function_call": {"name": "weather"}}).json()
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "function_call" and choice["message"]["function_call"]["name"] == "weather"


def test_completion_tells_log_probabilities_in_its_own_shape(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="desk", prompt="The sea is", max_tokens=3, logprobs=2)
    told = answer.choices[0].logprobs
    assert told is not None and told.tokens is not None and told.text_offset is not None
    assert len(told.tokens) == len(told.token_logprobs or ()) == 3 and "".join(told.tokens) == answer.choices[0].text
    assert told.text_offset[0] == 0 and all(len(top or ()) == 2 for top in told.top_logprobs or ())


def test_feedback_is_kept_for_the_arm_that_answered(endpoint: Endpoint, http: httpx.Client) -> None:
    from inhouse.release.results import read_scores

    said = http.post("/v1/chat/completions", json={"model": "desk", "messages": HELLO, "max_tokens": 2})
    request = said.headers["x-request-id"]
    arms = endpoint.registry.deployment("desk").arms
    before = read_scores(endpoint.registry.engine, "desk", arms)[0].count
    assert http.post("/v1/feedback", json={"request_id": request, "thumb": "up"}).json()["score"] == 1.0
    assert read_scores(endpoint.registry.engine, "desk", arms)[0].count == before + 1
    assert http.post("/v1/feedback", json={"request_id": "nobody's", "thumb": "up"}).status_code == 404
    long = {"model": "desk", "messages": [{"role": "user", "content": "word " * 2000}]}
    for path, body in (("/v1/chat/completions", long), ("/tokenize", {"prompt": "x"})):  # no answer to judge
        other = http.post(path, json=body).headers["x-request-id"]
        assert http.post("/v1/feedback", json={"request_id": other, "thumb": "up"}).status_code == 404
    assert http.post("/v1/feedback", json={"request_id": request}).status_code == 400
    other, _ = create_key(endpoint.registry.engine, "stranger")
    headers = {"Authorization": f"Bearer {other}"}
    body = {"request_id": request, "score": -1}
    assert http.post("/v1/feedback", json=body, headers=headers).status_code == 404


def test_stages_of_a_request_are_found_by_its_id(http: httpx.Client) -> None:
    said = http.post("/v1/chat/completions", json={"model": "desk", "messages": HELLO, "max_tokens": 3})
    found = http.get(f"/inhouse/requests/{said.headers['x-request-id']}").json()
    assert found["release"] == "routing:v1" and found["arm"] == "live" and found["answer_tokens"] == 3
    assert 0 <= found["queue_s"] <= found["first_token_s"] <= found["total_s"] and found["decode_s"] >= 0


def test_request_that_is_refused_at_once_is_found_by_its_id_without_its_words(
    http: httpx.Client, endpoint: Endpoint
) -> None:
    secret = "unspoken" * 3
    wrong = {"messages": [{"role": "root", "content": secret}], "model": "desk"}
    unknown = {"messages": [{"role": "user", "content": secret}], "model": secret}
    found = {}
    for body, status, error in ((wrong, 400, "invalid_request"), (unknown, 404, "model_not_found")):
        reply = http.post("/v1/chat/completions", json=body)
        id = reply.headers["x-request-id"]
        stages = http.get(f"/inhouse/requests/{id}").json()
        assert (reply.status_code, stages["status"], stages["error"]) == (status, status, error)
        assert stages["route"] == "/v1/chat/completions" and stages["prompt_tokens"] == 0
        found[id] = secret not in json.dumps(stages)
    logged = ""
    until = time.monotonic() + 10
    while not all(id in logged for id in found) and time.monotonic() < until:
        time.sleep(0.05)
        logged = "".join(file.read_text() for file in (endpoint.registry.store.root / FOLDER).glob(FILES))
    assert all(found.values()) and [logged.count(id) for id in found] == [1, 1] and secret not in logged


def test_key_without_the_scope_is_refused(endpoint: Endpoint) -> None:
    from inhouse.release.keys import Limits

    token, _ = create_key(endpoint.registry.engine, "narrow", limits=Limits(scopes=("metrics",), models=("other",)))
    narrow, _ = create_key(endpoint.registry.engine, "elsewhere", limits=Limits(models=("other",)))
    body = {"model": "desk", "messages": HELLO, "max_tokens": 1}
    with httpx.Client(base_url=endpoint.url, timeout=60, trust_env=False) as session:
        answers = [
            session.post("/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}"})
            for key in (token, narrow)
        ]
        assert session.get("/metrics", headers={"Authorization": f"Bearer {token}"}).status_code == 200
    assert [a.status_code for a in answers] == [403, 403]
    assert [a.json()["error"]["code"] for a in answers] == ["insufficient_scope", "model_not_allowed"]
