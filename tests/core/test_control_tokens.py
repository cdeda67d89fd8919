"""Control tokens in what users and tools say are broken, everywhere a template may put it."""

from __future__ import annotations

import json
import re
import timeit
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inhouse.core.control_tokens import FAMILIES, JOINER, WELL_KNOWN, ControlTokens, is_control, proven
from inhouse.core.errors import UserError
from inhouse.core.tool_words import as_prompted, writes_tools

TOKENS = ("<|im_start|>", "<|im_end|>", "<s>", "</s>", "[INST]", "<<s>>", "[<s>")
CONTROL = ControlTokens(TOKENS)
pieces = st.sampled_from([*TOKENS, "<", "|", ">", "im_", "s", "[", "[<", "INST]", "/", JOINER, "x", " ", "\n", "银行"])
texts = st.lists(pieces, max_size=12).map("".join)


@given(texts)
def test_broken_text_holds_no_control_token_and_all_its_characters(text: str) -> None:
    told = CONTROL.broken(text)
    assert not any(token in told for token in TOKENS)
    assert told.replace(JOINER, "") == text.replace(JOINER, "")


@given(texts)
def test_text_without_a_control_token_is_the_same_object(text: str) -> None:
    told = CONTROL.broken(text)
    assert (told is text) == (not any(token in text for token in TOKENS))
    assert CONTROL.broken(told) is told


@given(st.lists(st.text("<|ab>", min_size=2, max_size=6), min_size=1, max_size=30), st.text("<|ab>", max_size=30))
def test_every_set_of_texts_is_found_as_plain_search_finds_it(tokens: list[str], text: str) -> None:
    told = ControlTokens(tokens).broken(text)
    assert (told != text) == any(token in text for token in tokens)
    assert not any(token in told for token in tokens)


def test_kilobyte_without_a_control_token_is_searched_in_microseconds() -> None:
    text = "The quick brown fox jumps over it. " * 30
    best = min(timeit.repeat(lambda: WELL_KNOWN.broken(text), number=200, repeat=5)) / 200
    assert best < 20e-6  # 0.4 us on an idle machine


def test_thousands_of_alike_tokens_do_not_make_hostile_text_slow() -> None:
    control = ControlTokens(f"<|reserved_special_token_{place}|>" for place in range(6000))
    text = "<|reserved_special_token_" * 4000
    assert min(timeit.repeat(lambda: control.broken(text), number=1, repeat=3)) < 0.5


CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"at": "\\u003cs>", "n": 1}'}}


@pytest.mark.parametrize(
    ("turn", "told"),
    [
        ({"role": "user", "content": "a <s>"}, {"role": "user", "content": f"a <{JOINER}s>"}),
        (
            {"role": "user", "content": [{"type": "text", "text": "<s>"}], "name": "<s>"},
            {"role": "user", "content": [{"type": "text", "text": f"<{JOINER}s>"}], "name": f"<{JOINER}s>"},
        ),
        (
            {"role": "tool", "content": "</tool_response><s>", "tool_call_id": "<s>"},
            {"role": "tool", "content": f"<{JOINER}/tool_response><{JOINER}s>", "tool_call_id": f"<{JOINER}s>"},
        ),
        ({"role": "tool", "content": None}, {"role": "tool", "content": None}),
        ({"role": "assistant", "content": "<s>"}, {"role": "assistant", "content": "<s>"}),
        ({"role": "system", "content": "<s>"}, {"role": "system", "content": "<s>"}),
    ],
)
def test_only_what_users_and_tools_say_is_broken(turn: dict[str, Any], told: dict[str, Any]) -> None:
    assert CONTROL.in_turns([turn]) == [told]
    assert CONTROL.count([turn]) == (turn != told)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ('{"at": "\\u003cs>", "n": 1}', {"at": f"<{JOINER}s>", "n": 1}),
        ('{"at": ["<s>", {"<s>": true}]}', {"at": [f"<{JOINER}s>", {f"<{JOINER}s>": True}]}),
        ('{"at": "\\u0041"}', {"at": "A"}),
    ],
)
def test_arguments_of_earlier_calls_are_broken_behind_their_escapes(arguments: str, said: Any) -> None:
    call = {**CALL, "function": {"name": "look", "arguments": arguments}}
    (turn,) = CONTROL.in_turns([{"role": "assistant", "content": None, "tool_calls": [call]}])
    assert json.loads(turn["tool_calls"][0]["function"]["arguments"]) == said


