"""With a pii step no value that it hides reaches any file of the artifact, an event or a message."""

from __future__ import annotations

from typing import Any

import pytest

from inhouse.core.errors import UserError
from inhouse.data.look import first_look
from inhouse.data.stage import DataParams, located_of

PHONE, MAIL = "13812345678", "wang.li@qq.com"
LABELLED = {"use": "classification", "labels": ["good", "bad"]}


def talk(question: str, answer: str = "ok") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def build(folder: Any, rows: list[Any], steps: list[Any], **data: Any) -> Any:
    folder.jsonl("a.jsonl", rows)
    folder.jsonl("b.jsonl", [row for row in rows if isinstance(row, dict)][-1:])
    sources = [{"from": "a.jsonl", "part": "train"}, {"from": "b.jsonl", "part": "test", "name": "held"}]
    if data.get("shape") == "text":
        folder.jsonl("b.jsonl", [{"text": "a line of another text that nobody has seen before"}])
    return folder.run({"sources": sources, "steps": steps, "fail_above": 1.0, **data})


def holding(ran: Any, *values: str) -> list[str]:
    """Files of the artifact with one of the values in them, and events."""
    found = [name for name, data in ran.bytes().items() if any(value.encode() in data for value in values)]
    events = ran.out.with_suffix(".events")
    told = events.read_text("utf-8") if events.exists() else ""
    return found + [value for value in values if value in told]


def test_reject_shows_nothing_of_the_row(folder: Any) -> None:
    rows = [
        {"text": "x", "label": f"call {PHONE}"},
        {"text": "x", "label": None},
        {"text": "fine", "label": "good"},
        {"text": "not fine", "label": "bad"},
    ]
    ran = build(folder, rows, ["pii"], shape=LABELLED)
    assert holding(ran, PHONE) == []
    assert [(r["reason"], r["detail"]) for r in ran.lines("rejected.jsonl")] == [
        ("unknown_label", ""),
        ("empty_text", "label"),
    ]
    assert holding(build(folder, rows, [], shape=LABELLED), PHONE) == ["rejected.jsonl"]


def test_reject_of_an_unknown_role_or_kind_shows_nothing_of_the_row(folder: Any) -> None:
    role = {"messages": [{"role": PHONE, "content": "x"}]}
    kind = {"messages": [{"role": "user", "content": [{"type": PHONE}]}]}
    assert holding(build(folder, [role, kind, talk("a")], ["pii"]), PHONE) == []


def test_error_on_too_many_rejects_shows_nothing_of_the_rows(folder: Any) -> None:
    rows = [{"text": "x", "label": f"call {PHONE}"}, {"text": "fine", "label": "good"}]
    with pytest.raises(UserError) as raised:
        build(folder, rows, ["pii"], shape=LABELLED, fail_above=0.1)
    assert raised.value.code == "data.too_many_rejects" and PHONE not in str(raised.value)


RARE = {"use": "rare_words", "min_count": 3}
LINES = {"use": "boilerplate", "min_documents": 2, "max_share": 0.9}


@pytest.mark.parametrize(("steps", "quoted"), [([RARE, LINES, "pii"], False), (["pii", RARE, LINES], True)])
def test_reports_quote_only_what_stands_behind_the_pii_step(folder: Any, steps: list[Any], quoted: bool) -> None:
    line = f"write to {MAIL} or call {PHONE} for help"
    rows = [{"text": f"{line}\nand then document {n} goes on with other words {n * 7}"} for n in range(4)]
    ran = build(folder, rows, steps, shape="text")
    assert holding(ran, PHONE, "wang.li") == []
    rare, lines = ran.facts["reports"].values()
    assert rare["rare"] > 0 and lines["lines"] == 1
    assert ("rarest" in rare, "most_shared" in lines) == (quoted, quoted)


def test_labels_with_personal_data_stop_the_build_without_naming_them(folder: Any) -> None:
    rows = [{"text": "a", "label": f"tel {PHONE}"}, {"text": "b", "label": MAIL}, {"text": "c", "label": "good"}]
    with pytest.raises(UserError) as raised:
        build(folder, rows, ["pii"], shape="classification")
    assert raised.value.code == "data.personal_labels"
    assert PHONE not in str(raised.value) and MAIL not in str(raised.value) and "label" in str(raised.value)
    assert build(folder, rows, [], shape="classification").facts["labels"]


def test_labels_that_the_project_states_are_allowed_and_plain_ones_pass(folder: Any) -> None:
    rows = [{"text": "a", "label": "tel 13812345678"}, {"text": "b", "label": "good"}]
    stated = {"use": "classification", "labels": ["tel 13812345678", "good"]}
    assert build(folder, rows, ["pii"], shape=stated).facts["labels"]
    plain = [{"text": "a", "label": "张先生"}, {"text": "b", "label": "good"}]
    only_mail = {"use": "pii", "types": ["email"]}
    assert build(folder, plain, [only_mail], shape="classification").facts["labels"]


@pytest.mark.parametrize(("steps", "labels"), [(["pii"], "2"), ([], "good 1, tel 13812345678 1")])
def test_first_look_counts_labels_instead_of_naming_them(folder: Any, steps: list[Any], labels: str) -> None:
    folder.jsonl("a.jsonl", [{"text": "a", "label": "good"}, {"text": "b", "label": f"tel {PHONE}"}])
    params = DataParams.model_validate({"sources": ["a.jsonl"], "steps": steps, "shape": "classification"})
    [source] = located_of(params, folder.context())
    assert first_look(params, source)["labels"] == labels
