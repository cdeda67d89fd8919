"""The Responses API as the official client meets it; its own models judge every event and object."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from serve_endpoint import Endpoint

from inhouse.core.serving import Delta, Usage
from inhouse.core.store import Store
from inhouse.release.batches import this_worker
from inhouse.release.keys import Limits, create_key
from inhouse.release.registry import open_registry
from inhouse.release.stored import StoredResponse, put_response
from inhouse.serve.errors import ApiError
from inhouse.serve.kept_responses import KeptResponses
from inhouse.serve.response_events import ResponseEvents
from inhouse.serve.response_items import choice_of, format_of, messages_of, tools_of

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
SHOWN = {
    "id": "resp_1", "object": "response", "created_at": 1, "model": "m", "parallel_tool_calls": True,
    "tool_choice": "auto", "tools": [], "error": None, "incomplete_details": None,
}  # fmt: skip
real = pytest.mark.real


def events_of(*steps: list[Delta]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    events = ResponseEvents(SHOWN)
    found = events.begin()
    for deltas in steps:
        found += events.add(deltas)
    found += events.end(Usage(7, 3, 2))
    for number, event in enumerate(found):
        EVENT.validate_python(event)
        assert event["sequence_number"] == number
    Response.model_validate(events.object)
    return found, events.object


def call(index: int, **told: Any) -> Delta:
    return Delta(tool_calls=[{"index": index, **told}])


def test_text_is_built_up_by_the_events_that_openai_sends() -> None:
    found, whole = events_of([Delta("Hel"), Delta("lo")], [Delta("", finish="stop")])
    assert [event["type"] for event in found] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
        "response.output_text.delta", "response.output_text.delta", "response.output_text.done",
        "response.content_part.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip
    assert "".join(e["delta"] for e in found if e["type"].endswith("text.delta")) == "Hello"
    assert whole["output"][0]["content"][0]["text"] == "Hello" and whole["status"] == "completed"
    assert whole["usage"]["total_tokens"] == 10 and whole["usage"]["input_tokens_details"]["cached_tokens"] == 2


def test_thoughts_text_and_calls_are_items_of_their_own_in_their_order() -> None:
    found, whole = events_of(
        [Delta(reasoning="hm")],
        [Delta("Let me look.")],
        [call(0, id="call_a", function={"name": "look", "arguments": ""})],
        [call(0, function={"arguments": '{"at":'}), call(0, function={"arguments": "1}"})],
        [call(1, id="call_b", function={"name": "see", "arguments": "{}"})],
        [Delta(finish="tool_calls")],
    )
    assert [item["type"] for item in whole["output"]] == ["reasoning", "message", "function_call", "function_call"]
    assert whole["output"][2]["arguments"] == '{"at":1}' and whole["output"][2]["call_id"] == "call_a"
    assert whole["output"][3]["name"] == "see" and whole["output"][3]["arguments"] == "{}"
    ends = [event for event in found if event["type"] == "response.output_item.done"]
    assert [event["output_index"] for event in ends] == [0, 1, 2, 3]
    assert all(event["item"]["status"] == "completed" for event in ends)


def test_log_probabilities_without_text_tear_nothing_apart() -> None:
    """A forced call's pieces have them, and so has the first part of a character that two tokens make."""
    entry = {"token": "a", "logprob": -1.0, "bytes": [97], "top_logprobs": []}

    def piece(arguments: str) -> Delta:
        return replace(call(0, function={"arguments": arguments}), logprobs=[entry])

    first = replace(call(0, id="call_a", function={"name": "add", "arguments": '{"a"'}), logprobs=[entry])
    _, whole = events_of([Delta(logprobs=[entry])], [first], [piece(":"), piece("1}")], [Delta(finish="tool_calls")])
    assert [(item["type"], item["arguments"]) for item in whole["output"]] == [("function_call", '{"a":1}')]
    early = [Delta(reasoning="hm", logprobs=[entry])], [Delta(logprobs=[entry])], [Delta("é", logprobs=[entry])]
    _, whole = events_of(*early, [Delta(logprobs=[entry])], [Delta(finish="stop")])
    assert [item["type"] for item in whole["output"]] == ["reasoning", "message"]
    assert len(whole["output"][1]["content"][0]["logprobs"]) == 3


