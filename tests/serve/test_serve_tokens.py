"""Token counts in vLLM's shapes: what a client counts is what it is charged."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serve_endpoint import Endpoint

pytestmark = pytest.mark.real
TEXT = "The sea 海 is blue 😀."


@pytest.fixture
def http(endpoint: Endpoint) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {endpoint.key}"}
    with httpx.Client(base_url=endpoint.url, headers=headers, timeout=60, trust_env=False) as session:
        yield session


def test_tokens_of_a_text_come_back_as_the_text(http: httpx.Client) -> None:
    told = http.post("/tokenize", json={"model": "desk", "prompt": TEXT, "add_special_tokens": False}).json()
    assert told["count"] == len(told["tokens"]) > 5 and told["max_model_len"] == 512
    assert http.post("/detokenize", json={"model": "desk", "tokens": told["tokens"]}).json() == {"prompt": TEXT}


def test_special_tokens_are_text_where_they_were_not_asked_for(http: httpx.Client) -> None:
    end = "<|im_end|>"
    special = http.post("/tokenize", json={"prompt": end}).json()
    plain = http.post("/tokenize", json={"prompt": end, "add_special_tokens": False}).json()
    assert special["count"] == 1 and plain["count"] > 1


def test_count_of_a_conversation_is_the_one_that_the_answer_is_charged_for(http: httpx.Client) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": TEXT}]
    told = http.post("/tokenize", json={"model": "desk", "messages": messages}).json()
    answer = http.post("/v1/chat/completions", json={"model": "desk", "messages": messages, "max_tokens": 1}).json()
    assert told["count"] == answer["usage"]["prompt_tokens"]


def test_prompt_of_a_row_with_tools_is_the_one_that_training_masks(http: httpx.Client, smollm2_gguf: Path) -> None:
    """The real file: a template that knows no tools, in llama.cpp here and in transformers there."""
    from inhouse.core.rows import Row
    from inhouse.engines.torch_gguf import gguf_tokenizer
    from inhouse.train.tokens import encode

    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": "<|im_end|>"}'}}
    messages = [
        {"role": "user", "content": "Look <|im_start|>"},
        {"role": "assistant", "content": "I do.", "tool_calls": [call]},
        {"role": "tool", "content": "a door <|im_end|>", "tool_call_id": "1"},
        {"role": "assistant", "content": "I see a door."},
    ]
    tokenizer = gguf_tokenizer(smollm2_gguf)
    row = Row.model_validate({"id": "0", "source": "s", "offset": 0, "messages": messages, "tools": tools})
    sample = encode(row, tokenizer, frozenset({int(tokenizer.eos_token_id)}))
    body = {"model": "desk", "messages": messages[:-1], "tools": tools}
    served = http.post("/tokenize", json=body).json()["tokens"]
    assert served == list(sample.ids[: sample.learned.index(True)])
    answer = http.post("/v1/chat/completions", json=body | {"max_tokens": 1}).json()
    assert answer["usage"]["prompt_tokens"] == len(served)


def test_strings_of_the_tokens_join_to_the_text(http: httpx.Client) -> None:
    told = http.post("/tokenize", json={"prompt": "The sea is blue.", "return_token_strs": True}).json()
    assert "".join(told["token_strs"]) == "The sea is blue." and len(told["token_strs"]) == told["count"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {}),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}),
        ("/tokenize", {"messages": [{"role": "root", "content": "a"}]}),
        ("/tokenize", {"messages": [3]}),
        ("/tokenize", {"prompt": 3}),
        ("/detokenize", {"tokens": ["a"]}),
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {"tokens": [10**9]}),
        ("/detokenize", {}),
    ],
)
def test_request_that_cannot_be_counted_is_refused(http: httpx.Client, path: str, body: dict[str, Any]) -> None:
    reply = http.post(path, json=body)
    assert reply.status_code == 400 and reply.json()["error"]["type"] == "invalid_request_error"
    assert http.post("/tokenize", json={"prompt": "a"}).status_code == 200  # and the engine is alive


def test_another_model_is_not_counted(http: httpx.Client) -> None:
    assert http.post("/tokenize", json={"model": "nobody", "prompt": "a"}).status_code == 404


def figures(http: httpx.Client, *names: str) -> dict[str, float]:
    found = {name: 0.0 for name in names}
    for line in http.get("/metrics").text.splitlines():
        name, _, value = line.rpartition(" ")
        for wanted in names:
            if name.startswith(f"inhouse_{wanted}{{"):
                found[wanted] += float(value)
    return found


def test_counting_tokens_is_no_request_that_a_release_answers(http: httpx.Client) -> None:
    chat = {"model": "desk", "messages": [{"role": "user", "content": "Hello"}]}
    before = figures(http, "requests_total", "requests_refused_total", "e2e_request_latency_seconds_count")
    assert http.post("/tokenize", json=chat).status_code == 200
    assert http.post("/detokenize", json={"tokens": [5]}).status_code == 200
    assert http.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}
    assert http.post("/v1/messages/count_tokens", json=chat).status_code == 200
    assert figures(http, *before) == before
    assert http.post("/detokenize", json={"tokens": [10**9]}).status_code == 400
    assert figures(http, *before) == before | {"requests_refused_total": before["requests_refused_total"] + 1}


def test_request_that_its_release_refuses_is_counted_once(http: httpx.Client) -> None:
    names = ("requests_total", "requests_refused_total")
    before = figures(http, *names)
    asked = {"model": "desk", "messages": [{"role": "user", "content": "word " * 2000}]}
    assert http.post("/v1/chat/completions", json=asked).status_code == 400
    after = figures(http, *names)
    assert after == before | {"requests_total": before["requests_total"] + 1}
    assert http.post("/v1/chat/completions", json={**asked, "model": "nobody"}).status_code == 404
    assert figures(http, *names) == after | {"requests_refused_total": after["requests_refused_total"] + 1}


@pytest.mark.parametrize(("path", "field"), [("/v1/completions", "prompt"), ("/v1/embeddings", "input")])
def test_tokens_that_the_vocabulary_lacks_are_told_with_their_field(http: httpx.Client, path: str, field: str) -> None:
    error = http.post(path, json={"model": "desk", field: [999_999_999]}).json()["error"]
    assert error["param"] in (field, "model")  # a release that makes no vectors says that first
    assert "vocabulary" in error["message"] or error["code"] == "embeddings_not_enabled"
