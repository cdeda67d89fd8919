"""`inhouse data review …`: filling a queue, keys in a terminal, flags, files."""

from __future__ import annotations

import csv
import io
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from inhouse.api import review as api
from inhouse.cli.main import main
from inhouse.core.errors import UserError
from inhouse.core.plugins import operators
from inhouse.core.run import Events
from inhouse.data.label.items import text_id

ROWS: list[dict[str, Any]] = [{"text": f"row {n}", "n": n} for n in range(3)]


class Reviews:
    """A workspace and the commands on it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.capsys = capsys
        self.monkeypatch = monkeypatch

    def file(self, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> Path:
        path = self.folder / name
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    def add(self, place: Path, **more: Any) -> api.Added:
        request = api.AddRequest(workspace=self.folder / "ws", place=place, **more)
        return api.review_add(request, Events())

    def run(self, *words: str, typed: str = "", code: int = 0) -> str:
        self.monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        assert main(["data", "review", *words, "--workspace", str(self.folder / "ws")]) == code
        captured = self.capsys.readouterr()
        return captured.out + captured.err

    def json(self, *words: str) -> Any:
        return json.loads(self.run(*words, "--json"))


@pytest.fixture
def reviews(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Reviews:
    return Reviews(tmp_path, capsys, monkeypatch)


@pytest.fixture
def desk(reviews: Reviews) -> Reviews:
    reviews.add(reviews.file(ROWS), labels=("spam", "ham"), queue="desk")
    return reviews


def first(reviews: Reviews) -> str:
    return min(text_id(row["text"]) for row in ROWS)


def test_add_file_takes_labels_of_rules_as_suggestions(reviews: Reviews) -> None:
    rows = [
        {"text": "a", "label": "spam", "label_by": "rules"},
        {"text": "b", "label": "ham", "label_by": "model", "label_confidence": 0.9},
        {"text": "c", "label": "ham"},
        {"text": "d"},
    ]
    added = reviews.add(reviews.file(rows, "my.rows.jsonl"))
    assert (added.queue, added.labels, added.rows, added.added) == ("my", ("ham", "spam"), 4, 3)
    assert reviews.add(reviews.folder / "my.rows.jsonl", which="all").added == 1
    shown = reviews.json("next", "--reviewer", "ann")["tasks"][0]
    assert shown["text"] == "d"  # nobody knows its label: it comes before those with a suggestion


def test_add_project_uses_its_name_columns_and_labels(reviews: Reviews) -> None:
    reviews.file([{"body": "x"}, {"body": "y", "desk": "a"}])
    project = reviews.folder / "inhouse.yaml"
    project.write_text(
        "name: house\nmodel: {base: ./m}\ndata:\n  sources: [rows.jsonl]\n"
        "  shape: {use: classification, labels: [a, b], text_column: body, label_column: desk, prompt: '{body}'}\n"
    )
    for place in (project, reviews.folder):
        added = reviews.add(place)
        assert (added.queue, added.labels, added.rows) == ("house", ("a", "b"), 2)


@pytest.mark.parametrize(("more", "code"), [({"labels": ("one",)}, "label.few_labels"), ({}, "review.no_file")])
def test_add_what_cannot_be_reviewed_is_refused(reviews: Reviews, more: dict[str, Any], code: str) -> None:
    place = reviews.file(ROWS) if more else reviews.folder / "none.jsonl"
    with pytest.raises(UserError) as raised:
        reviews.add(place, **more)
    assert raised.value.code == code


def test_add_command_says_what_to_type_next(reviews: Reviews) -> None:
    shown = reviews.run("add", str(reviews.file(ROWS)), "--labels", "spam", "--labels", "ham")
    assert "3 new rows" in shown and "inhouse data review next --queue rows" in shown


def test_next_in_a_terminal_takes_numbers_labels_and_commands(desk: Reviews) -> None:
    shown = desk.run("next", "--reviewer", "ann", typed="7\n1\nu\nham\n2\ns\n")
    assert "That is none of the keys" in shown and "2 answered" in shown
    status = desk.json("status")
    assert status["answers"] == {"ann": 2} and status["open"] == 3
    ended = desk.run("next", "--reviewer", "ann", typed="q\n")
    assert "0 answered" in ended
    desk.run("next", "--reviewer", "ann", typed="1\n")  # the one that was skipped, then the end of input
    assert desk.json("next", "--reviewer", "ann")["tasks"] == []
    [by_first] = [t for t in desk.json("next", "--reviewer", "bob")["tasks"]]
    assert by_first["id"] == first(desk) and by_first["answers"] == {}  # ann's answers stay hidden from bob


def test_next_on_a_keyboard_needs_one_key_a_row(desk: Reviews) -> None:
    keys = iter(["1", "2", "\x03"])
    desk.monkeypatch.setattr("click.getchar", lambda: next(keys))
    typed = io.StringIO()
    typed.isatty = lambda: True  # type: ignore[method-assign]
    desk.monkeypatch.setattr("sys.stdin", typed)
    assert main(["data", "review", "next", "--reviewer", "ann", "--workspace", str(desk.folder / "ws")]) == 0
    assert "2 answered" in desk.capsys.readouterr().out


def test_next_enter_takes_the_suggestion_and_free_text_is_written(reviews: Reviews) -> None:
    reviews.add(reviews.file([{"text": "question one"}, {"text": "question two"}]), queue="free", reviewers=1)
    shown = reviews.run("next", "--reviewer", "ann", "--queue", "free", typed="an answer\n/s\n")
    assert "Write the answer" in shown and "1 answered" in shown
    rows = [{"text": "a", "label": "x", "label_by": "rules"}, {"text": "b", "label": "y"}]
    reviews.add(reviews.file(rows, "more.jsonl"), queue="more", reviewers=1, which="all")
    shown = reviews.run("next", "--reviewer", "ann", "--queue", "more", typed="\n\n2\n")
    assert "suggested by rules: x" in shown and "label so far: y" in shown and "2 answered" in shown
    assert reviews.json("status", "--queue", "more")["decided"] == 2


def test_next_row_that_others_finished_meanwhile_is_passed_over(desk: Reviews) -> None:
    open_desk = api.open_desk

    def late(request: api.ReviewerRequest) -> api.Desk:
        found = open_desk(request)
        task = found.next()
        assert task is not None
        for name in ("eve", "dan"):
            api.Desk(found.engine, found.queue, name).answer(task.asked.id, "spam")
        again = [task, None]
        found.next = lambda: again.pop(0)  # type: ignore[method-assign]
        return found

    desk.monkeypatch.setattr(api, "open_desk", late)
    assert "has the 2 answers" in desk.run("next", "--reviewer", "ann", typed="1\n1\n")


def test_set_answers_and_adjudicates_without_a_conversation(desk: Reviews) -> None:
    task = first(desk)
    assert task[:8] in desk.run("next", "--reviewer", "ann", "--set", f"{task[:8]}=spam")
    desk.run("next", "--reviewer", "bob", "--set", f"{task}=ham")
    [disputed] = desk.json("adjudicate", "--reviewer", "eve")["tasks"]
    assert disputed["answers"] == {"ann": "spam", "bob": "ham"}
    shown = desk.run("adjudicate", "--reviewer", "eve", "--set", f"{task}=ham")
    assert "decided" in shown
    assert desk.json("adjudicate", "--reviewer", "eve")["tasks"] == []
    assert "ID=LABEL" in desk.run("next", "--reviewer", "ann", "--set", "nolabel", code=2)


def test_adjudicate_in_a_terminal_shows_who_said_what(desk: Reviews) -> None:
    for row, (one, other) in zip(ROWS, [("spam", "ham"), ("ham", "spam"), ("ham", "ham")], strict=True):
        desk.run("next", "--reviewer", "ann", "--set", f"{text_id(row['text'])}={one}")
        desk.run("next", "--reviewer", "bob", "--set", f"{text_id(row['text'])}={other}")
    shown = desk.run("adjudicate", "--reviewer", "eve", typed="s\n1\n")
    assert "ann: " in shown and "1 answered" in shown
    status = desk.run("status")
    assert "ann · bob" in status and "kappa" in status
    assert desk.json("status")["adjudicated"] == 1


def test_export_is_a_source_and_import_takes_label_studio(desk: Reviews) -> None:
    task = first(desk)
    for name in ("ann", "bob"):
        desk.run("next", "--reviewer", name, "--set", f"{task}=spam")
    out = desk.folder / "out"
    assert "1 rows" in desk.run("export", str(out / "rows.jsonl"))
    [row] = [json.loads(line) for line in (out / "rows.jsonl").read_text("utf-8").splitlines()]
    assert row["label"] == "spam" and row["label_by"] == "review"
    shown = desk.run("export", str(out / "studio.json"))
    assert "3 rows" in shown and "<Choices" in shown
    copied = desk.json("import", str(out / "studio.json"), "--queue", "copy", "--labels", "eggs")
    assert (copied["added"], copied["labels"], copied["left_out"]) == (3, ["eggs", "spam"], 0)
    assert desk.json("status", "--queue", "copy")["decided"] == 1
    broken = desk.folder / "one.json"
    studio = json.loads((out / "studio.json").read_text("utf-8"))
    studio[0]["annotations"] = [{"result": [], "completed_by": 1}]
    broken.write_text(json.dumps(studio))
    assert "1 results were left out" in desk.run("import", str(broken), "--queue", "left")
    said = desk.run("status", code=2)
    assert "several review queues: copy, desk, left" in said
    assert "\n  inhouse data review status --queue copy\n" in said


def test_export_to_csv_is_csv_that_a_source_reads(reviews: Reviews) -> None:
    rows: list[dict[str, Any]] = [{"text": 'a, "b"\n第二行', "n": [1, 2], "ok": True}, {"text": "plain", "more": None}]
    reviews.add(reviews.file(rows), labels=("spam", "ham"), reviewers=1)
    for row in rows:
        reviews.run("next", "--reviewer", "ann", "--set", f"{text_id(row['text'])}=ham")
    target = reviews.folder / "out" / "rows.csv"
    assert "2 rows" in reviews.run("export", str(target))
    with target.open(encoding="utf-8", newline="") as f:
        found = {row["text"]: row for row in csv.DictReader(f)}
    assert found['a, "b"\n第二行'] == {
        "text": 'a, "b"\n第二行', "n": "[1, 2]", "ok": "true", "more": "", "label": "ham", "label_by": "review",
        "label_reviewers": "1",
    }  # fmt: skip
    items = list(operators("reader")["csv"].function("read")(target, operators("reader")["csv"].params()))
    assert [item.fields["label"] for item in items] == ["ham", "ham"]


def test_exported_csv_holds_nothing_that_a_spreadsheet_runs_and_reads_back_as_it_was(reviews: Reviews) -> None:
    texts = [
        "=cmd|'/c'!A1", "@SUM(1+1)", "+1", "-1+2", "\t=1", "\r=1", "\n=1", "＝1+1", "'=1", "''-1", "'", "'quoted'",
        "plain", "'=\"a\",1",
    ]  # fmt: skip
    rows: list[dict[str, Any]] = [{"text": text, "=col": text, "n": -1} for text in texts]
    reviews.add(reviews.file(rows), labels=("=spam", "ham"), reviewers=1)
    for text in texts:
        reviews.run("next", "--reviewer", "ann", "--set", f"{text_id(text)}==spam")
    target = reviews.folder / "rows.csv"
    reviews.run("export", str(target))
    with target.open(encoding="utf-8", newline="") as f:
        header, *written = csv.reader(f)
    led = [cell for row in (header, *written) for cell in row if cell[:1] in tuple("=+-@\t\r\n＝＋－＠")]
    assert led == ["-1"] * len(texts)  # a number runs nothing
    assert {"'=col", "'=cmd|'/c'!A1", "''=1", "'quoted'"} <= {*header, *(cell for row in written for cell in row)}
    reader = operators("reader")["csv"]
    items = list(reader.function("read")(target, reader.params()))
    assert sorted(item.fields["text"] for item in items) == sorted(texts)
    assert [item.fields["=col"] for item in items] == [item.fields["text"] for item in items]
    assert {item.fields["label"] for item in items} == {"=spam"}


def test_csv_of_others_keeps_its_apostrophes_unless_told(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text\n'=1\n", encoding="utf-8")
    reader = operators("reader")["csv"]
    for settings, wanted in (({}, "'=1"), ({"guarded": True}, "=1")):
        [item] = reader.function("read")(path, reader.params(**settings))
        assert item.fields == {"text": wanted}


@pytest.mark.parametrize("name", ["rows.xlsx", "rows", "rows.csv.bak"])
def test_export_to_an_unknown_ending_is_refused(desk: Reviews, name: str) -> None:
    said = desk.run("export", str(desk.folder / name), code=2)
    assert ".jsonl, .ndjson, .csv, .json" in said
    assert not (desk.folder / name).exists()


def test_export_of_nothing_decided_says_so_and_what_to_do(desk: Reviews) -> None:
    said = desk.run("export", str(desk.folder / "x.csv"), code=2)
    assert "3 open, 0 disputed" in said and "inhouse data review next --queue desk --reviewer" in said
    assert not (desk.folder / "x.csv").exists()
    for row, label in itertools.product(ROWS, ("spam", "ham")):
        desk.run("next", "--reviewer", label, "--set", f"{text_id(row['text'])}={label}")
    assert "inhouse data review adjudicate" in desk.run("export", str(desk.folder / "x.csv"), code=2)
    assert "3 rows" in desk.run("export", str(desk.folder / "all.json"))  # all of them, decided or not
