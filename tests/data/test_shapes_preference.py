"""Preference data and tool definitions through the whole data build: read, changed, split, stored, explained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from inhouse.core.errors import UserError
from inhouse.core.messages import text
from inhouse.core.protocols import Context
from inhouse.core.rows import Message, Row
from inhouse.core.run import Events
from inhouse.core.store import Store
from inhouse.data import stage
from inhouse.data.diff import compare
from inhouse.data.export import export, mlflow_input
from inhouse.data.stage import DataParams
from inhouse.data.versions import Version, versions
from inhouse.data.why import explain
from inhouse.dataset import read_rows, write_rows
from inhouse.flow.plan import Node
from inhouse.flow.runner import Run
from inhouse.flow.runner import run as run_nodes

PARAMETERS = {"type": "object", "properties": {}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "", "parameters": PARAMETERS}}
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bonn"}'}}


FIXED = {"messages": [{"role": "user", "content": "fixed"}, {"role": "assistant", "content": "row"}]}
FIXED |= {"prompt": "fixed", "completion": "row"}


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


def build(folder: Any, *rows: dict[str, Any], **data: Any) -> Any:
    """The rows as the training part; one row of every shape as the test part."""
    folder.jsonl("train.jsonl", list(rows))
    folder.jsonl("test.jsonl", [{**FIXED, **({"label": True} if data.get("shape") == "unpaired" else {})}])
    sources = [
        {"name": "row", "from": "train.jsonl", "part": "train"},
        {"name": "fixed", "from": "test.jsonl", "part": "test"},
    ]
    return folder.run({"sources": sources, "steps": [], "fail_above": 1.0, **data})


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2 + 2 =", "chosen": "4", "rejected": "5"},
        {"prompt": [user("2 + 2 =")], "chosen": [assistant("4")], "rejected": [assistant("5")]},
        {"chosen": [user("2 + 2 ="), assistant("4")], "rejected": [user("2 + 2 ="), assistant("5")]},
        {
            "prompt": "2 + 2 =",
            "chosen": [user("2 + 2 ="), assistant("4")],
            "rejected": [user("2 + 2 ="), assistant("5")],
        },
    ],
    ids=["texts", "turns", "implicit", "repeated"],
)
def test_preference_in_each_format_of_trl_becomes_a_conversation_and_a_worse_answer(
    folder: Any, row: dict[str, Any]
) -> None:
    (found,) = build(folder, row).rows("train")
    assert found["messages"] == [user("2 + 2 ="), assistant("4")]
    assert found["rejected"] == [assistant("5")]


def test_preference_over_several_turns_keeps_what_stands_before_the_last_question_once(folder: Any) -> None:
    before = [system("Be brief"), user("hi"), assistant("hello"), user("2 + 2 =")]
    row = {"prompt": before, "chosen": [assistant("4")], "rejected": [assistant("5")]}
    ran = build(folder, row)
    (found,) = read_rows(ran.out, "train")
    assert [turn.as_dict() for turn in found.messages] == [*before, assistant("4")]
    assert [turn.as_dict() for turn in found.worse] == [*before, assistant("5")]


def test_worse_answer_with_tool_calls_is_kept_with_them(folder: Any) -> None:
    calling = {"role": "assistant", "tool_calls": [CALL]}
    result = {"role": "tool", "content": "rain", "tool_call_id": "1"}
    row = {
        "prompt": [user("Weather?")],
        "chosen": [calling, result, assistant("Rain.")],
        "rejected": [assistant("No idea.")],
        "tools": [TOOL],
    }
    swapped = {**row, "chosen": row["rejected"], "rejected": row["chosen"]}
    found = build(folder, row, swapped, steps=["fix_text", "normalize_space", "exact_dedup"]).rows("train")
    by_answer = {item["messages"][-1]["content"]: item for item in found}
    assert by_answer["Rain."]["messages"] == [user("Weather?"), calling, result, assistant("Rain.")]
    assert by_answer["Rain."]["rejected"] == [assistant("No idea.")]
    assert by_answer["No idea."]["rejected"] == [calling, result, assistant("Rain.")]
    assert by_answer["Rain."]["tools"] == by_answer["No idea."]["tools"] == [TOOL]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "same_answer"),
        ({"prompt": "q", "chosen": "a", "rejected": None}, "empty_text"),
        ({"prompt": "q", "chosen": "a", "rejected": {"a": 1}}, "wrong_type"),
        ({"chosen": "a", "rejected": "b"}, "no_prompt"),
        ({"chosen": [user("x"), assistant("a")], "rejected": [user("y"), assistant("b")]}, "turns_differ"),
        ({"chosen": [user("x"), assistant("a")], "rejected": [user("x")]}, "no_answer"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "tools": "{"}, "wrong_type"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "tools": {"a": 1}}, "wrong_type"),
        ({"messages": [user("q"), assistant("a")], "tools": ["x"]}, "wrong_type"),
        ({"prompt": "q", "completion": "a", "label": "maybe"}, "wrong_type"),
    ],
)
def test_row_that_is_no_preference_is_rejected_with_its_reason(folder: Any, row: dict[str, Any], reason: str) -> None:
    folder.jsonl("train.jsonl", [row])
    shape = "unpaired" if "label" in row else "auto"
    with pytest.raises(UserError) as error:
        folder.run({"sources": "train.jsonl", "shape": shape})
    assert error.value.code == "data.too_many_rejects"
    assert f"train/train.jsonl:0 (line 1): {text('data.reason.' + reason)}" in str(error.value)


def test_unpaired_rows_say_whether_their_answer_was_liked(folder: Any) -> None:
    rows = [{"prompt": "q1", "completion": "a", "label": True}, {"prompt": "q2", "completion": "b", "label": False}]
    found = build(folder, *rows).rows("train")
    assert {row["messages"][1]["content"]: row["desirable"] for row in found} == {"a": True, "b": False}
    assert "label" not in found[0]


def test_unpaired_named_takes_labels_written_as_text(folder: Any) -> None:
    found = build(folder, {"prompt": "q", "completion": "a", "label": "False"}, shape="unpaired").rows("train")
    assert found[0]["desirable"] is False


def test_unpaired_without_a_label_column_is_refused(folder: Any) -> None:
    folder.jsonl("a.jsonl", [{"prompt": "q", "completion": "a"}])
    with pytest.raises(UserError, match="label") as error:
        folder.run({"sources": "a.jsonl", "shape": "unpaired"})
    assert error.value.code == "data.columns"


def test_label_that_is_not_true_or_false_leaves_prompt_and_completion_as_they_were(folder: Any) -> None:
    (found,) = build(folder, {"prompt": "q", "completion": "a", "label": "sport"}).rows("train")
    assert "desirable" not in found


def test_steps_change_the_worse_answer_and_a_blank_one_drops_the_row(folder: Any) -> None:
    rows = [
        {"prompt": "write to me", "chosen": "no", "rejected": "at  ada@example.com   now"},
        {"prompt": "q2", "chosen": "yes", "rejected": "\u200b"},
    ]
    ran = build(folder, *rows, steps=["fix_text", "normalize_space", "pii"])
    (found,) = ran.rows("train")
    assert "example.com" not in json.dumps(found)
    assert found["rejected"][0]["content"].startswith("at ")
    assert [gone["reason"] for gone in ran.dropped()] == ["empty_text"]


def test_rows_that_differ_in_the_worse_answer_only_are_no_duplicates(folder: Any) -> None:
    rows = [{"prompt": "q", "chosen": "a", "rejected": worse} for worse in ("b", "c", "b")]
    found = build(folder, *rows, steps=["exact_dedup"]).rows("train")
    assert sorted(row["rejected"][0]["content"] for row in found) == ["b", "c"]


def test_rows_with_one_question_stand_on_one_side_of_the_split(folder: Any) -> None:
    rows = [{"prompt": f"question {n // 4}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(200)]
    folder.jsonl("a.jsonl", rows)
    ran = folder.run({"sources": "a.jsonl", "steps": [], "split": {"test": 0.3}})
    train, test = ({row["messages"][0]["content"] for row in ran.rows(part)} for part in ("train", "test"))
    assert train and test and not train & test


def test_tables_hold_the_columns_only_where_rows_have_them(folder: Any) -> None:
    plain = build(folder, {"prompt": "q", "completion": "a"})
    assert "rejected" not in pl.read_parquet(plain.out / "train-00000.parquet").columns
    folder.jsonl("p.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    folder.jsonl("m.jsonl", [{"messages": [user("x"), assistant("y")]}])
    folder.jsonl("t.jsonl", [FIXED])
    sources = [
        {"from": "p.jsonl", "part": "train"}, {"from": "m.jsonl", "part": "train"},
        {"from": "t.jsonl", "part": "test"},
    ]  # fmt: skip
    mixed = folder.run({"sources": sources, "steps": []})
    table = pl.read_parquet(mixed.out / "train-00000.parquet")
    assert table["rejected"].null_count() == 1
    assert "tools" not in table.columns and "desirable" not in table.columns
    assert pl.read_parquet_schema(mixed.out / "test-00000.parquet") == table.schema


def test_rows_written_and_read_back_are_the_same(tmp_path: Path) -> None:
    turns = [Message(role="user", content="q"), Message(role="assistant", content="a")]
    worse = [Message(role="assistant", tool_calls=[CALL]), Message(role="assistant", content="b")]
    common = {"messages": turns, "source": "s", "file": "f"}
    rows = [
        Row(id="0" * 16, offset=0, tools=[TOOL], rejected=worse, **common),
        Row(id="1" * 16, offset=1, desirable=False, **common),
        Row(id="2" * 16, offset=2, **common),
    ]
    write_rows(tmp_path, "train", rows)
    assert list(read_rows(tmp_path, "train")) == rows


def built(folder: Path, rows: list[dict[str, Any]]) -> Version:
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    params = DataParams.model_validate({"sources": "a.jsonl", "steps": [], "split": {"test": 0.3}})
    store = Store(folder / ".inhouse")
    made = run_nodes((Node("dataset", stage, params, seed=3),), Run(store, folder, Events(), True))["dataset"]
    return next(version for version in versions(store) if version.record.id == made.id)


def test_versions_show_a_changed_worse_answer_tell_it_and_copy_it_out(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"prompt": f"q {n}", "chosen": f"a {n}", "rejected": f"b {n}"} for n in range(30)]
    first = built(tmp_path, rows)
    rows[4] |= {"rejected": "other"}
    rows[7] |= {"tools": [TOOL]}
    second = built(tmp_path, rows)
    found = compare(first, second)
    assert found.text_changed.count == 2
    why = explain(second, "a:4", Context({}, tmp_path, tmp_path, tmp_path, tmp_path, Events(), 0, True))
    assert why.row.texts == (("user", "q 4"), ("assistant", "a 4"), ("rejected", "other"))
    export(second, tmp_path / "copy", "jsonl")
    lines = [json.loads(line) for path in (tmp_path / "copy").glob("t*.jsonl") for line in path.open()]
    by_offset = {line["offset"]: line for line in lines}
    assert by_offset[4]["rejected"] == [assistant("other")]
    assert by_offset[7]["tools"] == [TOOL]
    export(second, tmp_path / "tables", "parquet")
    columns = json.loads(mlflow_input(second, tmp_path / "tables")["dataset"]["schema"])["mlflow_colspec"]
    assert {column["name"]: column["required"] for column in columns}["rejected"] is False


def told(row: Row) -> dict[str, Any]:
    fields = row.model_dump(exclude_none=True)
    return {name: fields[name] for name in ("messages", "tools", "rejected", "desirable") if name in fields}


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    "rows",
    [
        [{"prompt": f"q {n}", "chosen": f"a {n}", "rejected": f"b {n}"} for n in range(9)],
        [{"prompt": f"q {n}", "completion": f"a {n}", "label": n % 2 == 0} for n in range(9)],
        [
            {
                "messages": [
                    user(f"Weather {n}?"),
                    {"role": "assistant", "content": None, "tool_calls": [CALL], "weight": n % 2},
                    {"role": "tool", "content": "rain", "tool_call_id": "1"},
                    assistant(f"Rain {n}."),
                ],
                "tools": [TOOL],
            }
            for n in range(9)
        ],
    ],
    ids=["pairs", "thumbs", "calls"],
)
def test_rows_that_were_copied_out_come_back_as_they_were(
    tmp_path: Path, folder: Any, rows: list[dict[str, Any]], form: Any
) -> None:
    version = built(tmp_path, rows)
    export(version, folder.path / "copy", form)
    parts = {"train": f"copy/train*.{form}", "test": f"copy/test*.{form}"}
    sources = [{"name": part, "from": where, "part": part} for part, where in parts.items()]
    ran = folder.run({"sources": sources, "steps": []})
    for part in ("train", "test"):
        before = [told(row) for row in read_rows(version.folder, part)]
        after = [told(row) for row in read_rows(ran.out, part)]
        assert sorted(before, key=json.dumps) == sorted(after, key=json.dumps) and before


def test_worse_answer_beside_messages_may_be_a_text_or_a_whole_conversation(folder: Any) -> None:
    asked = [user("a"), assistant("b"), user("c")]
    rows = [
        {"messages": [*asked, assistant("liked")], "label": True},  # ms-swift
        {"messages": [*asked, assistant("disliked")], "label": False},
        {"messages": [*asked, assistant("good")], "rejected_response": "bad"},  # ms-swift
        {"messages": [*asked, assistant("fine")], "rejected": [*asked, assistant("bad")], "system": "S"},
        {"messages": [*asked, assistant("only")], "rejected": [], "desirable": None},
    ]
    found = {row["messages"][-1]["content"]: row for row in build(folder, *rows).rows("train")}
    assert found["good"]["rejected"] == found["fine"]["rejected"] == [assistant("bad")]
    assert found["fine"]["messages"][0] == system("S")
    assert (found["liked"]["desirable"], found["disliked"]["desirable"]) == (True, False)
    assert "rejected" not in found["only"] and "desirable" not in found["only"]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_labels_that_were_copied_out_come_back(tmp_path: Path, folder: Any, form: Any) -> None:
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": f"text {n}", "label": "ab"[n % 2]}) + "\n" for n in range(12))
    )
    shape = {"use": "classification", "labels": ["a", "b"], "prompt": "{text}?"}
    params = DataParams.model_validate({"sources": "a.jsonl", "steps": [], "split": {"test": 0.3}, "shape": shape})
    store = Store(tmp_path / ".inhouse")
    made = run_nodes((Node("dataset", stage, params, seed=3),), Run(store, tmp_path, Events(), True))["dataset"]
    version = next(version for version in versions(store) if version.record.id == made.id)
    export(version, folder.path / "copy", form)
    sources = [{"name": part, "from": f"copy/{part}*.{form}", "part": part} for part in ("train", "test")]
    ran = folder.run({"sources": sources, "steps": []})
    for part in ("train", "test"):
        before = sorted((row.messages[0].content, row.label) for row in read_rows(version.folder, part))
        assert sorted((row.messages[0].content, row.label) for row in read_rows(ran.out, part)) == before
        assert before and all(label in ("a", "b") for _, label in before)


def test_label_that_is_no_answer_is_left_alone(folder: Any) -> None:
    (row,) = build(folder, {"messages": [user("a"), assistant("b")], "label": "chat"}).rows("train")
    assert "label" not in row


def test_system_column_stands_before_both_answers(folder: Any) -> None:
    (row,) = build(folder, {"prompt": "2 + 2 =", "chosen": "4", "rejected": "5", "system": "S"}).rows("train")
    assert row["messages"] == [system("S"), user("2 + 2 ="), assistant("4")] and row["rejected"] == [assistant("5")]


def test_thoughts_are_written_before_both_answers_where_that_is_asked_for(folder: Any) -> None:
    pair = {
        "prompt": [user("a")],
        "chosen": [assistant("good") | {"reasoning_content": "because"}],
        "rejected": [assistant("bad")],
    }
    folder.jsonl("train.jsonl", [pair])
    folder.jsonl("test.jsonl", [{"prompt": "x", "chosen": "y", "rejected": "z"}])
    sources = [{"name": part, "from": f"{part}.jsonl", "part": part} for part in ("train", "test")]
    shape = {"use": "preference", "thoughts": "content"}
    (row,) = folder.run({"sources": sources, "shape": shape, "steps": []}).rows("train")
    assert row["messages"][-1]["content"] == "<think>\nbecause\n</think>\n\ngood"
    assert row["rejected"] == [assistant("bad")]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [user("q"), assistant("a")], "rejected_messages": [user("q"), assistant("b")]},  # ms-swift
        {  # LLaMA-Factory
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        },
    ],
)
def test_pairs_of_other_trainers_are_pairs(folder: Any, row: dict[str, Any]) -> None:
    folder.jsonl("train.jsonl", [row])
    folder.jsonl("test.jsonl", [FIXED])
    sources = [{"from": "train.jsonl", "part": "train"}, {"from": "test.jsonl", "part": "test"}]
    (made,) = folder.run({"sources": sources, "steps": []}).rows("train")
    assert made["messages"] == [user("q"), assistant("a")] and made["rejected"] == [assistant("b")]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [user("q"), assistant("a")], "kto_tag": False},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "kto_tag": False},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "label": False},
        {"instruction": "q", "input": "", "output": "a", "kto_tag": False},
    ],
)
def test_disliked_answers_of_other_trainers_stay_disliked(folder: Any, row: dict[str, Any]) -> None:
    folder.jsonl("train.jsonl", [row])
    folder.jsonl("test.jsonl", [FIXED])
    sources = [{"from": "train.jsonl", "part": "train"}, {"from": "test.jsonl", "part": "test"}]
    (made,) = folder.run({"sources": sources, "steps": []}).rows("train")
    assert made["desirable"] is False
