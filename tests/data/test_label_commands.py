"""`inhouse data label` and `inhouse data label errors`: from a project file to labelled rows and doubts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from chat_server import chat_server
from truth_labels import planted_noise

from inhouse.api.label import ErrorsRequest, LabelRequest, label_data, label_errors
from inhouse.api.review import QueueRequest, review_status
from inhouse.cli.main import main
from inhouse.core.errors import UserError
from inhouse.core.run import Events

ROWS = [
    {"text": "refund me", "label": "refund"},
    {"text": "where is my parcel", "stars": 1},
    {"text": "退款吧"},
    {"text": "refund of a parcel"},
    {"text": "hello", "label": " "},
    {"text": ""},
]
RULES = [
    {"use": "keyword", "label": "refund", "any": ["refund", "退款"]},
    {"use": "keyword", "label": "delivery", "any": ["parcel"]},
]


class Desk:
    """A project folder with rows to label."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workspace = folder / "ws"

    def project(self, **sections: Any) -> Path:
        file = self.folder / "inhouse.yaml"
        content = {"name": "desk", "model": {"base": "./none"}, **sections}
        file.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
        return file

    def rows(self, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> None:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (self.folder / name).write_text(lines, encoding="utf-8")

    def label(self, **more: Any) -> Any:
        request = LabelRequest(workspace=self.workspace, project=self.folder, **more)
        return label_data(request, Events())

    def written(self, name: str = "labelled.jsonl") -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / name).read_text("utf-8").splitlines()]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    found = Desk(tmp_path)
    found.rows(ROWS)
    return found


def test_label_section_labels_rows_and_writes_a_source(desk: Desk) -> None:
    desk.project(label={"sources": "rows.jsonl", "rules": RULES})
    done = desk.label()
    figures = done.figures
    assert (figures.rows, figures.rejected, figures.given, figures.by_rules, figures.open, figures.ties) == (
        5,
        1,
        1,
        2,
        2,
        1,
    )
    assert done.output == desk.folder / "labelled.jsonl" and done.queue is None
    assert desk.written() == [
        {"text": "refund me", "label": "refund", "label_by": "given"},
        {"text": "where is my parcel", "stars": 1, "label": "delivery", "label_by": "rules"},
        {"text": "退款吧", "label": "refund", "label_by": "rules"},
    ]


def test_label_section_leaves_the_recipe_of_the_dataset_alone(desk: Desk) -> None:
    from inhouse.flow.plan import pipeline
    from inhouse.flow.project import load, schema

    data = {"sources": ["rows.jsonl"]}
    without = pipeline(load(desk.project(data=data)))
    assert pipeline(load(desk.project(data=data, label={"rules": RULES}))) == without
    assert "label" in schema()["properties"] and "KeywordRule" in schema()["$defs"]


def test_label_takes_what_it_is_not_told_from_the_data_section(desk: Desk) -> None:
    desk.rows([{"body": "refund", "desk": "refund"}, {"body": "a parcel", "desk": None}], "other.jsonl")
    shape = {"use": "classification", "labels": ["refund", "delivery"], "text_column": "body", "label_column": "desk"}
    desk.project(data={"sources": ["other.jsonl"], "shape": shape}, label={"rules": RULES})
    done = desk.label(output=desk.folder / "out.jsonl")
    assert done.written == 2
    assert desk.written("out.jsonl")[1] == {"body": "a parcel", "desk": "delivery", "label_by": "rules"}
    with pytest.raises(UserError) as raised:
        desk.label(overrides=("label.labels=[refund, other, delivery]", "label.label_column=body"))
    assert raised.value.code == "label.unknown_label"


def test_model_is_asked_about_texts_as_the_pii_step_leaves_them(desk: Desk) -> None:
    asked: list[str] = []

    def answer(body: dict[str, Any], number: int) -> str:
        asked.append(body["messages"][-1]["content"])
        return '{"label": "delivery"}'

    told = "业主李丽华，手机13912345678"
    desk.rows([{"text": told, "label": None}, {"text": "card 4111 1111 1111 1111", "label": None}], "people.jsonl")
    steps = [{"use": "pii", "actions": {"bank_card": "drop"}}]
    with chat_server(answer) as server:
        ask = {"endpoint": {"base_url": server.url, "model": "m"}}
        label = {"labels": ["refund", "delivery"], "ask": ask}
        desk.project(data={"sources": ["people.jsonl"], "steps": steps}, label=label)
        done = desk.label(output=desk.folder / "out.jsonl")
    assert asked == ["业主[NAME]，手机[PHONE]"]
    assert (done.figures.by_model, done.figures.open) == (1, 1)  # a row that the step drops is not asked about
    assert desk.written("out.jsonl")[0] == {"text": told, "label": "delivery", "label_by": "model"}


def test_label_review_queues_what_had_no_label_the_least_sure_first(desk: Desk) -> None:
    desk.project(label={"sources": "rows.jsonl", "rules": RULES})
    done = desk.label(review=True)
    assert (done.queue, done.queued) == ("desk", 4)
    status = review_status(QueueRequest(workspace=desk.workspace))
    assert (status.tasks, status.open, status.labels) == (4, 4, ("delivery", "refund"))


