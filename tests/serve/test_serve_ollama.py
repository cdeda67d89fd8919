"""Ollama's API, asked by its own client over the real model; and what translates to and fro, without one."""

from __future__ import annotations

import json
from typing import Any

import httpx
import ollama
import openai
import pytest
from serve_endpoint import Endpoint

from inhouse.core.model import ModelFacts
from inhouse.core.serving import Delta, Usage
from inhouse.serve.errors import ApiError, invalid, unsupported
from inhouse.serve.ollama_replies import Clock, calls_of
from inhouse.serve.ollama_requests import OllamaChat, OllamaGenerate, OllamaMessage, chat_of, generation_of, messages_of
from inhouse.serve.replies import Choice
from inhouse.serve.requests import Limits
from inhouse.serve.routes.ollama import _counted, _details, _precision

HELLO = [{"role": "user", "content": "Write one short sentence about the sea."}]
LIMITS = Limits(context_length=512, parallel=2, max_tokens=16, temperature=0.0)
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}},
    "required": ["name"],
    "additionalProperties": False,
}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
real = pytest.mark.real


@pytest.fixture
def client(endpoint: Endpoint) -> ollama.Client:
    return ollama.Client(endpoint.url, headers={"Authorization": f"Bearer {endpoint.key}"}, trust_env=False, timeout=60)


def http(endpoint: Endpoint, path: str, body: Any) -> httpx.Response:
    headers = {"Authorization": f"Bearer {endpoint.key}"}
    return httpx.post(endpoint.url + path, content=json.dumps(body), headers=headers, trust_env=False, timeout=60)


@real
def test_chat_says_what_openais_clients_are_told_streamed_or_not(client: ollama.Client, endpoint: Endpoint) -> None:
    official = openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key=endpoint.key, max_retries=0)
    told = official.chat.completions.create(model="desk", messages=HELLO, max_tokens=8, temperature=0)  # type: ignore[arg-type]
    options = {"num_predict": 8, "temperature": 0, "num_ctx": 512, "num_thread": 1}
    whole = client.chat("desk:latest", HELLO, options=options, keep_alive="5m")
    parts = list(client.chat("desk", HELLO, options=options, stream=True))
    assert whole.message.content == told.choices[0].message.content
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert whole.model == "desk:latest" and whole.done and whole.done_reason == "length"
    assert whole.eval_count == 8 and told.usage and whole.prompt_eval_count == told.usage.prompt_tokens
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].eval_count == 8 and parts[-1].total_duration and parts[-1].total_duration >= 0


@real
def test_generate_streams_by_default_and_takes_raw_prompts(endpoint: Endpoint, client: ollama.Client) -> None:
    body = {"model": "desk", "prompt": "The sea is", "raw": True, "options": {"num_predict": 6, "temperature": 0}}
    answer = http(endpoint, "/api/generate", body)
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    whole = client.generate("desk", "The sea is", raw=True, options={"num_predict": 6, "temperature": 0})
    assert len(lines) > 1 and "".join(line["response"] for line in lines) == whole.response
    assert lines[-1]["done"] and not any(line["done"] for line in lines[:-1])
    through_template = client.generate("desk", "The sea is", system="Answer in French.", options={"num_predict": 6})
    assert through_template.prompt_eval_count and whole.prompt_eval_count
    assert through_template.prompt_eval_count > whole.prompt_eval_count


@real
def test_format_holds_the_answer_to_a_schema(client: ollama.Client) -> None:
    said = client.chat("desk", HELLO, format=PERSON, options={"num_predict": 40, "temperature": 0})
    found = json.loads(said.message.content or "")
    assert set(found) == {"name"} and isinstance(found["name"], str)


