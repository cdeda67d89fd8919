"""Tool calls: what stands in their arguments is cleaned and compared like any text, and put back as it was written."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inhouse.data.shapes.calls import mapped, texts_in

FIXED = [{"role": "user", "content": "fixed"}, {"role": "assistant", "content": "row"}]


def call(arguments: Any, **more: Any) -> dict[str, Any]:
    return {"id": "c1", "type": "function", "function": {"name": "book", "arguments": arguments}, **more}


def turns(*calls: dict[str, Any], question: str = "Book a table") -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": None, "tool_calls": list(calls)},
        {"role": "tool", "content": "done", "tool_call_id": "c1"},
        {"role": "assistant", "content": "Booked."},
    ]


def build(folder: Any, rows: list[list[dict[str, Any]]], steps: list[Any]) -> Any:
    folder.jsonl("train.jsonl", [{"messages": row} for row in rows])
    folder.jsonl("test.jsonl", [{"messages": FIXED}])
    sources = [{"from": "train.jsonl", "part": "train"}, {"from": "test.jsonl", "part": "test"}]
    return folder.run({"sources": sources, "steps": steps, "fail_above": 1.0})


def arguments_of(ran: Any) -> Any:
    [row] = ran.rows("train")
    return row["messages"][1]["tool_calls"][0]["function"]["arguments"]


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ('{"phone": "13812345678",  "when": "noon"}', '{"phone": "[PHONE]",  "when": "noon"}'),
        (r'{"mail": "\u0077ang@qq.com", "note": "\u8bf7"}', r'{"mail": "[EMAIL]", "note": "\u8bf7"}'),
        ('{"to": [{"phone": 13812345678}], "n": 2}', '{"to": [{"phone": "[PHONE]"}], "n": 2}'),
        ('{"wang@qq.com" : 1, "wang@qq.com": "13812345678"}', '{"[EMAIL]" : 1, "[EMAIL]": "[PHONE]"}'),
        ({"who": {"phone": "13812345678"}, "no": None}, '{"who": {"phone": "[PHONE]"}, "no": null}'),
        ('{"empty": "", "blank": " "}', '{"empty": "", "blank": " "}'),
    ],
)  # fmt: skip
def test_personal_data_in_arguments_is_masked_and_the_rest_stays_as_written(
    folder: Any, arguments: Any, wanted: Any
) -> None:
    assert arguments_of(build(folder, [turns(call(arguments))], ["pii"])) == wanted


def test_personal_data_stays_nowhere_in_the_artifact(folder: Any) -> None:
    talks = [turns(call('{"phone": "13812345678"}', custom={"input": "wang@qq.com"}))]
    ran = build(folder, talks, ["fix_text", "normalize_space", "pii", "exact_dedup", "leaks"])
    assert all(b"13812345678" not in data and b"wang@qq" not in data for data in ran.bytes().values())
    assert ran.rows("train")[0]["messages"][1]["tool_calls"][0]["custom"] == {"input": "[EMAIL]"}


def test_rows_that_differ_only_in_arguments_are_no_duplicates(folder: Any) -> None:
    talks = [turns(call(f'{{"seats": "{n}"}}')) for n in ("two", "three", "two")]
    assert len(build(folder, talks, ["exact_dedup"]).rows("train")) == 2


def test_rows_that_differ_only_in_what_is_called_are_no_duplicates(folder: Any) -> None:
    def asking(name: str, arguments: str, id: str) -> list[dict[str, Any]]:
        called = {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
        return [FIXED[0], {"role": "assistant", "content": None, "tool_calls": [called]}]

    talks = [asking("book", '{"n": 2}', "a"), asking("book", '{"n": 3}', "b"), asking("cancel", '{"n": 3}', "c")]
    again = [asking("book", '{"n":3}', "d")]
    assert len(build(folder, [*talks, *again], ["exact_dedup"]).rows("train")) == 3


def test_row_with_personal_data_in_arguments_is_dropped_when_asked_for(folder: Any) -> None:
    talks = [turns(call('{"phone": "13812345678"}')), turns(call('{"phone": "no"}'), question="other")]
    ran = build(folder, talks, [{"use": "pii", "action": "drop"}])
    assert [row["messages"][0]["content"] for row in ran.rows("train")] == ["other"]


def test_augmentation_leaves_arguments_alone(folder: Any) -> None:
    talk = turns(call('{"text": "The quick dog cannot run and does not begin a big movie"}'))
    ran = build(folder, [talk], [{"use": "grammar", "share": 1.0}, {"use": "truncate", "max_words": 2}])
    assert all(row["messages"][1]["tool_calls"] == talk[1]["tool_calls"] for row in ran.rows("train"))


def test_text_that_is_no_unicode_in_arguments_is_rejected(folder: Any) -> None:
    ran = build(folder, [turns(call('{"a": "\\ud800"}')), turns(call("{}"))], [])
    assert [reject["reason"] for reject in ran.lines("rejected.jsonl")] == ["invalid_encoding"]


leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=8), inner), max_leaves=8)


@given(values, st.booleans(), st.sampled_from([None, 1]), st.booleans())
def test_calls_come_back_as_they_were_and_every_text_is_seen(
    value: Any, ascii: bool, indent: int | None, as_json: bool
) -> None:
    raw = json.dumps(value, ensure_ascii=ascii, indent=indent) if as_json else value
    calls = [call(raw)]
    seen = iter(texts_in(calls))
    assert mapped(calls, lambda _: next(seen)) == calls
    assert next(seen, None) is None
    whole = mapped(calls, lambda text: "x")
    assert {text for text in texts_in(whole)} <= {"x"}


def test_text_of_every_string_value_is_seen_in_order() -> None:
    calls = [call('{"a": "one", "b": ["two", {"c": "th\\"ree"}], "d": 1234567, "e": 12}'), call("four")]
    assert texts_in(calls) == ["one", "two", 'th"ree', "1234567", "four"]