@pytest.mark.parametrize(("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
def test_answer_that_was_cut_is_incomplete_and_says_why(finish: Any, reason: str) -> None:
    found, whole = events_of([Delta("Hel", finish=finish)])
    assert found[-1]["type"] == "response.incomplete" and whole["incomplete_details"] == {"reason": reason}


def test_answer_without_a_word_is_an_empty_message_and_a_broken_one_has_failed() -> None:
    _, whole = events_of([Delta(finish="stop")])
    assert whole["output"][0]["content"][0]["text"] == ""
    events = ResponseEvents(SHOWN)
    events.begin()
    events.add([Delta("Hel")])
    last = events.fail("server_error", "gone")[-1]
    EVENT.validate_python(last)
    assert last["type"] == "response.failed" and last["response"]["error"]["message"] == "gone"


def test_items_become_the_messages_of_a_chat() -> None:
    items = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Where?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
        {"type": "function_call", "call_id": "a", "name": "look", "arguments": "{}"},
        {"type": "function_call", "call_id": "b", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": "here"},
        {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "there"}]},
    ]
    found, places = messages_of(items)
    assert [message["role"] for message in found] == ["developer", "user", "assistant", "tool", "tool"]
    assert places == [0, 1, 3, 6, 7]
    assert found[2]["content"] == "I look." and [c["id"] for c in found[2]["tool_calls"]] == ["a", "b"]
    assert found[4] == {"role": "tool", "tool_call_id": "b", "content": "there"}
    lonely, _ = messages_of([items[4]])
    assert lonely[0]["content"] is None and lonely[0]["tool_calls"][0]["function"]["name"] == "look"


@pytest.mark.parametrize(
    "item",
    [
        3,
        {"type": "item_reference", "id": "x"},
        {"type": ["message"]},
        {"role": "root", "content": "x"},
        {"role": "user"},
        {"role": "user", "content": [{"type": "input_image", "image_url": "file:///etc/passwd"}]},
        {"role": "user", "content": [{"type": "input_text"}]},
        {"role": "user", "content": ["x"]},
        {"type": "function_call", "call_id": 3, "name": "x", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "x"},
    ],
)
def test_item_that_is_not_known_is_refused_with_its_place(item: Any) -> None:
    with pytest.raises(ApiError) as error:
        messages_of([{"role": "user", "content": "Hello"}, item])
    assert error.value.status == 400 and str(error.value.param).startswith("input.1")


def test_tools_choices_and_formats_take_the_shape_of_chat() -> None:
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": None}
    assert tools_of([tool]) == [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    assert choice_of("required") == "required"
    assert choice_of({"type": "function", "name": "f"}) == {"type": "function", "function": {"name": "f"}}
    schema = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    assert format_of(schema) == {
        "type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}, "strict": True},
    }  # fmt: skip
    assert format_of({"type": "text"}) is None and format_of({"type": "json_object"}) == {"type": "json_object"}
    for refused in (lambda: tools_of([{"type": "web_search"}]), lambda: choice_of({"type": "mcp"})):
        with pytest.raises(ApiError):
            refused()
    for broken in ("text", {"type": "xml"}):
        with pytest.raises(ApiError):
            format_of(broken)


def test_response_of_a_server_that_ended_has_failed_and_is_not_gone_on_with(tmp_path: Path) -> None:
    registry = open_registry(Store(tmp_path))
    _, key = create_key(registry.engine, "mine")
    being_made: set[str] = set()
    kept = KeptResponses(registry.engine, 1, lambda _, own: own in being_made, deadline_s=600)
    shown = {**SHOWN, "created_at": int(time.time()), "status": "in_progress", "previous_response_id": None}
    ended = subprocess.Popen(["true"])
    ended.wait()
    host = this_worker().partition("|")[0]
    body = {"response": shown, "items": [], "worker": f"{host}|{ended.pid}|0"}
    put_response(registry.engine, StoredResponse("resp_1", key.id, "m", 1, None, "in_progress", body))
    found = asyncio.run(kept.get(key.id, "resp_1")).body["response"]
    assert found["status"] == "failed" and found["error"]["code"] == "server_error"
    with pytest.raises(ApiError) as error:
        asyncio.run(kept.before(key.id, "resp_1"))
    assert error.value.param == "previous_response_id"

    def status() -> Any:
        return asyncio.run(kept.get(key.id, "resp_1")).body["response"]["status"]

    being_made.add("resp_1")
    asyncio.run(kept.put(key.id, shown, []))  # a live server's is as it is
    assert status() == "in_progress"
    being_made.clear()  # it has broken off, and nothing could be written down
    assert status() == "failed"
    for age, told in ((600, "in_progress"), (1300, "failed")):  # another machine's, which cannot be asked
        began = int(time.time()) - age
        asyncio.run(kept.delete(key.id, "resp_1"))
        away = {**body, "worker": "another|1|1"}
        put_response(registry.engine, StoredResponse("resp_1", key.id, "m", began, None, "in_progress", away))
        assert status() == told
    put_response(registry.engine, StoredResponse("resp_2", key.id, "m", 1, None, "completed", body, expires=2))
    kept.tidy()
    for own in ("resp_2", "resp_3"):
        with pytest.raises(ApiError) as error:
            asyncio.run(kept.get(key.id, own))
        assert error.value.status == 404


@pytest.fixture
def client(endpoint: Endpoint) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key=endpoint.key, max_retries=0, timeout=120)


