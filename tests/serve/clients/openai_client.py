"""The official client, 2 and 3: what its users do."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any
from unittest.mock import patch

import openai
from checks import COUNT_SCHEMA, QUESTION, Server, run
from pydantic import BaseModel, ConfigDict

MESSAGES: Any = [{"role": "user", "content": QUESTION}]
TOOL: Any = {"type": "function", "function": {"name": "count", "parameters": COUNT_SCHEMA}}


class Count(BaseModel):
    model_config = ConfigDict(extra="forbid")
    count: int


def client(server: Server, **more: Any) -> openai.OpenAI:
    told = {"base_url": f"{server.url}/v1", "api_key": server.key, "max_retries": 0, "timeout": 120} | more
    return openai.OpenAI(**told)


def models(server: Server) -> None:
    found = [model.id for model in client(server).models.list()]
    assert "desk" in found and client(server).models.retrieve("desk").object == "model"
    assert client(server).models.retrieve(found[0]).id == found[0]


def chat_whole_and_streamed(server: Server) -> None:
    asked: Any = {"model": "desk", "messages": MESSAGES, "max_completion_tokens": 8, "temperature": 0}
    whole = client(server).chat.completions.create(**asked)
    assert whole.choices[0].message.content and whole.usage and whole.usage.completion_tokens <= 8
    chunks = list(client(server).chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert chunks[0].choices[0].delta.role == "assistant"
    ends = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert ends[-1] == whole.choices[0].finish_reason and not any(ends[:-1])


def stream_helper(server: Server) -> None:
    with client(server).chat.completions.stream(model="desk", messages=MESSAGES, max_tokens=60, stop=["e"]) as stream:
        kinds = {event.type for event in stream}
        assert "content.delta" in kinds and "content.done" in kinds
        assert stream.get_final_completion().choices[0].message.content


def sampling_fields(server: Server) -> None:
    answer = client(server).chat.completions.create(
        model="desk", messages=MESSAGES, max_tokens=5, temperature=0.7, top_p=0.9, seed=7, n=2, stop=["\n\n"],
        presence_penalty=0.1, frequency_penalty=0.1, logit_bias={"5": -1}, logprobs=True, top_logprobs=2, user="ann",
        extra_body={"top_k": 20, "min_p": 0.05},
    )  # fmt: skip
    assert len(answer.choices) == 2 and answer.choices[0].logprobs and answer.choices[0].logprobs.content
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2


def structured_output(server: Server) -> None:
    held: Any = {"type": "json_schema", "json_schema": {"name": "count", "schema": COUNT_SCHEMA, "strict": True}}
    asked = client(server).chat.completions
    answer = asked.create(model="desk", messages=MESSAGES, max_tokens=30, response_format=held)
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content or "")["count"], int)
    parsed = asked.parse(model="desk", messages=MESSAGES, max_tokens=60, response_format=Count)
    assert isinstance(parsed.choices[0].message.parsed, Count)


def forced_tool_and_its_result(server: Server) -> None:
    named: Any = {"type": "function", "function": {"name": "count"}}
    for choice in ("required", named):
        asked: Any = {"model": "desk", "messages": MESSAGES, "tools": [TOOL], "tool_choice": choice, "max_tokens": 60}
        message = client(server).chat.completions.create(**asked, temperature=0).choices[0]
        assert message.finish_reason == "tool_calls" and message.message.tool_calls
        call: Any = message.message.tool_calls[0]
        assert call.function.name == "count" and "count" in json.loads(call.function.arguments)
    chunks = client(server).chat.completions.create(**asked, temperature=0, stream=True)
    pieces = [piece for c in chunks if c.choices for piece in c.choices[0].delta.tool_calls or ()]
    assert [p.id for p in pieces if p.id] == [pieces[0].id] and pieces[0].id
    assert "".join(p.function.arguments or "" for p in pieces if p.function) == call.function.arguments
    turns: Any = [*MESSAGES, message.message.model_dump(exclude_none=True)]
    turns.append({"role": "tool", "tool_call_id": call.id, "content": "3"})
    said = client(server).chat.completions.create(model="desk", messages=turns, tools=[TOOL], max_tokens=5)
    assert said.choices[0].message.role == "assistant"


def completions(server: Server) -> None:
    asked: Any = {"model": "desk", "prompt": "The sea is", "max_tokens": 5, "temperature": 0}
    whole = client(server).completions.create(**asked)
    pieces = client(server).completions.create(**asked, stream=True)
    assert "".join(p.choices[0].text for p in pieces if p.choices) == whole.choices[0].text


def embeddings_as_numbers_base64_and_from_tokens(server: Server) -> None:
    create = client(server).embeddings.create
    usual = create(model="desk", input=["the sea", "a boat"]).data
    plain = create(model="desk", input="the sea", encoding_format="float").data[0].embedding
    packed: Any = create(model="desk", input="the sea", encoding_format="base64").data[0].embedding
    unpacked = struct.unpack(f"<{len(plain)}f", base64.b64decode(packed))
    assert max(abs(a - b) for a, b in zip(plain, unpacked, strict=True)) < 1e-5
    assert max(abs(a - b) for a, b in zip(plain, usual[0].embedding, strict=True)) < 1e-4
    assert len(create(model="desk", input=[[1, 2, 3], [4]]).data) == 2 and create(model="desk", input=[1, 2]).data


def responses(server: Server) -> None:
    made = client(server).responses
    first = made.create(model="desk", input=QUESTION, max_output_tokens=8, temperature=0)
    assert first.output_text and first.usage and first.status in ("completed", "incomplete")
    assert made.retrieve(first.id).output_text == first.output_text
    events = list(made.create(model="desk", input=QUESTION, max_output_tokens=8, temperature=0, stream=True))
    told = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert told == first.output_text and events[-1].type in ("response.completed", "response.incomplete")
    again = made.create(model="desk", input="And?", max_output_tokens=4, previous_response_id=first.id)
    assert again.previous_response_id == first.id
    parsed = made.parse(model="desk", input=QUESTION, text_format=Count, max_output_tokens=60)
    assert isinstance(parsed.output_parsed, Count)
    made.delete(first.id)
    try:
        made.retrieve(first.id)
    except openai.NotFoundError:
        return
    raise AssertionError("a deleted response is still there")


def files(server: Server) -> None:
    api = client(server).files
    made = api.create(file=("lines.jsonl", b'{"a": 1}\n'), purpose="batch")
    assert api.retrieve(made.id).bytes == 9 and api.content(made.id).read() == b'{"a": 1}\n'
    assert made.id in [file.id for file in api.list()] and api.delete(made.id).deleted


def errors_have_their_own_types(server: Server) -> None:
    def fails(kind: type[openai.APIStatusError], found: openai.OpenAI, **body: Any) -> Any:
        try:
            found.chat.completions.create(**{"model": "desk", "messages": MESSAGES, "max_tokens": 1} | body)
        except kind as error:
            return error
        raise AssertionError(f"no {kind.__name__}")

    assert fails(openai.AuthenticationError, client(server, api_key="wrong")).code == "invalid_api_key"
    assert fails(openai.NotFoundError, client(server), model="gpt-4").code == "model_not_found"
    assert fails(openai.BadRequestError, client(server), temperature=9).param == "temperature"
    long = [{"role": "user", "content": "sea " * 3000}]
    assert fails(openai.BadRequestError, client(server), messages=long).code == "context_length_exceeded"
    limited = fails(openai.RateLimitError, client(server, api_key=server.limited))
    assert limited.code == "rate_limit_exceeded" and int(limited.response.headers["retry-after"]) >= 1


def full_queues_are_tried_again_after_the_pause_that_was_named(server: Server) -> None:
    pauses: list[float] = []
    with patch("time.sleep", pauses.append):
        try:
            client(server, api_key=server.limited, max_retries=2).models.with_raw_response.list()
            client(server, api_key=server.limited, max_retries=2).chat.completions.create(
                model="desk", messages=MESSAGES, max_tokens=1
            )
        except openai.RateLimitError as error:
            assert len(pauses) == 2 and pauses[0] > 0, pauses
            assert error.response.headers["retry-after"]
            return
    raise AssertionError("no RateLimitError")


if __name__ == "__main__":
    run(
        models, chat_whole_and_streamed, stream_helper, sampling_fields, structured_output, forced_tool_and_its_result,
        completions, embeddings_as_numbers_base64_and_from_tokens, responses, files, errors_have_their_own_types,
        full_queues_are_tried_again_after_the_pause_that_was_named,
    )  # fmt: skip