def test_label_by_a_model_goes_on_after_its_budget_was_spent(desk: Desk) -> None:
    desk.rows([{"text": f"row {n}"} for n in range(6)])
    with chat_server(lambda body, n: '{"label": "delivery"}') as server:
        endpoint = {"base_url": server.url, "model": "m", "budget": {"requests": 4}, "at_once": 2}
        ask = {"labels": ["refund", "delivery"], "ask": {"endpoint": endpoint}}
        desk.project(label={"sources": ["rows.jsonl"], **ask})
        with pytest.raises(UserError) as raised:
            desk.label()
        assert raised.value.code == "label.budget" and not (desk.folder / "labelled.jsonl").exists()
        done = desk.label(overrides=("label.ask.endpoint.budget.requests=6",))
        assert len(server.seen) == 6 and done.figures.by_model == 6
        first = (desk.folder / "labelled.jsonl").read_bytes()
    done = desk.label(offline=True)
    assert done.figures.by_model == 6 and (desk.folder / "labelled.jsonl").read_bytes() == first


@pytest.mark.parametrize(
    ("sections", "code"),
    [
        ({}, "label.no_sources"),
        ({"label": {"sources": "rows.jsonl", "text_column": "body", "rules": RULES}}, "label.no_text"),
        ({"label": {"sources": "empty.jsonl", "rules": RULES}}, "data.empty"),
        ({"label": {"sources": "rows.jsonl"}}, "label.nothing_to_do"),
    ],
)
def test_label_of_nothing_says_what_is_missing(desk: Desk, sections: dict[str, Any], code: str) -> None:
    desk.rows([], "empty.jsonl")
    desk.project(**sections)
    with pytest.raises(UserError) as raised:
        desk.label()
    assert raised.value.code == code


def test_label_errors_finds_planted_errors_and_queues_the_worst(desk: Desk) -> None:
    planted = planted_noise(seed=5, count=300, share=0.1)
    desk.rows([item.fields for item in planted.rows])
    desk.project(label={"sources": "rows.jsonl"})
    request = ErrorsRequest(workspace=desk.workspace, project=desk.folder, rows=15, review=True)
    found = label_errors(request, Events())
    assert sum(suspect.id in planted.wrong for suspect in found.suspects) >= 14
    assert (found.rows, found.queued, found.found >= found.confident >= 15) == (300, 15, True)
    status = review_status(QueueRequest(workspace=desk.workspace))
    assert status.tasks == 15 and status.labels == ("account", "delivery", "refund")


# The commands themselves


def test_label_commands_show_what_they_did(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.project(label={"sources": "rows.jsonl", "rules": RULES})
    words = ["data", "label", str(desk.folder), "--workspace", str(desk.workspace)]
    assert main([*words, "--review", "--lang", "zh"]) == 0
    shown = capsys.readouterr().out
    assert "由规则标注" in shown and "keyword:refund" in shown and "labelled.jsonl" in shown
    assert main(["data", "label", "errors", *words[2:], "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "label.few_labelled"


def test_label_errors_view_shows_the_worst_rows(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    from inhouse.cli import views

    desk.rows([item.fields for item in planted_noise(seed=5, count=120, share=0.1).rows])
    desk.project(label={"sources": "rows.jsonl"})
    request = ErrorsRequest(workspace=desk.workspace, project=desk.folder, rows=3, review=True)
    views.show("label_errors", label_errors(request, Events()), as_json=False)
    shown = capsys.readouterr().out
    assert "doubtful" in shown and "3 new rows" in shown and "little better than chance" not in shown
    desk.rows([{"text": f"{n:b}", "label": "xy"[n % 7 % 2]} for n in range(40)])
    views.show("label_errors", label_errors(request, Events()), as_json=False)
    assert "little better than chance" in capsys.readouterr().out


def test_label_views_show_model_figures_and_agreement(capsys: pytest.CaptureFixture[str], desk: Desk) -> None:
    from inhouse.cli import views

    def answer(body: dict[str, Any], number: int) -> str:
        return "nonsense" if "hello" in str(body["messages"]) else '{"label": "refund"}'

    with chat_server(answer) as server:
        ask = {"endpoint": {"base_url": server.url, "model": "m"}}
        desk.rows([*ROWS, {"text": "give it back", "label": "delivery"}])
        desk.project(label={"sources": "rows.jsonl", "rules": RULES, "ask": ask})
        views.show("labelled", desk.label(), as_json=False)
    shown = capsys.readouterr().out
    assert "the model and given labels agree on 50.0%" in shown and "kappa" in shown
    assert "1 rows got no usable answer" in shown and "nonsense" in shown


def test_data_label_help_names_the_command_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "label", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "data label errors" in shown and "--review" in shown
    assert main(["data", "review"]) == 2
    assert main(["data", "review", "nothing"]) == 2