@pytest.fixture
def http(endpoint: Endpoint) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {endpoint.key}"}
    with httpx.Client(base_url=endpoint.url, headers=headers, timeout=60, trust_env=False) as session:
        yield session


def wait_until_done(client: openai.OpenAI, response: str) -> Response:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        found = client.responses.retrieve(response)
        if found.status not in ("queued", "in_progress"):
            return found
    raise AssertionError("not done within 60 s")


@real
def test_response_says_what_chat_says_and_the_stream_the_same(client: openai.OpenAI) -> None:
    asked = "Name one sea."
    chat = client.chat.completions.create(
        model="desk", messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": asked}],
        max_tokens=8, temperature=0,
    )  # fmt: skip
    whole = client.responses.create(
        model="desk", input=asked, instructions="Be brief.", max_output_tokens=8, temperature=0
    )
    assert whole.output_text == chat.choices[0].message.content and whole.id.startswith("resp_")
    assert whole.usage is not None and chat.usage is not None
    assert whole.usage.input_tokens == chat.usage.prompt_tokens
    with client.responses.stream(
        model="desk", input=asked, instructions="Be brief.", max_output_tokens=8, temperature=0
    ) as stream:
        events = list(stream)
    kinds = [event.type for event in events]
    assert events[-1].response.output_text == whole.output_text  # type: ignore[union-attr]
    assert kinds[:3] == ["response.created", "response.in_progress", "response.output_item.added"]
    assert kinds[-1] in ("response.completed", "response.incomplete")


@real
def test_kept_response_can_be_asked_for_gone_on_with_and_deleted(client: openai.OpenAI, http: httpx.Client) -> None:
    first = client.responses.create(model="desk", input="My name is Ada.", max_output_tokens=8)
    assert client.responses.retrieve(first.id).output_text == first.output_text
    second = client.responses.create(
        model="desk", input="And what is my name?", previous_response_id=first.id, max_output_tokens=8
    )
    whole = [
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "And what is my name?"},
    ]
    counted = http.post("/tokenize", json={"model": "desk", "messages": whole}).json()["count"]
    assert second.usage is not None and second.usage.input_tokens == counted  # it has read the whole conversation
    items = client.responses.input_items.list(second.id)
    assert [item.type for item in items.data] == ["message"]
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError) as error:
        client.responses.create(model="desk", input="Hello", previous_response_id=first.id)
    assert error.value.code == "previous_response_not_found"