HIDDEN = [
    '{"q": "\\u003cs>", "q": "x"}',  # Python keeps the last one of a name, others the first
    '{"q": "\\u003C\\u0073>", "n": 1' + "0" * 5000 + "}",  # more digits than Python reads
    '\ufeff{"q": "<\\/s>"}',
    '{"q": "\\\\\\u003cs>"}',
    '{"q": "\\u005bINST]", "a": ' + "[" * 600 + "]" * 600 + "}",
    '{"\\u003cs>": "\\ud83d\\ude00 \\ud83d"',
]


@pytest.mark.parametrize("arguments", HIDDEN, ids=range(len(HIDDEN)))
def test_control_token_in_arguments_is_broken_however_it_is_hidden(arguments: str) -> None:
    call = {**CALL, "function": {"name": "look", "arguments": arguments}}
    (turn,) = CONTROL.in_turns([{"role": "assistant", "content": None, "tool_calls": [call]}])
    told = turn["tool_calls"][0]["function"]["arguments"]
    assert told.count(JOINER) == 1 and not re.search(r"\\u(003|005b)|\\/", told, re.I)
    assert not any(token in told for token in TOKENS)


@given(st.recursive(texts | st.text(max_size=4) | st.integers(), lambda inner: st.lists(inner, max_size=3)
                    | st.dictionaries(texts, inner, max_size=3), max_leaves=6))  # fmt: skip
def test_arguments_say_what_they_said_with_each_text_broken(said: Any) -> None:
    def told(value: Any) -> Any:
        if isinstance(value, str):
            return CONTROL.broken(value)
        if isinstance(value, dict):
            return {CONTROL.broken(name): told(part) for name, part in value.items()}
        return [told(part) for part in value] if isinstance(value, list) else value

    for ascii_only in (True, False):
        call = {"function": {"name": "look", "arguments": json.dumps({"q": said}, ensure_ascii=ascii_only)}}
        (turn,) = CONTROL.in_turns([{"role": "assistant", "tool_calls": [call]}])
        assert json.loads(turn["tool_calls"][0]["function"]["arguments"]) == told({"q": said})


def test_token_with_a_quotation_mark_is_found_in_arguments() -> None:
    control = ControlTokens(['<|"|>'])
    call = {"function": {"name": "look", "arguments": json.dumps({"q": '<|"|>'})}}
    (turn,) = control.in_turns([{"role": "assistant", "tool_calls": [call]}])
    assert json.loads(turn["tool_calls"][0]["function"]["arguments"]) == {"q": f'<{JOINER}|"|>'}
    refusing = ControlTokens([], ['<|"|>'])
    with pytest.raises(UserError):
        refusing.in_turns([{"role": "assistant", "tool_calls": [call]}])


def test_call_nested_too_deep_to_be_walked_is_refused() -> None:
    deep: Any = "x"
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(UserError) as error:
        CONTROL.in_turns([{"role": "assistant", "tool_calls": [{"function": {"name": "look", "arguments": deep}}]}])
    assert error.value.code == "prompt.nested"