@real
def test_a_conversation_with_tools_goes_round(client: ollama.Client) -> None:
    turns: Any = [
        {"role": "user", "content": "Weather in Oslo?"},
        {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Oslo"}}}]},
        {"role": "tool", "tool_name": "weather", "content": "rain"},
    ]
    said = client.chat("desk", turns, tools=[WEATHER], options={"num_predict": 6, "temperature": 0})
    assert said.done and (said.message.content or said.message.tool_calls)


@real
def test_models_are_listed_shown_and_loaded(client: ollama.Client) -> None:
    listed = client.list().models
    assert [model.model for model in listed] == ["desk:latest", "routing:v1"]
    details = listed[0].details
    assert details is not None and details.format == "gguf"
    assert listed[0].size is not None and listed[0].size > 50_000_000 and len(listed[0].digest or "") == 64
    shown = client.show("desk:latest")
    assert shown.modelinfo is not None and 512 in shown.modelinfo.values()
    assert shown.capabilities is not None and "completion" in shown.capabilities
    assert [model.context_length for model in client.ps().models] == [512]
    assert client.generate("desk", keep_alive=0).done_reason == "unload"
    assert client.chat("desk").done_reason == "load"


@real
def test_embeddings_have_unit_length_and_long_texts_are_cut(client: ollama.Client) -> None:
    several = client.embed("desk", ["the sea", "a boat"])
    one = client.embeddings("desk", "the sea")
    assert len(several.embeddings) == 2 and several.prompt_eval_count
    assert sum(x * x for x in several.embeddings[0]) == pytest.approx(1, abs=1e-3)
    assert list(one.embedding) == pytest.approx(list(several.embeddings[0]), abs=1e-4)
    assert len(client.embed("desk", "the sea", dimensions=8).embeddings[0]) == 8
    assert len(client.embed("desk", "sea " * 1000).embeddings) == 1
    with pytest.raises(ollama.ResponseError) as refused:
        client.embed("desk", "sea " * 1000, truncate=False)
    assert refused.value.status_code == 400
    assert client.embed("desk", []).embeddings == [] and client.embeddings("desk", "").embedding == []


@real
def test_errors_are_one_text_with_the_field(endpoint: Endpoint, client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError) as unknown:
        client.chat("gpt-4", HELLO)
    assert unknown.value.status_code == 404 and "model 'gpt-4' not found" in unknown.value.error
    stranger = ollama.Client(endpoint.url, headers={"Authorization": "Bearer wrong"}, trust_env=False)
    with pytest.raises(ollama.ResponseError) as keyless:
        stranger.list()
    assert keyless.value.status_code == 401 and "API key" in keyless.value.error
    refused = http(endpoint, "/api/chat", {"model": "desk", "messages": HELLO, "options": {"top_k": -4}})
    assert refused.status_code == 400 and refused.json()["error"].startswith("options.top_k: ")
    long = http(endpoint, "/api/chat", {"model": "desk", "messages": [{"role": "user", "content": "sea " * 900}]})
    assert long.status_code == 400 and set(long.json()) == {"error"}
    stream = http(endpoint, "/api/chat", {"model": "desk", "messages": HELLO, "options": {"num_ctx": 9}, "what": 1})
    assert stream.headers["x-inhouse-ignored-fields"] == "options.num_ctx,what"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"options": {"repeat_penalty": 3}}, "options.repeat_penalty"),
        ({"options": {"num_predict": 0}}, "options.num_predict"),
        ({"options": {"num_predict": "many"}}, "options.num_predict"),
        ({"options": {"temperature": 9}}, "options.temperature"),
        ({"format": "xml"}, "format"),
        ({"messages": [{"role": "root", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, "messages.0.images"),
        ({"messages": [{"role": "tool", "tool_name": "weather", "content": "rain"}]}, "messages.0"),
    ],
)
def test_what_cannot_be_served_is_named_as_the_client_wrote_it(more: dict[str, Any], param: str) -> None:
    body = OllamaChat.model_validate({"model": "desk", "messages": HELLO} | more)
    with pytest.raises(ApiError) as error:
        chat_of(body, "desk")
    assert (error.value.status, error.value.param) == (400, param)


@pytest.mark.parametrize("field", ["suffix", "template", "context"])
def test_fields_of_generate_that_would_change_the_answer_are_refused(field: str) -> None:
    value: Any = [1] if field == "context" else "x"
    with pytest.raises(ApiError) as error:
        generation_of(OllamaGenerate.model_validate({"model": "desk", "prompt": "x", field: value}), "desk")
    assert error.value.param == field


async def asked_tokens(num_predict: int | None) -> int:
    options = {} if num_predict is None else {"num_predict": num_predict}
    asking = chat_of(OllamaChat.model_validate({"model": "desk", "messages": HELLO, "options": options}), "desk")
    return (await asking.prepare(LIMITS)).ask.sampling.max_tokens


@pytest.mark.parametrize(("num_predict", "expected"), [(None, 16), (5, 5), (-1, 512), (-2, 512), (100_000, 512)])
def test_length_is_at_most_the_context(num_predict: int | None, expected: int) -> None:
    import asyncio

    assert asyncio.run(asked_tokens(num_predict)) == expected


def test_errors_of_the_release_are_named_in_ollamas_words() -> None:
    import asyncio

    body = OllamaChat.model_validate({"model": "desk", "messages": HELLO, "format": {"type": "strange"}})
    with pytest.raises(ApiError) as error:
        asyncio.run(chat_of(body, "desk").prepare(LIMITS))
    assert error.value.param is not None and error.value.param.startswith("format")


def test_results_of_tools_answer_the_first_open_call_of_their_name() -> None:
    call = {"function": {"name": "a", "arguments": {"x": "é"}}}
    turns = [
        {"role": "assistant", "tool_calls": [call, {"function": {"name": "b", "arguments": {}}}, call]},
        {"role": "tool", "tool_name": "b", "content": "1"},
        {"role": "tool", "content": "2"},
        {"role": "tool", "tool_call_id": "call_0_2", "content": "3"},
    ]
    found = messages_of([OllamaMessage.model_validate(turn) for turn in turns])
    assert [turn["tool_call_id"] for turn in found[1:]] == ["call_0_1", "call_0_0", "call_0_2"]
    assert found[0]["tool_calls"][0]["function"] == {"name": "a", "arguments": '{"x": "é"}'}


def test_calls_are_told_as_objects_and_broken_ones_as_words() -> None:
    choice = Choice()
    whole = {"index": 0, "id": "c0", "function": {"name": "a", "arguments": '{"x": 1}'}}
    broken = {"index": 1, "id": "c1", "function": {"name": "b", "arguments": '{"x": '}}
    choice.add(Delta(tool_calls=[whole, broken], usage=Usage(1, 1)))
    calls, words = calls_of(choice)
    assert calls == [{"id": "c0", "function": {"index": 0, "name": "a", "arguments": {"x": 1}}}]
    assert words == '{"x": '


def test_sizes_and_types_are_named_as_people_know_them() -> None:
    assert [_counted(n) for n in (None, 12, 4_000, 134_515_008, 7_000_000_000)] == [
        "unknown", "12", "4.0K", "134.5M", "7.0B",
    ]  # fmt: skip
    assert _precision({"F32": 61, "q4_1": 30, "Q8_0": 2}) == "Q4_1"
    facts = ModelFacts(format="gguf", main="m.gguf", name="m", architecture="llama", parameters=134_515_008)
    assert _details(facts)["family"] == "llama" and _details(facts)["parameter_size"] == "134.5M"
    assert (_precision({"F32": 3}), _precision({})) == ("F32", "unknown")


def test_answer_from_memory_tells_no_part_that_took_longer_than_all_of_it() -> None:
    clock = Clock()
    clock.tick()
    told = clock.told(Usage(5, 7, prefill_s=3.0, decode_s=4.0), "stop")
    assert 0 <= told["prompt_eval_duration"] + told["eval_duration"] <= told["total_duration"]
    kept = clock.told(Usage(5, 7), "stop")  # nothing was measured: clients divide by it all the same
    assert kept["eval_count"] == 7 and kept["eval_duration"] > 0
    clock.began -= 10
    told = clock.told(Usage(5, 7, prefill_s=3.0, decode_s=4.0), "stop")  # the engine's own figures where they can be
    assert (told["prompt_eval_duration"], told["eval_duration"]) == (3 * 10**9, 4 * 10**9)


def test_error_names_its_field_once() -> None:
    assert json.loads(unsupported("options.x").plain_body())["error"].startswith("'options.x' is not")
    assert json.loads(invalid("Too large.", "options.num_predict").plain_body())["error"] == (
        "options.num_predict: Too large."
    )
