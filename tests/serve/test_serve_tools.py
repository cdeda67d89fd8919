"""Tools and parts of messages: what a request may say, and calls of models that know no tools."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest

from inhouse.core.serving import Ask, Delta, Sampling
from inhouse.engines.llamacpp import LlamaCppSettings, start_server
from inhouse.serve.constraints import stop_compiler
from inhouse.serve.errors import ApiError
from inhouse.serve.media import join_parts
from inhouse.serve.tool_text import (
    ForcedCallReader,
    FreeCallReader,
    calls_schema,
    in_words,
    without_tools,
)
from inhouse.serve.tools import Tools, check_turns, read_tools

CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
    },
    "required": ["city", "days"],
}
TREE = {
    "type": "object",
    "properties": {"root": {"$ref": "#/$defs/node"}},
    "required": ["root"],
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"v": {"enum": [1, 2]}, "left": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}},
            "required": ["v"],
        }
    },
}


def tool(name: str, parameters: Any = None, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


WEATHER, GROW = tool("get_weather", CITY, description="Weather of a city"), tool("grow", TREE)


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as running:
        yield running
        running.run(stop_compiler())


def read(runner: asyncio.Runner, **body: Any) -> Tools:
    return runner.run(read_tools(body))


def test_tools_are_free_to_use_when_nothing_else_is_said(runner: asyncio.Runner) -> None:
    found = read(runner, tools=[WEATHER, tool("now")])
    assert (found.choice, found.parallel, found.forced, found.constraint) == ("auto", True, (), None)
    assert found.tools[0]["function"]["description"] == "Weather of a city"
    assert found.checked[1]["function"]["parameters"]["type"] == "object"
    assert read(runner).choice == read(runner, tools=[]).choice == "none"


def test_named_tool_is_the_only_one_that_is_forced(runner: asyncio.Runner) -> None:
    named = {"type": "function", "function": {"name": "grow"}}
    found = read(runner, tools=[WEATHER, GROW], tool_choice=named, parallel_tool_calls=False)
    assert [tool["function"]["name"] for tool in found.forced] == ["grow"]
    assert found.choice == named and not found.parallel
    assert found.constraint is not None and found.constraint.lark is not None
    assert len(read(runner, tools=[WEATHER, GROW], tool_choice="required").forced) == 2


def test_old_functions_mean_the_same(runner: asyncio.Runner) -> None:
    found = read(runner, functions=[WEATHER["function"]], function_call={"name": "get_weather"})
    assert found.old and found.choice == {"type": "function", "function": {"name": "get_weather"}}
    assert read(runner, functions=[WEATHER["function"]], function_call="none").choice == "none"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"tools": [WEATHER] * 129}, "tools"),
        ({"tools": {"a": 1}}, "tools"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tools": [tool("a b")]}, "tools.0.function.name"),
        ({"tools": [tool("x" * 65)]}, "tools.0.function.name"),
        ({"tools": [tool("f", description=3)]}, "tools.0.function.description"),
        ({"tools": [tool("f", {"type": "string"})]}, "tools.0.function.parameters.type"),
        ({"tools": [tool("f", {"$ref": "http://127.0.0.1/x"})]}, "tools.0.function.parameters"),
        (
            {"tools": [tool("f", {"properties": {"a": {"pattern": "((a{1,99}){1,99})"}}})]},
            "tools.0.function.parameters",
        ),
        (
            {"tools": [tool("f", {"properties": {"a": {"uniqueItems": True}}}, strict=True)]},
            "tools.0.function.parameters",
        ),
        ({"tools": [tool("f", {"properties": {"a": {"pattern": "["}}})], "tool_choice": "required"}, "tools"),
        ({"tools": [tool(f"f{n}", {"enum": ["x" * 60_000]}) for n in range(5)]}, "tools"),
        ({"tools": [WEATHER], "tool_choice": "always"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "parallel_tool_calls": 1}, "parallel_tool_calls"),
        ({"functions": [WEATHER["function"]], "function_call": {"name": "other"}}, "function_call"),
    ],
)
def test_tools_that_are_wrong_are_refused_with_their_field(
    runner: asyncio.Runner, body: dict[str, Any], param: str
) -> None:
    with pytest.raises(ApiError) as caught:
        read(runner, **body)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_choice_of_tools_that_is_not_served_is_told_with_those_that_are(runner: asyncio.Runner) -> None:
    with pytest.raises(ApiError) as caught:
        read(runner, tools=[WEATHER], tool_choice={"type": "allowed_tools"})
    assert "'allowed_tools'" in caught.value.message and "required" in caught.value.message
    assert caught.value.code == "unsupported_parameter" and "Leave it out" not in caught.value.message


def call(name: str = "call_1", function: str = "f", arguments: Any = "{}") -> dict[str, Any]:
    return {"id": name, "type": "function", "function": {"name": function, "arguments": arguments}}


DEEP = (
    '{"a":' + "[" * 100_000 + "]" * 100_000 + "}",
    '{"a":' * 33 + "1" + "}" * 33,
    "[" * 40,  # no JSON, as is what follows, for Python
    "\ufeff" + "[" * 600 + "]" * 600,
    '{"n": ' + "1" * 5000 + ', "a": ' + "[" * 600 + "]" * 600 + "}",
    '{"q": "\\\\", "a": ' + "[" * 600 + "]" * 600 + ', "q": "\\""}',
)


def test_arguments_with_many_brackets_that_are_not_deep_are_taken() -> None:
    for arguments in (
        json.dumps({"code": "[{" * 999, "q": '\\"['}),
        json.dumps([[[]]] * 99),
        '{"a":' * 31 + "[]" + "}" * 31,
    ):
        (turn,) = check_turns([{"role": "assistant", "tool_calls": [call(arguments=arguments)]}])
        assert turn["tool_calls"][0]["function"]["arguments"] == arguments


def test_results_refer_to_calls_before_them() -> None:
    turns = check_turns(
        [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": None, "tool_calls": [call("a"), call("b", "g")]},
            {"role": "tool", "tool_call_id": "b", "content": "2"},
            {"role": "assistant", "content": None, "function_call": {"name": "h", "arguments": "{}"}},
            {"role": "function", "name": "h", "content": "3"},
        ]
    )
    assert turns[1]["tool_calls"] == [call("a"), call("b", "g")]
    assert turns[2] == {"role": "tool", "tool_call_id": "b", "name": "g", "content": "2"}
    assert turns[3]["tool_calls"] == [call("call_h", "h")] and "function_call" not in turns[3]
    assert turns[4] == {"role": "tool", "tool_call_id": "call_h", "name": "h", "content": "3"}


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([{"role": "tool", "tool_call_id": "a", "content": "1"}], "messages.0.tool_call_id"),
        ([{"role": "tool", "content": "1"}], "messages.0.tool_call_id"),
        ([{"role": "function", "name": "h", "content": "1"}], "messages.0.name"),
        ([{"role": "user", "tool_calls": [call()]}], "messages.0.tool_calls"),
        ([{"role": "assistant", "tool_calls": "x"}], "messages.0.tool_calls"),
        ([{"role": "assistant", "tool_calls": [3]}], "messages.0.tool_calls.0"),
        ([{"role": "assistant", "tool_calls": [call("")]}], "messages.0.tool_calls.0.id"),
        ([{"role": "assistant", "tool_calls": [call("a", "a b")]}], "messages.0.tool_calls.0.function.name"),
        ([{"role": "assistant", "tool_calls": [call("a", "f", {})]}], "messages.0.tool_calls.0.function.arguments"),
        ([{"role": "assistant", "function_call": 3}], "messages.0.tool_calls.0"),
        *(
            (
                [{"role": "assistant", "tool_calls": [call("a", "f", deep)]}],
                "messages.0.tool_calls.0.function.arguments",
            )
            for deep in DEEP
        ),
    ],
)
def test_turns_that_are_wrong_are_refused_with_their_field(messages: list[dict[str, Any]], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        check_turns(messages)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_conversation_without_tools_keeps_calls_and_results_as_text() -> None:
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": None, "tool_calls": [call("a", "f", '{"x":1}')]},
        {"role": "tool", "tool_call_id": "a", "name": "f", "content": "sunny"},
    ]
    told = in_words(turns, [WEATHER], forced=False)
    assert told[0]["content"].startswith("Be kind.") and '"get_weather"' in told[0]["content"]
    assert told[2] == {
        "role": "assistant",
        "content": '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>',  # as templates write it
    }
    assert told[3] == {"role": "user", "content": "<tool_response>\nsunny\n</tool_response>"}
    assert in_words(turns[1:2], [], forced=False) == turns[1:2]


def test_schema_of_a_call_leads_references_to_their_tool() -> None:
    schema = calls_schema([WEATHER, GROW])
    good = {"name": "grow", "arguments": {"root": {"v": 1, "left": {"v": 2, "left": None}}}}
    jsonschema.validate(good, schema)
    for bad in (
        {"name": "grow", "arguments": {"root": {"v": 3}}},
        {"name": "get_weather", "arguments": good["arguments"]},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, schema)


def pieces_of(words: str, size: int) -> list[str]:
    return [words[at : at + size] for at in range(0, len(words), size)]


def assembled(told: list[Delta]) -> list[dict[str, Any]]:
    """The functions that a client puts together from streamed calls: the name once, the arguments piece by piece."""
    found: dict[int, dict[str, Any]] = {}
    for each in (call for delta in told for call in delta.tool_calls or []):
        function = found.setdefault(each["index"], {"name": "", "arguments": ""})
        for name, piece in each["function"].items():
            function[name] += piece
    return [function for _, function in sorted(found.items())]


ARGUMENTS = '{"text": "a } \\" { b", "list": [{"x": [1]}], "中": "\\\\"}'


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_forced_call_streams_its_arguments_exactly(size: int) -> None:
    reader = ForcedCallReader()
    said = f'{{"name": "fn", "arguments": {ARGUMENTS}}}'
    told = [reader.read(Delta(piece)) for piece in pieces_of(said, size)] + [reader.read(Delta("", finish="stop"))]
    names = [entry for delta in told for entry in delta.tool_calls or [] if "id" in entry]
    assert len(names) == 1 and names[0]["function"]["name"] == "fn" and names[0]["type"] == "function"
    assert assembled(told) == [{"name": "fn", "arguments": ARGUMENTS}]
    assert told[-1].finish == "tool_calls" and all(delta.text == "" for delta in told)
    if size == 1:
        assert (
            sum(delta.tool_calls is not None for delta in told) > len(ARGUMENTS) * 0.9
        )  # as it arrives, not at the end


def test_forced_call_that_was_cut_off_says_length() -> None:
    reader = ForcedCallReader()
    reader.read(Delta('{"name": "fn", "arguments": {"a": '))
    assert reader.read(Delta("1", finish="length")).finish == "length"
    assert ForcedCallReader().read(Delta("{", finish="stop")).finish == "stop"


@pytest.mark.parametrize("size", [1, 4, 1000])
def test_free_answer_tells_words_and_calls_apart(size: int) -> None:
    said = (
        'Let me <look>.\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "g"}\n</tool_call>'
    )
    reader = FreeCallReader(["f", "g"])
    told = [reader.read(piece) for piece in [*map(Delta, pieces_of(said, size)), Delta("", finish="stop")]]
    assert "".join(delta.text for delta in told) == "Let me <look>." and told[-1].finish == "tool_calls"
    calls = [(call["name"], json.loads(call["arguments"])) for call in assembled(told)]
    assert calls == [("f", {"a": 1}), ("g", {})]


@pytest.mark.parametrize(
    "said",
    [
        "plain words\n",
        "a <tool_cal",
        '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
        "<tool_call>no json</tool_call> and more",
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        "<tool_call>" + "[" * 5000,
    ],
)
@pytest.mark.parametrize("size", [1, 1000])
def test_free_answer_without_a_call_stays_as_it_was(said: str, size: int) -> None:
    reader = FreeCallReader(["f"])
    told = [reader.read(Delta(piece)) for piece in pieces_of(said, size)] + [reader.read(Delta("", finish="stop"))]
    assert "".join(delta.text for delta in told) == said
    assert told[-1].finish == "stop" and not any(delta.tool_calls for delta in told)


@pytest.mark.parametrize("size", [1, 1000])
def test_calls_that_are_not_to_be_parallel_end_with_the_first(size: int) -> None:
    said = 'Look: <tool_call>{"name": "f"}</tool_call> and <tool_call>{"name": "g"}</tool_call> so'
    reader = FreeCallReader(["f", "g"], parallel=False)
    told = [reader.read(piece) for piece in [*map(Delta, pieces_of(said, size)), Delta("", finish="stop")]]
    assert [call["name"] for call in assembled(told)] == ["f"]
    assert told[-1].finish == "tool_calls" and "".join(delta.text for delta in told) == "Look: "


def test_call_at_the_very_end_needs_no_closing_tag() -> None:
    delta = FreeCallReader(["f"]).read(Delta('<tool_call>{"name": "f", "arguments": {}}', finish="stop"))
    assert delta.tool_calls is not None and delta.finish == "tool_calls"


def test_text_parts_are_joined() -> None:
    parts = [
        {"type": "text", "text": "a"},
        {"type": "input_text", "text": "b"},
        {"type": "refusal", "refusal": "c"},
        "d",
    ]
    assert join_parts(parts, "messages.0.content") == "a\nb\nc\nd"
    assert join_parts("plain", "messages.0.content") == "plain"


@pytest.mark.parametrize("kind", ["image_url", "input_image", "input_audio", "file"])
@pytest.mark.parametrize("address", ["http://169.254.169.254/x", "file:///etc/passwd", "data:image/png;base64,AAAA"])
def test_media_is_refused_and_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch, kind: str, address: str) -> None:
    monkeypatch.setattr("socket.socket", lambda *_, **__: pytest.fail("a socket was opened"))
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("a name was looked up"))
    with pytest.raises(ApiError) as caught:
        join_parts([{"type": "text", "text": "see"}, {"type": kind, kind: {"url": address}}], "messages.0.content")
    assert (caught.value.status, caught.value.param) == (400, "messages.0.content.1.type")
    assert address not in caught.value.message


@pytest.mark.parametrize(
    "content", [3, {"type": "text"}, [3], [{"type": "text"}], [{"type": "odd"}], [{}], ["a"] * 2001]
)
def test_content_of_another_kind_is_refused(content: Any) -> None:
    with pytest.raises(ApiError) as caught:
        join_parts(content, "messages.0.content")
    assert caught.value.status == 400


PROMPTS = ["Weather in Paris for 3 days?", "上海天气怎么样？"]


@pytest.mark.real
def test_forced_call_of_the_real_model_is_valid_every_time(runner: asyncio.Runner, smollm2_gguf: Path) -> None:
    engine = start_server(
        smollm2_gguf, LlamaCppSettings(context_length=1024, parallel=1, threads=1, waiting="sleep"), name="real"
    )
    schemas, whole = {"get_weather": CITY, "grow": TREE}, 0
    choices = ["required", *({"type": "function", "function": {"name": name}} for name in schemas)]
    try:
        with httpx.Client(base_url=engine.url, headers=engine.headers, trust_env=False, timeout=60) as client:
            for choice in choices:
                asked = read(runner, tools=[WEATHER, GROW], tool_choice=choice)
                for prompt in PROMPTS if choice == "required" else PROMPTS[:1]:
                    told = _ask(client, asked, prompt)
                    if told[-1].finish == "length":
                        continue
                    whole += 1
                    assert told[-1].finish == "tool_calls"
                    called = assembled(told)[0]
                    jsonschema.validate(json.loads(called["arguments"]), schemas[called["name"]])
    finally:
        engine.stop()
    assert whole >= 2


def _ask(client: httpx.Client, asked: Tools, prompt: str) -> list[Delta]:
    ask = without_tools(
        Ask(Sampling(40), messages=[{"role": "user", "content": prompt}], tools=asked.tools, tool_choice=asked.choice),
        asked.constraint,
    )
    assert ask.constraint is not None
    body = {
        "messages": ask.messages,
        "grammar": ask.constraint.lark,
        "max_tokens": 40,
        "temperature": 0,
        "stream": True,
    }
    reader, told = ForcedCallReader(), []
    with client.stream("POST", "/v1/chat/completions", json=body, headers={"Connection": "close"}) as response:
        for line in response.iter_lines():
            if line.startswith("data: {") and (choices := json.loads(line[6:])["choices"]):
                gained, finish = choices[0]["delta"].get("content"), choices[0]["finish_reason"]
                told.append(reader.read(Delta(gained or "", finish=finish)))
    return told
