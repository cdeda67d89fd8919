"""Anthropic's messages: the same answers as chat, in another shape."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serve_endpoint import Endpoint

from inhouse.core.serving import Delta, Usage
from inhouse.serve.errors import ApiError
from inhouse.serve.message_events import MessageEvents, message_of
from inhouse.serve.message_items import chat_choice, chat_messages, chat_tools
from inhouse.serve.replies import Gathered

real = pytest.mark.real
SEA = [{"role": "user", "content": "Name one sea."}]


def call(index: int, **told: Any) -> Delta:
    return Delta(tool_calls=[{"index": index, **told}])


STEPS = [
    [Delta(reasoning="hm")],
    [Delta("Let "), Delta("me look.")],
    [call(0, id="call_a", function={"name": "look", "arguments": ""})],
    [call(0, function={"arguments": '{"at":'}), call(0, function={"arguments": "1}"})],
    [call(1, id="call_b", function={"name": "see", "arguments": "{}"})],
    [Delta(finish="tool_calls")],
]


def test_events_build_up_the_message_that_is_sent_whole() -> None:
    events, gathered = MessageEvents("msg_1", "m"), Gathered()
    found = events.begin()
    for deltas in STEPS:
        found += events.add(deltas)
        gathered.add(deltas)
    found += events.end(Usage(7, 3, 2))
    built: list[dict[str, Any]] = []
    for event in found:  # as Anthropic documents how a client puts them together
        if event["type"] == "content_block_start":
            assert event["index"] == len(built)
            built.append(dict(event["content_block"]) | {"json": ""})
        elif event["type"] == "content_block_delta":
            delta, block = event["delta"], built[event["index"]]
            key = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "json"}[delta["type"]]
            block[key] += delta.get("text") or delta.get("thinking") or delta.get("partial_json")
    for block in built:
        parts = block.pop("json")
        if block["type"] == "tool_use":
            block["input"] = json.loads(parts)
    whole = message_of("msg_1", "m", gathered, Usage(7, 3, 2))
    assert built == whole["content"] and whole["content"][2]["input"] == {"at": 1}
    assert whole["stop_reason"] == "tool_use" == found[-2]["delta"]["stop_reason"]
    assert whole["usage"] == found[-2]["usage"]
    assert (whole["usage"]["input_tokens"], whole["usage"]["cache_read_input_tokens"]) == (5, 2)
    kinds = [event["type"] for event in found]
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 4


def test_message_without_a_word_or_with_half_a_call_is_still_a_message() -> None:
    empty, cut = Gathered(), Gathered()
    assert message_of("m", "m", empty, Usage(1, 0))["content"] == []
    cut.add([call(0, id="a", function={"name": "f", "arguments": '{"a'}), Delta(finish="length")])
    whole = message_of("m", "m", cut, Usage(1, 1))
    assert whole["content"] == [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]
    assert whole["stop_reason"] == "max_tokens"


def test_turns_become_the_messages_of_a_chat() -> None:
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "Where?"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": ""},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "a", "name": "look", "input": {"at": 1}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "here"}]},
                {"type": "text", "text": "Go on."},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "b"}]},
    ]
    found = chat_messages(turns, [{"type": "text", "text": "Be brief."}])
    assert [message["role"] for message in found] == ["system", "user", "assistant", "tool", "user", "tool"]
    assert found[2]["content"] == "I look." and json.loads(found[2]["tool_calls"][0]["function"]["arguments"]) == {
        "at": 1
    }
    assert found[3] == {"role": "tool", "tool_call_id": "a", "content": "here"} and found[5]["content"] == ""


@pytest.mark.parametrize(
    "message",
    [
        3,
        {"role": "system", "content": "x"},
        {"role": "user"},
        {"role": "user", "content": ["x"]},
        {"role": "user", "content": [{"type": "image", "source": {}}]},
        {"role": "user", "content": [{"type": "tool_use", "id": "a", "name": "f"}]},
        {"role": "user", "content": [{"type": "text", "text": 3}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": 3}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": [{"type": "image"}]}]},
    ],
)
def test_turn_that_is_not_known_is_refused_with_its_place(message: Any) -> None:
    with pytest.raises(ApiError) as error:
        chat_messages([*SEA, message], None)
    assert error.value.status == 400 and str(error.value.param).startswith("messages.1")


def test_tools_and_their_choice_take_the_shape_of_chat() -> None:
    tool = {"name": "f", "description": "d", "input_schema": {"type": "object"}}
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    assert chat_tools([tool]) == [{"type": "function", "function": function}]
    assert [chat_choice(c) for c in (None, {"type": "any"}, {"type": "none"})] == ["auto", "required", "none"]
    assert chat_choice({"type": "tool", "name": "f"}) == {"type": "function", "function": {"name": "f"}}
    for refused in (lambda: chat_tools([{"type": "bash_20250124"}]), lambda: chat_choice({"type": "all"})):
        with pytest.raises(ApiError):
            refused()


@pytest.fixture
def http(endpoint: Endpoint) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=endpoint.url, headers={"x-api-key": endpoint.key}, timeout=60, trust_env=False
    ) as session:
        yield session


@real
def test_message_says_what_chat_says_whole_and_streamed(http: httpx.Client, endpoint: Endpoint) -> None:
    asked = {"model": "desk", "max_tokens": 8, "temperature": 0, "system": "Be brief.", "messages": SEA}
    whole = http.post("/v1/messages", json=asked).json()
    turns = [{"role": "system", "content": "Be brief."}, *SEA]
    bearer = {"Authorization": f"Bearer {endpoint.key}"}
    body = {"model": "desk", "max_tokens": 8, "temperature": 0, "messages": turns}
    chat = http.post("/v1/chat/completions", json=body, headers=bearer).json()
    assert whole["content"] == [{"type": "text", "text": chat["choices"][0]["message"]["content"]}]
    assert whole["id"].startswith("msg_") and whole["stop_reason"] in ("end_turn", "max_tokens")
    spent = whole["usage"]
    assert spent["input_tokens"] + spent["cache_read_input_tokens"] == chat["usage"]["prompt_tokens"]
    lines = http.post("/v1/messages", json={**asked, "stream": True}).text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
    assert [line[7:] for line in lines if line.startswith("event: ")] == [event["type"] for event in events]
    said = "".join(e["delta"]["text"] for e in events if e["type"] == "content_block_delta")
    assert said == whole["content"][0]["text"]
    counted = http.post("/v1/messages/count_tokens", json={k: asked[k] for k in ("model", "system", "messages")})
    assert counted.json() == {"input_tokens": chat["usage"]["prompt_tokens"]}


@real
def test_tools_are_counted_as_they_are_charged(http: httpx.Client) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tools = [{"name": "weather", "description": "Weather of a city", "input_schema": schema}]
    asked = {"model": "desk", "system": "Be brief.", "messages": SEA, "tools": tools}
    counted = http.post("/v1/messages/count_tokens", json=asked).json()["input_tokens"]
    spent = http.post("/v1/messages", json={**asked, "max_tokens": 1}).json()["usage"]
    assert counted == spent["input_tokens"] + spent["cache_read_input_tokens"]
    plain = http.post("/v1/messages/count_tokens", json={**asked, "tools": []}).json()["input_tokens"]
    assert counted > plain + 20


@real
@pytest.mark.parametrize("field", ["output_config", "output_format"])
def test_answer_follows_the_schema_that_anthropics_clients_name(http: httpx.Client, field: str) -> None:
    schema = {"type": "object", "properties": {"sea": {"enum": ["red", "dead"]}}, "required": ["sea"]}
    form = {"type": "json_schema", "schema": {**schema, "additionalProperties": False}}
    asked = {"model": "desk", "max_tokens": 24, "messages": SEA}
    asked[field] = {"format": form, "effort": "low"} if field == "output_config" else form
    reply = http.post("/v1/messages", json=asked)
    assert json.loads(reply.json()["content"][0]["text"])["sea"] in ("red", "dead")
    ignored = reply.headers.get("x-inhouse-ignored-fields")
    assert ignored == ("output_config.effort" if field == "output_config" else None)


@real
def test_stop_sequence_that_was_met_is_told_whole_and_streamed(http: httpx.Client) -> None:
    asked = {"model": "desk", "max_tokens": 24, "temperature": 0, "messages": SEA}
    said = http.post("/v1/messages", json=asked).json()["content"][0]["text"]
    stop = said.split()[1]
    for sequences, told in ((["#never#", stop], ("stop_sequence", stop)), (["#never#"], ("max_tokens", None))):
        for streamed in (False, True, False):  # the last one may come from memory
            body = {**asked, "max_tokens": 4 if told[1] is None else 24, "stop_sequences": sequences}
            reply = http.post("/v1/messages", json={**body, "stream": streamed})
            if streamed:
                lines = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: ")]
                found = next(line["delta"] for line in lines if line["type"] == "message_delta")
            else:
                found = reply.json()
            assert (found["stop_reason"], found["stop_sequence"]) == told


@real
@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 10**9}, "max_tokens"),
        ({"temperature": 1.5}, "temperature"),
        ({"messages": []}, "messages"),
        ({"stop_sequences": ["x" * 300]}, "stop_sequences"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"output_config": {"format": {"type": "grammar"}}}, "output_config.format.type"),
        ({"output_config": {"format": {"type": "json_schema", "schema": 3}}}, "output_config.format.schema"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages.0.role"),
        ({"tools": [{"type": "web_search_20250305"}]}, "tools.0.type"),
        ({"tools": [{"name": "f"}], "tool_choice": {"type": "all"}}, "tool_choice.type"),
    ],
)
def test_message_request_out_of_bounds_is_refused_with_its_field(
    http: httpx.Client, change: dict[str, Any], param: str
) -> None:
    asked = {"model": "desk", "max_tokens": 8, "messages": SEA, **change}
    reply = http.post("/v1/messages", json={name: value for name, value in asked.items() if value is not None})
    assert reply.status_code == 400 and reply.json()["error"]["param"].startswith(param), reply.text
    assert reply.json()["type"] == "error" and reply.json()["error"]["type"] == "invalid_request_error"


@real
def test_key_in_anthropics_header_opens_only_anthropics_routes(http: httpx.Client) -> None:
    assert http.get("/v1/models").status_code == 401
    assert http.post("/v1/messages", json={}, headers={"x-api-key": "wrong"}).status_code == 401
