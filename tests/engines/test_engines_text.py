"""Text in and out of engines of our own: chat templates, streams of bytes, schemas that are safe to compile."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inhouse.core.serving import Ask, Constraint, EngineRefused, Sampling
from inhouse.engines.chat_template import ChatTemplate, TemplateFailed
from inhouse.engines.openvino_schema import forced_call, grammar_of, schema_of
from inhouse.engines.text_stream import TextStream

TEMPLATE = """{{ bos_token }}{%- if tools %}
Tools: {{ tools | tojson }}
{% endif %}{% for m in messages %}
    {%- if m.role not in ['system', 'user', 'assistant', 'tool'] %}{{ raise_exception('who?') }}{% endif %}
[{{ m.role }}] {{ m.content }}{% for call in m.tool_calls or [] %}{{ call.function.arguments.city }}{% endfor %}
{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"""
TOOL = {"type": "function", "function": {"name": "f<>", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize(
    ("messages", "tools"),
    [
        ([{"role": "user", "content": "你好 <b> & 🙂"}], ()),
        ([{"role": "system", "content": "Be brief."}, {"role": "user", "content": " a\n"}], (TOOL,)),
        (
            [
                {"role": "user", "content": "x"},
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"function": {"name": "f", "arguments": {"city": "Paris"}}}],
                },
            ],
            (),
        ),
    ],
)
def test_a_template_renders_as_in_transformers(messages: list[dict[str, Any]], tools: tuple[Any, ...]) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    wanted, _ = render_jinja_template(
        [messages], tools=list(tools) or None, chat_template=TEMPLATE, add_generation_prompt=True, bos_token="<s>"
    )
    assert ChatTemplate(TEMPLATE, {"bos_token": "<s>"}).render(messages, tools) == wanted[0]


def test_arguments_of_a_call_reach_the_template_as_an_object_and_no_content_as_empty() -> None:
    call = {"function": {"name": "f", "arguments": '{"city": "Rome"}'}}
    odd = [{"function": {"name": "f", "arguments": said}} for said in ("nope", "[1]", {"city": "Oslo"})]
    turns = [{"role": "assistant", "content": None, "tool_calls": [call, *odd, {"id": "x", "function": {}}][:4]}]
    text = ChatTemplate("{{ messages[0].content }}|{{ messages[0].tool_calls | tojson }}", {}).render(turns)
    assert text.startswith('|[{"function": {"name": "f", "arguments": {"city": "Rome"}}}')
    assert '"nope"' in text and '"[1]"' in text and '{"city": "Oslo"}' in text


def test_a_template_that_knows_no_tools_tells_of_them_in_the_system_message() -> None:
    plain = ChatTemplate("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}", {})
    alone = plain.render([{"role": "user", "content": "x"}], (TOOL,))
    assert alone.startswith("[system]") and '"name": "f<>"' in alone and alone.endswith("[user]x")
    joined = plain.render([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "x"}], (TOOL,))
    assert joined.startswith("[system]Be brief.\n\n") and joined.count("[system]") == 1


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "{{ 1 / 0 }}", "{{ ''.__class__.x() }}"])
def test_a_template_that_fails_says_so_in_one_way(template: str) -> None:
    with pytest.raises(TemplateFailed):
        ChatTemplate(template, {}).render([{"role": "user", "content": "x"}])


def test_a_template_that_is_none_is_refused() -> None:
    with pytest.raises(TemplateFailed):
        ChatTemplate("{% for %}", {})


@given(st.text(max_size=40), st.integers(1, 5))
def test_a_stream_of_bytes_gives_the_text_back_and_splits_no_character(text: str, size: int) -> None:
    data, stream, pieces = text.encode("utf-8", "replace"), TextStream(), []
    for at in range(0, len(data), size):
        pieces.append(stream.push(data[at : at + size]))
        pieces[-1].encode("utf-8")
    assert "".join(pieces) + stream.end() == data.decode()


@given(st.text("ab.", max_size=30), st.lists(st.text("ab.", min_size=1, max_size=4), min_size=1, max_size=3))
def test_nothing_of_a_stop_string_is_shown(text: str, stops: list[str]) -> None:
    shown, stream = "", TextStream(stops)
    for letter in text:
        shown += stream.push(letter.encode())
    first = [end for end in range(len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    assert stream.stopped == bool(first)
    if first:
        whole = text[: first[0]]  # the answer ends with the token that completes a stop string
        assert shown == whole[: min(whole.find(stop) for stop in stops if stop in whole)]
        assert stream.push(b"more") == "" and stream.stop in stops and (shown + str(stream.stop)) in whole
    else:
        assert shown + stream.end() == text


def test_half_a_character_at_the_end_is_dropped_and_no_character_is_marked() -> None:
    stream = TextStream()
    assert stream.push("好".encode()[:2]) + stream.end() == ""
    assert TextStream().push(b"a\xffb") == "a\ufffdb"


def schema(value: Any) -> Any:
    return json.loads(schema_of(Constraint("json_schema", value)))


def test_a_schema_is_copied_with_its_references_in_place_and_closed() -> None:
    asked = {
        "title": "Person",
        "$defs": {"name": {"type": "string", "maxLength": 9, "description": "x"}},
        "type": "object",
        "properties": {
            "name": {"$ref": "#/$defs/name"},
            "age": {"type": ["integer", "null"]},
            "kind": {"enum": ["a", 1, None]},
            "more": {"anyOf": [{"type": "boolean"}, {"const": "no"}]},
            "tags": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 3},
        },
        "required": ["name", "age"],
    }
    assert schema(asked) == {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 9},
            "age": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "kind": {"enum": ["a", 1, None]},
            "more": {"anyOf": [{"type": "boolean"}, {"const": "no"}]},
            "tags": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 3},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    assert schema({"type": "object"}) == {"type": "object", "additionalProperties": True}
    assert json.loads(schema_of(Constraint("json_object"))) == {"type": "object"}


def nested(depth: int) -> dict[str, Any]:
    return {"type": "array", "items": nested(depth - 1)} if depth else {"type": "string"}


@pytest.mark.parametrize(
    "bad",
    [
        {},
        [],
        {"type": "something"},
        {"type": "string", "pattern": "a+"},
        {"type": "string", "maxLength": 10**6},
        {"type": "string", "minLength": True},
        {"type": "array", "minItems": 5, "maxItems": 4},
        {"type": "object", "properties": []},
        {"type": "object", "required": ["missing"]},
        {"type": "object", "additionalProperties": {"type": "string"}},
        {"type": "object", "properties": {f"p{at}": {"type": "string"} for at in range(101)}},
        {"$ref": "#"},
        {"$ref": "http://127.0.0.1/x"},
        {"$ref": "#/missing"},
        {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"enum": []},
        {"enum": [{"a": 1}]},
        {"const": "x" * 1001},
        {"anyOf": []},
        {"anyOf": [{"type": "string"}], "minLength": 1},
        {"anyOf": [{"anyOf": [{"type": "string"}] * 20}] * 20},
        nested(16),
        {"type": "number", "multipleOf": 3},
    ],
)
def test_a_schema_beyond_what_compiles_is_left_to_other_engines(bad: Any) -> None:
    with pytest.raises(EngineRefused, match="unsupported"):
        schema(bad)


@pytest.mark.parametrize(
    ("bad", "keyword"),
    [
        ({"type": "integer", "minimum": 3}, "minimum"),
        ({"type": "object", "properties": {"a": {"type": "string", "pattern": "a+"}}}, "pattern"),
        ({"type": "array", "maxItems": 9999}, "maxItems"),
        ({"enum": []}, "enum"),
        ({"$ref": "#/missing"}, "$ref"),
    ],
)
def test_a_schema_beyond_what_compiles_is_refused_by_its_keyword(bad: Any, keyword: str) -> None:
    with pytest.raises(EngineRefused) as refused:
        schema(bad)
    assert refused.value.keyword == keyword


def test_other_constraints_are_left_to_other_engines() -> None:
    for constraint in (Constraint("regex", "a+"), Constraint("grammar", "root ::= root"), Constraint("json_schema", 5)):
        with pytest.raises(EngineRefused, match="unsupported"):
            schema_of(constraint)
    for choices in ((), ["x" * 101] * 100, ["x"] * 101):
        with pytest.raises(EngineRefused, match="unsupported"):
            grammar_of(choices)


def test_a_choice_becomes_alternatives() -> None:
    assert grammar_of(("ja", 'a "b"\n', "不是")) == 'root ::= "ja" | "a \\"b\\"\\n" | "不是"'


def test_a_forced_call_names_its_tool_and_fits_its_parameters() -> None:
    tools = tuple({"type": "function", "function": {"name": name}} for name in ("f", "g"))
    named: dict[str, Any] = {"type": "function", "function": {"name": "g"}}

    def call(choice: str | dict[str, Any]) -> Any:
        return json.loads(forced_call(Ask(Sampling(max_tokens=1), tools=tools, tool_choice=choice)))

    assert call(named)["properties"]["name"] == {"const": "g"}
    assert call(named)["required"] == ["name", "arguments"]
    assert [each["properties"]["name"]["const"] for each in call("required")["anyOf"]] == ["f", "g"]
    with pytest.raises(EngineRefused, match="invalid"):
        call({"type": "function", "function": {"name": "h"}})