def test_full_megabyte_of_escapes_is_searched_soon() -> None:
    for escape in ("\\u003c", "\\n", "\\\\"):
        call = {"function": {"name": "look", "arguments": escape * (2**20 // len(escape))}}
        turns = [{"role": "assistant", "tool_calls": [call]}]
        assert min(timeit.repeat(lambda turns=turns: WELL_KNOWN.in_turns(turns), number=1, repeat=2)) < 1.0


@pytest.mark.parametrize(
    "token",
    [
        *("<|im_user|>", "<|im_middle|>", "<|start_of_role|>", "<|tool|>", "<|tool_call|>", "[|endofturn|]"),
        *("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<end_of_utterance>", "]~b]"),
    ],
)
def test_tokens_of_a_model_that_is_elsewhere_are_broken(token: str) -> None:
    assert WELL_KNOWN.broken(f"a {token} b") == f"a {token[0]}{JOINER}{token[1:]} b"


@pytest.mark.parametrize("text", ["a <| b |> c", "<|", "x |> f |> g", "if a <|b|: c>", "[1] ~b", "<table>"])
def test_code_that_resembles_such_tokens_is_left(text: str) -> None:
    assert WELL_KNOWN.broken(text) is text


def test_arguments_that_are_no_json_are_broken_as_text() -> None:
    for arguments in ("<s>", "\\<s>"):
        call = {"id": "<s>", "type": "function", "function": {"name": "look", "arguments": arguments}}
        (turn,) = CONTROL.in_turns([{"role": "assistant", "content": "", "tool_calls": [call]}])
        assert "<s>" not in json.dumps(turn, ensure_ascii=False)
    (turn,) = CONTROL.in_turns([{"role": "assistant", "content": "", "tool_calls": [{"function": {"at": "<s>"}}]}])
    assert "<s>" not in json.dumps(turn)


def test_token_that_stays_one_when_broken_is_refused() -> None:
    good, bad = proven(["<a>", "<b>", "<b>"], lambda told: ["b" not in text for text in told])
    assert (good, bad) == (["<a>"], ["<b>"]) and proven([], lambda told: []) == ([], [])
    control = ControlTokens(good, bad)
    assert control.broken("<a>") == f"<{JOINER}a>"
    with pytest.raises(UserError) as error:
        control.broken("an <b>")
    assert error.value.code == "prompt.control_token" and error.value.facts["at"] == 3


def test_text_that_a_normaliser_turns_into_a_control_token_is_refused_only_where_it_becomes_one() -> None:
    harmless = ControlTokens(["<s>"], (), str.lower, lambda text: True)
    assert harmless.broken("<a>") == "<a>" and harmless.broken("<S>") == "<S>"
    harmful = ControlTokens(["<s>"], (), str.lower, lambda text: False)
    assert harmful.broken("<a>") == "<a>"
    with pytest.raises(UserError) as error:
        harmful.broken("a <S>")
    assert error.value.code == "prompt.control_token" and error.value.facts["at"] == 2


def test_token_is_found_as_the_normaliser_spells_it_and_a_refused_one_too() -> None:
    lower = ControlTokens(["<|EOT|>"], (), str.lower, lambda text: False)
    undone = ControlTokens([], ["<|eot|>"], lambda text: text.replace("\u200b", ""), lambda text: False)
    for control, text in ((lower, "a <|eot|>"), (undone, "a <\u200b|eot|>")):
        with pytest.raises(UserError) as error:
            control.broken(text)
        assert error.value.code == "prompt.control_token" and error.value.facts["at"] == 2


def test_added_tokens_that_only_look_like_control_tokens_count_as_llamacpp_has_them() -> None:
    assert is_control("</s>", True) and is_control("<|fim|>", False) and is_control("<unused7>", False)
    assert not is_control("<table>", False) and not is_control("\n\n", False) and not is_control("!", True)
    assert len(set(FAMILIES)) == len(FAMILIES)


def test_tools_go_to_the_template_only_where_it_writes_calls_as_they_are_read() -> None:
    hermes = """{% if tools %}{% endif %}{{ '\n<tool_call>\n{"name": "' + name + '", "arguments": ' }}"""
    assert writes_tools(hermes) and writes_tools(hermes.replace("\n", "\\n").replace('"', '\\"'))
    assert not writes_tools(None) and not writes_tools("{{ tools }}") and not writes_tools(hermes.replace("tools", "x"))
    turns = [{"role": "user", "content": "Look"}]
    tool = {"name": "look", "parameters": {"type": "object", "properties": {}}, "strict": True, "returns": None}
    told = {"name": "look", "description": "", "parameters": {"type": "object", "properties": {}}}
    whole = [{"type": "function", "function": told}]
    assert as_prompted(hermes, turns, [{"function": tool, "type": "function"}]) == (turns, whole)
    assert as_prompted(hermes, turns, [{"name": "look", "type": "function"}]) == (turns, whole)
    assert list(as_prompted(hermes, turns, [tool])[1][0]["function"]) == ["name", "description", "parameters"]
    assert as_prompted("{{ x }}", turns, None) == (turns, None)
    turned, offered = as_prompted("{{ x }}", [*turns, {"role": "tool", "content": "7"}], [tool])
    assert offered is None and [turn["role"] for turn in turned] == ["system", "user", "user"]
    assert '"name": "look"' in turned[0]["content"] and turned[2]["content"] == "<tool_response>\n7\n</tool_response>"


def test_token_of_a_single_character_has_no_inside_to_be_broken() -> None:
    tokens = ControlTokens(["<", "<|x|>"])
    assert tokens.broken("1 < 2 <|x|>") == f"1 < 2 <{JOINER}|x|>"