@real
def test_response_of_another_key_or_not_kept_is_not_found(client: openai.OpenAI, endpoint: Endpoint) -> None:
    mine = client.responses.create(model="desk", input="Hello", max_output_tokens=2)
    other, _ = create_key(endpoint.registry.engine, "other client")
    stranger = openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key=other, max_retries=0)
    for refused in (stranger.responses.retrieve, stranger.responses.delete, stranger.responses.cancel):
        with pytest.raises(openai.NotFoundError):
            refused(mine.id)
    with pytest.raises(openai.BadRequestError):
        stranger.responses.create(model="desk", input="Hello", previous_response_id=mine.id)
    gone = client.responses.create(model="desk", input="Hello", max_output_tokens=2, store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(gone.id)


@real
def test_background_response_is_done_later_or_cancelled(client: openai.OpenAI) -> None:
    later = client.responses.create(model="desk", input="Name one sea.", max_output_tokens=6, background=True)
    assert later.status == "queued"
    done = wait_until_done(client, later.id)
    assert done.output_text and done.background
    with pytest.raises(openai.BadRequestError):
        client.responses.cancel(client.responses.create(model="desk", input="Hello", max_output_tokens=2).id)
    long = client.responses.create(
        model="desk", input="Write a very long story.", max_output_tokens=400, background=True,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    assert client.responses.cancel(long.id).status == "cancelled"
    assert client.responses.retrieve(long.id).status == "cancelled"


@real
def test_background_response_for_a_model_that_is_not_served_is_refused_at_once(http: httpx.Client) -> None:
    reply = http.post("/v1/responses", json={"model": "nobody", "input": "x", "background": True})
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")


@real
def test_background_response_beyond_a_quota_is_refused_at_once(endpoint: Endpoint, http: httpx.Client) -> None:
    token, _ = create_key(endpoint.registry.engine, "seldom", limits=Limits(requests_per_minute=1))
    headers = {"Authorization": f"Bearer {token}"}
    body = {"model": "desk", "input": "x", "background": True, "max_output_tokens": 1}
    made = http.post("/v1/responses", json=body, headers=headers)
    assert made.status_code == 200
    deadline = time.monotonic() + 30
    while http.get(f"/v1/responses/{made.json()['id']}", headers=headers).json()["status"] in ("queued", "in_progress"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    again = http.post("/v1/responses", json=body, headers=headers)
    assert (again.status_code, again.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert int(again.headers["retry-after"]) >= 1


@real
def test_background_response_whose_prompt_is_too_long_failed_by_its_prompt(client: openai.OpenAI) -> None:
    long = client.responses.create(model="desk", input="word " * 700, background=True)
    done = wait_until_done(client, long.id)
    assert done.status == "failed" and done.error and done.error.code == "invalid_prompt"


@real
def test_place_of_a_wrong_item_is_told_behind_a_response_before(client: openai.OpenAI, http: httpx.Client) -> None:
    first = client.responses.create(model="desk", input="Name one sea.", max_output_tokens=2)
    body = {"model": "desk", "previous_response_id": first.id, "input": UNASKED, "instructions": "Be brief."}
    assert http.post("/v1/responses", json=body).json()["error"]["param"] == "input.1.call_id"
    body["input"] = [{"type": "computer_call"}]
    assert http.post("/v1/responses", json=body).json()["error"]["param"] == "input.0.type"


@real
def test_items_of_a_response_come_in_pages(client: openai.OpenAI) -> None:
    said = [{"role": "user", "content": f"word {n}"} for n in range(5)]
    made = client.responses.create(model="desk", input=said, max_output_tokens=1)  # type: ignore[arg-type]
    page = client.responses.input_items.list(made.id, limit=2, order="asc")
    assert page.has_more and [item.content for item in page] == [f"word {n}" for n in range(5)]  # type: ignore[union-attr]
    with pytest.raises(openai.BadRequestError):
        client.responses.input_items.list(made.id, limit=0)


UNASKED = [
    {"role": "user", "content": "Hello"},
    {"type": "function_call_output", "call_id": "nobody", "output": "x"},
]


@real
@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": 3}, "input"),
        ({"input": []}, "input"),
        ({"input": "x", "max_output_tokens": 10**9}, "max_output_tokens"),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "x", "temperature": 3}, "temperature"),
        ({"input": "x", "tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"input": "x", "truncation": "auto"}, "truncation"),
        ({"input": "x", "conversation": "c"}, "conversation"),
        ({"input": "x", "include": ["file_search_call.results"]}, "include.0"),
        ({"input": "x", "text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"input": "x", "text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format.schema"),
        (
            {"input": "x", "tools": [{"type": "function", "name": "f"}], "tool_choice": {"type": "function"}},
            "tool_choice.name",
        ),
        ({"input": "x", "min_tokens": 3}, "min_tokens"),
        ({"input": "x", "previous_response_id": "resp_none"}, "previous_response_id"),
        ({"input": "x", "background": True, "store": False}, "background"),
        ({"input": "x", "background": True, "stream": True}, "stream"),
        ({"input": [{"type": "computer_call"}]}, "input.0.type"),
        ({"input": "x", "tool_choice": "required"}, "tool_choice"),
        ({"input": "x", "tool_choice": "banana"}, "tool_choice"),
        ({"input": "x", "tool_choice": {"type": "function", "name": "nope"}}, "tool_choice"),
        ({"input": "x", "background": True, "max_output_tokens": 10**9}, "max_output_tokens"),
        ({"input": UNASKED, "instructions": "Be brief."}, "input.1.call_id"),
    ],
)
def test_response_request_out_of_bounds_is_refused_with_its_field(
    http: httpx.Client, body: dict[str, Any], param: str
) -> None:
    reply = http.post("/v1/responses", json={"model": "desk", **body})
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param or reply.json()["error"]["param"].startswith(param)


@real
def test_response_names_ignored_fields_as_its_client_wrote_them(http: httpx.Client) -> None:
    body = {"model": "desk", "input": "x", "max_output_tokens": 1, "reasoning": {"effort": "low"}, "colour": "blue"}
    assert http.post("/v1/responses", json=body).headers["x-inhouse-ignored-fields"] == "colour,reasoning"
