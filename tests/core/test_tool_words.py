"""Tools and calls in words, for templates that know none."""

from __future__ import annotations

import json

import pytest

from inhouse.core.tool_words import (
    as_prompted,
    before_calls,
    defined,
    in_words,
    read_call,
    read_calls,
    said,
)


def test_call_whose_arguments_are_an_object_is_written_as_one_whose_arguments_are_text() -> None:
    def turns(arguments: object) -> list[dict[str, object]]:
        call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": arguments}}
        return [{"role": "user", "content": "找"}, {"role": "assistant", "content": None, "tool_calls": [call]}]

    given = {"at": "北京"}
    as_object, as_text = (
        in_words(turns(given), (), False),
        in_words(turns(json.dumps(given, ensure_ascii=False)), (), False),
    )
    assert as_object == as_text
    assert as_object[1]["content"] == '<tool_call>\n{"name": "look", "arguments": {"at": "北京"}}\n</tool_call>'


@pytest.mark.parametrize(
    ("inside", "call"),
    [
        ('{"name": "look", "arguments": {"at": "北京"}}', ("look", {"at": "北京"})),
        ('{"name": "look"}', ("look", {})),
        ("look(北京)", None),  # not JSON
        ("[" * 100_000, None),  # nested deeper than JSON is read
        ('["look"]', None),
        ('{"name": 7, "arguments": {}}', None),
        ('{"name": "look", "arguments": "北京"}', None),
    ],
)
def test_call_is_read_only_where_it_names_a_tool_and_gives_it_an_object(inside: str, call: object) -> None:
    assert read_call(inside) == call


def test_answer_is_told_apart_from_its_calls_and_the_last_may_stay_open() -> None:
    first, second = ({"name": "look", "arguments": {"at": place}} for place in ("北京", "上海"))
    text = said("Both.", [{"function": first}, {"function": second}])
    assert before_calls(text) == "Both."
    assert read_calls(text.removesuffix("</tool_call>")) == [("look", {"at": "北京"}), ("look", {"at": "上海"})]
    assert read_calls("<tool_call>look(</tool_call>") == []


@pytest.mark.parametrize("arguments", ["at=北京", "[" * 100_000])
def test_arguments_that_are_not_json_are_said_as_they_are_written(arguments: str) -> None:
    told = said(None, [{"function": {"name": "look", "arguments": arguments}}])
    assert told == f'<tool_call>\n{{"name": "look", "arguments": {arguments}}}\n</tool_call>'


def test_definitions_are_told_in_one_order_and_filled_and_what_is_no_function_is_left() -> None:
    bare = {"description": None, "name": "look", "strict": True}
    told = {"name": "look", "description": "", "parameters": {"type": "object", "properties": {}}}
    assert list(defined(bare)["function"].items()) == list(told.items())
    assert defined({"type": "web_search"}) == {"type": "web_search"}
    turns = [{"role": "user", "content": "找"}]
    assert as_prompted(None, turns, None) == (turns, None)
    described, tools = as_prompted(None, turns, [bare])
    assert tools is None
    assert json.dumps(defined(bare)) in described[0]["content"]
    instructed, _ = as_prompted(None, [{"role": "system", "content": "Be brief."}, *turns], [bare])
    assert instructed[0]["content"] == f"Be brief.\n\n{described[0]['content']}"


def test_template_that_writes_calls_itself_gets_turns_and_definitions_as_they_are() -> None:
    template = '{% for tool in tools %}{{ tool }}{% endfor %}<tool_call>\n{"name": "{{ call.name }}"}</tool_call>'
    turns = [{"role": "tool", "content": "晴"}]
    assert as_prompted(template, turns, [{"name": "look"}]) == (turns, [defined({"name": "look"})])
    assert as_prompted(None, turns, None)[0] == [{"role": "user", "content": "<tool_response>\n晴\n</tool_response>"}]
