"""Shapes: columns become conversations; what does not fit is rejected with its reason."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inhouse.core.errors import UserError
from inhouse.core.messages import text
from inhouse.data.stage import DataParams
from inhouse.dataset import read_rows

ALPACA = {"instruction": "Translate", "input": "hello", "output": "你好"}
SHAREGPT = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}
MESSAGES = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
PROMPT = {"prompt": "2 + 2 =", "completion": "4"}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def build(folder: Any, row: dict[str, Any], **data: Any) -> Any:
    """One train row of interest, and a fixed test row so that the build has both parts."""
    folder.jsonl("train.jsonl", [row])
    folder.jsonl("test.jsonl", [{"messages": [user("fixed"), assistant("row")]}])
    sources = [
        {"name": "row", "from": "train.jsonl", "part": "train"},
        {"name": "fixed", "from": "test.jsonl", "part": "test"},
    ]
    return folder.run({"sources": sources, "steps": [], "fail_above": 1.0, **data})


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        (ALPACA, [user("Translate\n\nhello"), assistant("你好")]),
        ({"instruction": "Say hi", "output": "hi"}, [user("Say hi"), assistant("hi")]),
        (ALPACA | {"input": None, "system": "Be brief"}, [system("Be brief"), user("Translate"), assistant("你好")]),
        (SHAREGPT, [user("hi"), assistant("hello")]),
        (SHAREGPT | {"system": "Be kind"}, [system("Be kind"), user("hi"), assistant("hello")]),
        (MESSAGES, [user("hi"), assistant("hello")]),
        ({"messages": [system(" "), *MESSAGES["messages"]]}, [user("hi"), assistant("hello")]),
        ({"messages": [{"role": "developer", "content": "x"}, user("a"), assistant("b")]},
         [system("x"), user("a"), assistant("b")]),
        ({"messages": [user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), assistant("c")]},
         [user("ab"), assistant("c")]),
        (PROMPT, [user("2 + 2 ="), assistant("4")]),
        ({"prompt": [user("a")], "completion": [assistant("b")]}, [user("a"), assistant("b")]),
    ],
)  # fmt: skip
def test_chat_shape_is_recognised_and_becomes_messages(folder: Any, row: dict[str, Any], wanted: Any) -> None:
    ran = build(folder, row)
    assert [r["messages"] for r in ran.rows("train")] == [wanted]


def test_tool_calls_and_definitions_are_kept(folder: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    turns = [
        user("Weather?"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "sunny", "tool_call_id": "1"},
        assistant("Sunny."),
    ]
    ran = build(
        folder,
        {"messages": turns, "tools": [{"type": "function"}]},
        steps=["fix_text", "normalize_space", "exact_dedup"],
    )
    (row,) = ran.rows("train")
    assert row["messages"][1] == {"role": "assistant", "tool_calls": [call]}
    assert row["messages"][2:] == turns[2:]
    assert row["tools"] == [{"type": "function"}]


def test_thoughts_and_weights_beside_a_turn_are_left_out_where_that_is_asked_for(folder: Any) -> None:
    turns = [user("a"), assistant("b") | {"weight": 0}, user("c"), assistant("d") | {"reasoning_content": "because"}]
    shape = {"use": "messages", "ignore": ["weight", "reasoning_content"]}
    ran = build(folder, {"messages": turns}, shape=shape)
    assert ran.rows("train")[0]["messages"] == [user("a"), assistant("b"), user("c"), assistant("d")]
    empty = [user("a"), assistant("b") | {"weight": 1, "reasoning_content": "", "function_call": None}]
    assert build(folder, {"messages": empty}).rows("train")[0]["messages"] == [user("a"), assistant("b")]


def test_answers_without_weight_stay_so_up_to_the_last_that_is_learned(folder: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    asked = [user("Weather?  "), {"role": "assistant", "content": None, "tool_calls": [call], "weight": 0}]
    turns = [*asked, {"role": "tool", "content": "sunny", "tool_call_id": "1"}, assistant("Sunny.") | {"loss": False}]
    rows = [
        {
            "messages": [
                *turns,
                user("So?"),
                assistant("Go out.") | {"weight": 1},
                user("Ah"),
                assistant("!") | {"weight": 0},
            ]
        },
        {"messages": [user("Plain?"), assistant("Yes.")]},
    ]
    folder.jsonl("train.jsonl", rows)
    folder.jsonl("test.jsonl", [{"messages": [user("fixed"), assistant("row")]}])
    sources = [{"name": part, "from": f"{part}.jsonl", "part": part} for part in ("train", "test")]
    ran = folder.run({"sources": sources, "steps": ["normalize_space", "exact_dedup"]})
    told = {row["messages"][0]["content"]: row["messages"] for row in ran.rows("train")}
    assert [turn.get("weight") for turn in told["Weather?"]] == [None, 0, None, 0, None, None]
    assert told["Weather?"][1]["tool_calls"] == [call] and told["Weather?"][-1] == assistant("Go out.")
    assert told["Plain?"] == [user("Plain?"), assistant("Yes.")]
    held = next(row for row in read_rows(ran.out, "train") if len(row.messages) == 6)
    assert [turn.learned for turn in held.messages] == [False, False, False, False, False, True]


def test_thoughts_are_written_before_the_content_where_that_is_asked_for(folder: Any) -> None:
    turns = [user("2+2?"), assistant("4") | {"reasoning_content": "\ntwo and two\n"}, user("且?"), assistant("好")]
    ran = build(folder, {"messages": turns}, shape={"use": "messages", "thoughts": "content"})
    said = [turn["content"] for turn in ran.rows("train")[0]["messages"]]
    assert said == ["2+2?", "<think>\ntwo and two\n</think>\n\n4", "且?", "好"]
    calls = [{"id": "1", "type": "function", "function": {"name": "sum", "arguments": "{}"}}]
    asked = [user("x"), {"role": "assistant", "tool_calls": calls, "thinking": "ask"}, assistant("4")]
    ran = build(folder, {"messages": asked}, shape={"use": "messages", "thoughts": "content"})
    assert ran.rows("train")[0]["messages"][1]["content"] == "<think>\nask\n</think>\n\n"
    with pytest.raises(UserError) as error:  # thoughts without an answer, as where a trace was cut
        folder.jsonl("cut.jsonl", [{"messages": [user("x"), assistant("") | {"thinking": "z"}]}])
        folder.run({"sources": "cut.jsonl", "shape": {"use": "messages", "thoughts": "content"}})
    assert text("data.reason.empty_text") in str(error.value)
    turns[1] = assistant("4") | {"reasoning": "mail a@b.org"}
    ran = build(folder, {"messages": turns}, shape={"use": "messages", "thoughts": "content"}, steps=["pii"])
    assert "a@b.org" not in ran.rows("train")[0]["messages"][1]["content"]


def test_row_may_end_with_a_call(folder: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"in": "Ulm"}'}}
    asked = [user("Weather?"), {"role": "assistant", "tool_calls": [call]}]
    behind = [{"role": "tool", "content": "sunny", "tool_call_id": "1"}, assistant("Sunny.") | {"weight": 0}]
    for turns in (asked, [*asked, *behind]):  # what follows the last learned turn is left out
        ran = build(folder, {"messages": turns}, steps=["fix_text", "normalize_space", "pii", "exact_dedup", "leaks"])
        assert ran.rows("train")[0]["messages"] == asked
    row = next(read_rows(ran.out, "train"))
    assert row.answer == '<tool_call>\n{"name": "weather", "arguments": {"in": "Ulm"}}\n</tool_call>'
    assert row.prompt == row.messages[:1]


OWN_CALLS = ['{"name": "weather", "arguments": {"in": "Ulm"}}', '{"name": "time"}']
BOTH_CALLS = [
    {"type": "function", "function": {"name": "weather", "arguments": '{"in": "Ulm"}'}},
    {"type": "function", "function": {"name": "time", "arguments": "{}"}},
]
PLAIN_TOOLS = [{"name": "weather", "description": "of a town", "parameters": {"type": "object", "properties": {}}}]


@pytest.mark.parametrize(
    "row",
    [
        {  # ms-swift
            "messages": [
                user("x"),
                *({"role": "tool_call", "content": call} for call in OWN_CALLS),
                *({"role": "tool_response", "content": found} for found in ("sunny", "noon")),
                assistant("y"),
            ]
        },
        {  # LLaMA-Factory
            "conversations": [
                {"from": "human", "value": "x"},
                {"from": "function_call", "value": f"[{', '.join(OWN_CALLS)}]"},
                {"from": "observation", "value": "sunny"},
                {"from": "observation", "value": "noon"},
                {"from": "gpt", "value": "y"},
            ]
        },
    ],
)
@pytest.mark.parametrize("as_json", [True, False])
def test_calls_and_tools_of_other_trainers_become_openai_s(folder: Any, row: Any, as_json: bool) -> None:
    tools = json.dumps(PLAIN_TOOLS) if as_json else PLAIN_TOOLS
    (made,) = build(folder, row | {"tools": tools}).rows("train")
    assert made["messages"] == [
        user("x"),
        {"role": "assistant", "tool_calls": BOTH_CALLS},
        {"role": "tool", "content": "sunny"},
        {"role": "tool", "content": "noon"},
        assistant("y"),
    ]
    assert made["tools"] == [{"type": "function", "function": PLAIN_TOOLS[0]}]


def test_a_call_in_a_turn_of_its_own_belongs_to_the_words_before_it(folder: Any) -> None:
    called = {"role": "tool_call", "content": OWN_CALLS[0]}
    turns = [user("x"), assistant("Let me see."), called, {"role": "tool_response", "content": "sunny"}, assistant("y")]
    said = build(folder, {"messages": turns}).rows("train")[0]["messages"]
    assert said[1] == assistant("Let me see.") | {"tool_calls": BOTH_CALLS[:1]}
    assert [turn["role"] for turn in said] == ["user", "assistant", "tool", "assistant"]


@pytest.mark.parametrize("arguments", ["", None, "{}", {}])
def test_calls_without_arguments_and_by_themselves_become_openai_s(folder: Any, arguments: Any) -> None:
    function = {"name": "time", "arguments": arguments}
    for call in ({"function": function, "id": "1"}, function, {"name": "time"}):
        (row,) = build(folder, {"messages": [user("x"), {"role": "assistant", "tool_calls": [call]}]}).rows("train")
        [made] = row["messages"][1]["tool_calls"]
        assert (made["type"], made["function"]) == ("function", BOTH_CALLS[1]["function"])
        assert made.get("id") == call.get("id")


@pytest.mark.parametrize("arguments", ["city=Ulm", "[1]", "null", 7, ["Ulm"]])
def test_calls_whose_arguments_nobody_can_read_back_are_rejected(folder: Any, arguments: Any) -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
    folder.jsonl("train.jsonl", [{"messages": [user("x"), {"role": "assistant", "tool_calls": [call]}]}])
    with pytest.raises(UserError) as error:
        folder.run({"sources": "train.jsonl"})
    assert text("data.reason.wrong_type") in str(error.value)


@pytest.mark.parametrize("column", ["tools", "functions"])
def test_definitions_stand_as_requests_have_them(folder: Any, column: str) -> None:
    plain = {"parameters": {"type": "object", "required": None}, "returns": "x", "name": "weather", "description": None}
    whole = {"name": "weather", "description": "", "parameters": {"type": "object"}}
    turns = {"messages": [user("x"), assistant("y")]}
    for given in ([plain], json.dumps([plain]), [json.dumps(plain)], [{"function": plain, "type": "function"}]):
        (row,) = build(folder, turns | {column: given}).rows("train")
        assert row["tools"] == [{"type": "function", "function": whole}]
        assert list(row["tools"][0]["function"]) == ["name", "description", "parameters"]


def test_results_lose_the_tags_that_templates_put_around_them(folder: Any) -> None:
    call = {"role": "tool_call", "content": OWN_CALLS[1]}
    wrapped = {"role": "tool", "content": "<tool_response>\nnoon\n</tool_response>"}
    said = build(folder, {"messages": [user("x"), call, wrapped, assistant("y")]}).rows("train")[0]["messages"]
    assert said[2] == {"role": "tool", "content": "noon"}


@pytest.mark.parametrize("said", ["", None])
def test_a_tool_may_say_nothing(folder: Any, said: Any) -> None:
    turns = [user("x"), {"role": "assistant", "tool_calls": BOTH_CALLS[1:]}, {"role": "tool", "content": said}]
    ran = build(folder, {"messages": [*turns, assistant("y")]}, steps=["fix_text", "pii", "exact_dedup"])
    (row,) = read_rows(ran.out, "train")
    assert [turn.as_dict().get("content") for turn in row.messages] == ["x", None, "", "y"]


def test_parquet_fills_no_arguments_with_nulls(folder: Any) -> None:
    import polars as pl

    def asking(**arguments: str) -> dict[str, Any]:
        call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
        return {"messages": [user("x" + str(arguments)), {"role": "assistant", "content": None, "tool_calls": [call]}]}

    pl.DataFrame([asking(city="Ulm"), asking(day="noon")]).write_parquet(folder.path / "a.parquet")
    folder.jsonl("test.jsonl", [{"messages": [user("fixed"), assistant("row")]}])
    sources = [{"from": "a.parquet", "part": "train"}, {"from": "test.jsonl", "part": "test"}]
    rows = folder.run({"sources": sources, "steps": []}).rows("train")
    told = {row["messages"][1]["tool_calls"][0]["function"]["arguments"] for row in rows}
    assert told == {'{"city": "Ulm"}', '{"day": "noon"}'}


def test_old_function_calls_become_calls_of_tools_unless_they_are_left_out(folder: Any) -> None:
    called = BOTH_CALLS[0]["function"]
    turns = [
        user("x"),
        {"role": "assistant", "content": None, "function_call": called},
        {"role": "function", "name": "weather", "content": "sunny"},
        assistant("y") | {"function_call": called},
    ]
    said = build(folder, {"messages": turns}).rows("train")[0]["messages"]
    assert said[1:3] == [{"role": "assistant", "tool_calls": BOTH_CALLS[:1]}, {"role": "tool", "content": "sunny"}]
    assert said[3] == assistant("y") | {"tool_calls": BOTH_CALLS[:1]}
    shape = {"use": "messages", "ignore": ["function_call"]}
    left = [user("x"), assistant("y") | {"function_call": called}]
    assert build(folder, {"messages": left}, shape=shape).rows("train")[0]["messages"] == [user("x"), assistant("y")]


def test_sharegpt_turns_hold_weights_and_thoughts_as_messages_do(folder: Any) -> None:
    def said(speaker: str, value: str, **more: Any) -> dict[str, Any]:
        return {"from": speaker, "value": value, **more}

    turns = [said("human", "a"), said("gpt", "b", loss=False), said("human", "c"), said("gpt", "d", reasoning="why")]
    talk = [*turns, said("human", "e"), said("gpt", "f", weight=0)]
    folder.jsonl("train.jsonl", [{"conversations": talk}])
    folder.jsonl("test.jsonl", [{"conversations": [said("human", "x"), said("gpt", "y")]}])
    sources = [{"name": part, "from": f"{part}.jsonl", "part": part} for part in ("train", "test")]
    shape = {"use": "sharegpt", "thoughts": "content"}
    (row,) = folder.run({"sources": sources, "shape": shape, "steps": []}).rows("train")
    assert row["messages"] == [
        user("a"),
        assistant("b") | {"weight": 0},
        user("c"),
        assistant("<think>\nwhy\n</think>\n\nd"),
    ]


@pytest.mark.parametrize(
    ("row", "before"),
    [
        (
            ALPACA | {"history": [["q1", "a1"], ["q2", "a2"]]},
            [user("q1"), assistant("a1"), user("q2"), assistant("a2")],
        ),
        (ALPACA | {"history": []}, []),
        (ALPACA | {"system": "S", "history": [["q1", "a1"]]}, [system("S"), user("q1"), assistant("a1")]),
        ({"prompt": "p", "completion": "c", "system": "S"}, [system("S")]),
        ({"prompt": [user("p")], "completion": [assistant("c")], "system": "S"}, [system("S")]),
        ({"prompt": [system("own"), user("p")], "completion": [assistant("c")], "system": "S"}, [system("own")]),
        ({"messages": [user("p"), assistant("c")], "system": "S"}, [system("S")]),
        ({"prompt": "p", "completion": "c", "system": " "}, []),
        ({"conversations": [{"from": "system", "value": ""}, *SHAREGPT["conversations"]]}, []),
        ({"prompt": [user("p")], "completion": [assistant("c"), user("d"), assistant("e") | {"weight": 0}]}, []),
    ],
)
def test_what_stands_before_the_question_in_columns_of_its_own(
    folder: Any, row: dict[str, Any], before: list[dict[str, str]]
) -> None:
    (found,) = build(folder, row).rows("train")
    assert found["messages"][:-2] == before


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (ALPACA | {"history": "q"}, "wrong_type"),
        (ALPACA | {"history": [["q"]]}, "wrong_type"),
        (ALPACA | {"history": [["q", ""]]}, "empty_text"),
        ({"messages": [user("x"), assistant("y") | {"loss": "false"}]}, "wrong_type"),
        ({"messages": [user("x"), assistant("y")], "desirable": "yes"}, "wrong_type"),
        ({"messages": [user("x"), assistant("y")], "rejected": True}, "wrong_type"),
        ({"prompt": "x", "chosen": [assistant("y") | {"weight": 0}], "rejected": "z"}, "no_answer"),
        ({"messages": [user("x"), assistant("y") | {"tool_calls": "[{"}]}, "wrong_type"),
        (ALPACA | {"output": None}, "empty_text"),
        (ALPACA | {"output": "  "}, "empty_text"),
        (ALPACA | {"output": 4.5}, "wrong_type"),
        (ALPACA | {"instruction": ["x"]}, "wrong_type"),
        ({"conversations": [{"from": "human", "value": "hi"}]}, "no_answer"),
        ({"conversations": [{"from": "gpt", "value": "hi"}]}, "no_prompt"),
        ({"conversations": [{"from": "martian", "value": "hi"}]}, "unknown_role"),
        ({"conversations": [{"from": "human", "value": ""}]}, "empty_text"),
        ({"conversations": "text"}, "wrong_type"),
        ({"conversations": ["text"]}, "wrong_type"),
        ({"messages": []}, "no_answer"),
        ({"messages": None}, "wrong_type"),
        ({"messages": ["x"]}, "wrong_type"),
        ({"messages": [{"role": "oracle", "content": "x"}]}, "unknown_role"),
        ({"messages": [user(""), assistant("x")]}, "empty_text"),
        ({"messages": [user([{"type": "image_url"}]), assistant("x")]}, "wrong_type"),
        ({"messages": [user(["x"]), assistant("x")]}, "wrong_type"),
        ({"messages": [user("x"), {"role": "assistant", "content": "y", "tool_calls": ["z"]}]}, "wrong_type"),
        ({"messages": [user("x"), {"role": "assistant", "tool_calls": [{}]}]}, "wrong_type"),
        ({"messages": [user("x"), {"role": "tool_call", "content": "{"}]}, "wrong_type"),
        ({"messages": [user("x"), {"role": "tool_call", "content": "[]"}]}, "wrong_type"),
        ({"messages": [user("x"), {"role": "assistant", "tool_calls": {"name": "f"}}]}, "wrong_type"),
        ({"conversations": [{"from": "human", "value": "x"}, {"from": "function_call", "value": "f"}]}, "wrong_type"),
        ({"prompt": "x", "completion": "\ud800"}, "invalid_encoding"),
        ({"messages": [{"role": "\ud800", "content": "x"}]}, "unknown_role"),
        ({"messages": [user("x"), assistant("y") | {"tool_calls": [{"name": "\ud800"}]}]}, "invalid_encoding"),
        ({"messages": [user("x")], "\ud800": 1}, "no_answer"),
        ({"messages": [user("x"), assistant("y") | {"reasoning_content": "z"}]}, "unheld_field"),
        ({"messages": [user("x"), assistant("y") | {"function_call": {"arguments": "{}"}}]}, "wrong_type"),
        ({"messages": [user("x"), assistant("y") | {"weight": 0}]}, "no_answer"),
        ({"messages": [user("x"), assistant("y") | {"weight": 0.5}]}, "wrong_type"),
        ({"messages": [user("x"), assistant("y") | {"weight": "0"}]}, "wrong_type"),
        ({"messages": [user("x") | {"reasoning": "z"}, assistant("y")]}, "unheld_field"),
        ({"messages": [user("x"), assistant("y") | {"thinking": "z"}]}, "unheld_field"),
    ],
)
def test_chat_row_that_does_not_fit_is_rejected_with_its_reason(folder: Any, row: dict[str, Any], reason: str) -> None:
    folder.jsonl("train.jsonl", [row])
    with pytest.raises(UserError) as error:
        folder.run({"sources": "train.jsonl"})
    assert error.value.code == "data.too_many_rejects"
    assert f"train/train.jsonl:0 (line 1): {text('data.reason.' + reason)}" in str(error.value)


def test_named_chat_shape_is_used_over_the_recognised_one(folder: Any) -> None:
    folder.jsonl("a.jsonl", [ALPACA | MESSAGES])
    folder.jsonl("t.jsonl", [ALPACA | {"output": "hallo"}])
    sources = [{"from": "a.jsonl", "part": "train"}, {"from": "t.jsonl", "part": "test"}]
    ran = folder.run({"sources": sources, "shape": "alpaca"})
    assert ran.rows("train")[0]["messages"][0] == user("Translate\n\nhello")


def test_columns_are_renamed_to_what_the_shape_expects(folder: Any) -> None:
    folder.jsonl("a.jsonl", [{"question": "q1", "answer": "a1"}])
    folder.jsonl("t.jsonl", [PROMPT])
    rename = {"question": "prompt", "answer": "completion"}
    sources = [{"from": "a.jsonl", "part": "train", "rename": rename}, {"from": "t.jsonl", "part": "test"}]
    ran = folder.run({"sources": sources})
    assert ran.rows("train")[0]["messages"] == [user("q1"), assistant("a1")]


def test_unknown_shape_lists_columns_and_known_shapes(folder: Any) -> None:
    folder.jsonl("a.jsonl", [{"question": "q", "answer": "a"}])
    with pytest.raises(UserError) as error:
        folder.run({"sources": "a.jsonl"})
    assert error.value.code == "data.shape_unknown"
    for word in ("answer, question", "alpaca", "sharegpt", "messages", "prompt_completion", "rename"):
        assert word in str(error.value)


def test_named_chat_shape_whose_columns_are_missing_lists_them(folder: Any) -> None:
    folder.jsonl("a.jsonl", [PROMPT])
    with pytest.raises(UserError, match="instruction, output") as error:
        folder.run({"sources": "a.jsonl", "shape": "alpaca"})
    assert error.value.code == "data.columns"


def test_late_first_record_still_shows_the_shape(folder: Any) -> None:
    rows = [3] * 150 + [{"prompt": f"{n}", "completion": "x"} for n in range(30)]
    folder.jsonl("a.jsonl", rows)
    ran = folder.run({"sources": "a.jsonl", "fail_above": 0.9})
    assert sum(ran.facts["rows"].values()) == 30


def test_shape_whose_columns_are_missing_lists_columns(folder: Any) -> None:
    folder.jsonl("a.jsonl", [{"body": "q", "label": "a"}])
    with pytest.raises(UserError) as error:
        folder.run({"sources": "a.jsonl", "shape": {"use": "classification"}})
    assert error.value.code == "data.columns"
    assert "text, label" in str(error.value)
    assert "body, label" in str(error.value)


def classified(folder: Any, rows: list[dict[str, Any]], **shape: Any) -> Any:
    folder.jsonl("a.jsonl", rows)
    folder.jsonl("t.jsonl", [{"text": "test", "label": "a", "title": "T", "body": "test"}])
    sources = [{"from": "a.jsonl", "part": "train"}, {"from": "t.jsonl", "part": "test"}]
    return folder.run({"sources": sources, "steps": [], "fail_above": 0.5, "shape": {"use": "classification", **shape}})


def test_classification_fills_the_prompt_once_and_answers_with_the_label(folder: Any) -> None:
    rows = [{"text": "see {title} \\1", "label": "a", "title": "One"}, {"text": "x", "label": "b", "title": None}]
    ran = classified(folder, rows, prompt='{"q": "{title}: {text}"}', system="Sort.")
    found = {row["label"]: row["messages"] for row in ran.rows("train")}
    assert found["a"] == [system("Sort."), user('{"q": "One: see {title} \\1"}'), assistant("a")]
    assert found["b"] == [system("Sort."), user('{"q": ": x"}'), assistant("b")]


def test_classification_takes_other_columns_and_number_labels(folder: Any) -> None:
    folder.jsonl("a.jsonl", [{"body": "x", "y": 0}, {"body": "z", "y": True}])
    folder.jsonl("t.jsonl", [{"body": "t", "y": 0}])
    shape = {"use": "classification", "text_column": "body", "label_column": "y", "prompt": "Q {text}"}
    sources = [{"from": "a.jsonl", "part": "train"}, {"from": "t.jsonl", "part": "test"}]
    ran = folder.run({"sources": sources, "shape": shape})
    assert {r["messages"][0]["content"]: r["label"] for r in ran.rows("train")} == {"Q x": "0", "Q z": "true"}
    assert ran.facts["labels"] == ["0", "true"]


def test_classification_keeps_the_order_of_the_labels_named(folder: Any) -> None:
    rows = [{"text": "x", "label": "a"}, {"text": "y", "label": "b"}]
    assert classified(folder, rows, labels=["b", "c", "a"]).facts["labels"] == ["b", "c", "a"]


def test_classification_label_outside_the_list_is_rejected_with_its_name(folder: Any) -> None:
    rows = [{"text": "x", "label": "a"}, {"text": "y", "label": "b"}, {"text": "z", "label": "oops"}]
    ran = classified(folder, rows, labels=["a", "b"])
    (reject,) = ran.lines("rejected.jsonl")
    assert (reject["reason"], reject["detail"], reject["line"], reject["file"]) == (
        "unknown_label",
        "oops",
        3,
        "a.jsonl",
    )
    assert "data.rejected" in ran.notes


def test_classification_rows_with_missing_columns_or_texts_are_rejected(folder: Any) -> None:
    rows = [{"text": str(n), "label": "ab"[n % 2]} for n in range(6)]
    ran = classified(folder, [*rows, {"label": "a"}, {"text": None, "label": "a"}, {"text": "x", "label": ""}])
    assert [r["reason"] for r in ran.lines("rejected.jsonl")] == ["missing_column", "empty_text", "empty_text"]


def test_classification_without_the_text_column_needs_some_text(folder: Any) -> None:
    rows = [{"title": "x", "label": "a"}, {"title": "y", "label": "b"}, {"title": "", "label": "b"}]
    ran = classified(folder, rows, prompt="Sort: {title}")
    assert [r["reason"] for r in ran.lines("rejected.jsonl")] == ["empty_text"]


def test_one_class_training_part_is_refused(folder: Any) -> None:
    with pytest.raises(UserError) as error:
        classified(folder, [{"text": "x", "label": "a"}, {"text": "y", "label": "a"}])
    assert error.value.code == "data.one_class"


@pytest.mark.parametrize(
    "shape", [{"prompt": "no place"}, {"labels": ["a", "a"]}, {"labels": ["a"]}, {"use": "haiku"}, "haiku"]
)
def test_shape_settings_that_make_no_sense_are_refused(shape: Any) -> None:
    shape = {"use": "classification", **shape} if isinstance(shape, dict) else shape
    with pytest.raises(ValueError, match="shape"):
        DataParams.model_validate({"sources": "a.jsonl", "shape": shape})
