"""The report: figures side by side, paired differences, identity, the page, the table."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from known_answers import KnownAnswers, context, make_rows, notes, record

from inhouse.core.errors import UserError
from inhouse.core.fingerprint import identity, list_files
from inhouse.core.gate import Figure, Gate, judge
from inhouse.core.protocols import Context, Input
from inhouse.evaluate import report, stage
from inhouse.evaluate.details import loss_curve, wrong_answers
from inhouse.evaluate.page import loss_plot, main_figure, render_page
from inhouse.evaluate.predictions import Prediction, Predictions
from inhouse.evaluate.settings import EvaluateNode
from inhouse.evaluate.table import NONE, cell, duration, points, size

Make = Callable[..., Input]
Measure = Callable[..., Input]
EVIL = "<script>alert(1)</script>"
PARITY = {"figures": {"parity.greedy_agreement": {"value": 0.9375, "n": 16}, "parity.odd_one": {"value": 1.0}}}


@pytest.fixture
def measure(tmp_path: Path, dataset: Make, model: Input, monkeypatch: pytest.MonkeyPatch) -> Measure:
    """Measure a model whose first `right` answers are right; the others are `wrong`."""

    def make(name: str, right: int, wrong: str = EVIL, count: int = 30, labelled: bool = True) -> Input:
        rows = make_rows(count)
        engine = KnownAnswers(
            rows,
            lambda at, wanted: wanted if at < right else wrong,
            lambda at, wanted, choice: -1.0 if (choice == wanted) == (at < right + 5) else -2.0,
        )
        monkeypatch.setattr(stage, "open_engine", lambda *asked: engine)
        made = context(tmp_path, name, model=model, dataset=dataset(count, labelled))
        stage.run(EvaluateNode(engine="transformers"), made)
        return Input(record(identity=name.ljust(24, "0"), kind="predictions"), made.out)

    return make


def write_report(tmp_path: Path, name: str = "report", **inputs: Input) -> Context:
    made = context(tmp_path, name, **inputs)
    report.run(report.ReportParams(name="desk & routing"), made)
    return made


def full(made: Context) -> dict[str, Any]:
    return json.loads((made.out / "measured" / "report.json").read_text(encoding="utf-8"))


@pytest.fixture
def parity(tmp_path: Path) -> Input:
    folder = tmp_path / "compressed"
    folder.mkdir()
    (folder / "parity.json").write_text(json.dumps(PARITY), encoding="utf-8")
    return Input(record(), folder)


@pytest.fixture
def three(tmp_path: Path, measure: Measure, parity: Input) -> Context:
    losses = [{"step": at, "loss": 3.0 / at} for at in range(1, 20)]
    return write_report(
        tmp_path,
        base=measure("base", 0),
        tuned=measure("tuned", 24),
        exported=measure("exported", 23),
        parity=parity,
        training=Input(record(facts={"losses": losses}), tmp_path),
    )


def test_report_of_three_models_has_figures_differences_parity_and_sizes(three: Context) -> None:
    figures = report.load_figures(three.out)
    assert figures["base.accuracy"].value == 0.0
    assert figures["tuned.accuracy"].value == 0.8
    gain = figures["tuned_vs_base.accuracy"]
    assert gain.value == 0.8 and gain.low is not None and 0.6 < gain.low < 0.8 and gain.n == 30
    assert figures["exported_vs_tuned.accuracy"].value == pytest.approx(-1 / 30, abs=1e-6)
    assert figures["tuned_vs_base.macro_f1"].value == figures["tuned.macro_f1"].value
    assert figures["parity.greedy_agreement"] == Figure(value=0.9375, n=16)
    assert figures["exported.bytes"].value == 5_000_000
    assert figures["base.constrained_accuracy"].value == pytest.approx(5 / 30, abs=1e-6)
    for name in ("tokens_per_s", "latency_p50_ms", "ttft_p50_ms", "peak_memory_bytes"):
        assert f"tuned.{name}" in figures


def test_report_identity_holds_nothing_that_was_timed(three: Context, tmp_path: Path) -> None:
    inside = json.loads((three.out / "report.json").read_text(encoding="utf-8"))
    assert not [name for name in inside["figures"] if re.search(r"_ms$|_per_s$|memory|wall", name)]
    before = identity("report", list_files(three.out))
    speed = three.inputs["tuned"].path / "measured" / "speed.json"
    speed.write_text(speed.read_text(encoding="utf-8").replace("500.0", "7.0"), encoding="utf-8")
    again = write_report(tmp_path, "again", **three.inputs)
    assert identity("report", list_files(again.out)) == before
    assert report.load_figures(again.out) != report.load_figures(three.out)


def test_report_figures_without_the_measured_folder_are_the_deterministic_ones(three: Context) -> None:
    (three.out / "measured" / "report.json").unlink()
    figures = report.load_figures(three.out)
    assert "tuned.accuracy" in figures and "tuned.tokens_per_s" not in figures


def test_gate_on_a_figure_of_a_model_that_was_not_measured_fails(tmp_path: Path, measure: Measure) -> None:
    made = write_report(tmp_path, base=measure("base", 10))
    verdict = judge(Gate(figure="tuned.accuracy", at_least=0.0), report.load_figures(made.out))
    assert not verdict.passed and verdict.reason == "missing"


def test_report_of_one_model_has_no_differences(tmp_path: Path, measure: Measure) -> None:
    made = write_report(tmp_path, exported=measure("exported", 10))
    assert not [name for name in full(made)["figures"] if "_vs_" in name]
    assert "The exported model answers 33.3% of 30" in page_text(made)


def test_report_of_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        write_report(tmp_path)
    assert raised.value.code == "evaluate.no_models"


def test_report_of_models_on_different_rows_is_refused(tmp_path: Path, measure: Measure) -> None:
    with pytest.raises(UserError) as raised:
        write_report(tmp_path, base=measure("base", 3, count=12), tuned=measure("tuned", 3, count=15))
    assert raised.value.code == "evaluate.different_rows"


def test_report_of_models_that_read_other_tokens_says_so(tmp_path: Path, measure: Measure) -> None:
    base, tuned = measure("base", 3), measure("tuned", 9)
    path = tuned.path / "scores.json"
    changed = json.loads(path.read_text(encoding="utf-8")) | {"tokens_hash": "f" * 32}
    path.write_text(json.dumps(changed), encoding="utf-8")
    made = write_report(tmp_path, base=base, tuned=tuned)
    assert full(made)["same_tokens"] == {"tuned_vs_base": False}
    assert notes(made) == ["evaluate.different_tokens"]


def test_report_without_predictions_file_names_it(tmp_path: Path) -> None:
    folder = tmp_path / "nothing"
    folder.mkdir()
    with pytest.raises(UserError) as raised:
        write_report(tmp_path, base=Input(record(), folder))
    assert raised.value.code == "evaluate.no_predictions"


@pytest.mark.parametrize("text", ["{", "{}", '{"figures": {"parity.x": {"value": "high"}}}', '{"figures": 3}'])
def test_report_with_damaged_parity_is_refused(text: str, tmp_path: Path, measure: Measure, parity: Input) -> None:
    (parity.path / "parity.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as raised:
        write_report(tmp_path, base=measure("base", 3, count=6), parity=parity)
    assert raised.value.code == "evaluate.bad_report"


def test_report_with_a_compress_artifact_without_parity_has_no_parity(tmp_path: Path, measure: Measure) -> None:
    made = write_report(tmp_path, base=measure("base", 3, count=6), parity=Input(record(), tmp_path))
    assert not [name for name in full(made)["figures"] if name.startswith("parity.")]


@pytest.mark.parametrize("text", [None, "{", "[]", '{"other": 1}'])
def test_load_figures_of_a_damaged_report_is_a_clear_error(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "report.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as raised:
        report.load_figures(tmp_path)
    assert raised.value.code == "evaluate.bad_report" and "report.json" in str(raised.value)


class Page(HTMLParser):
    """Tags, addresses and text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.scripts: list[str] = []
        self.inside = ""
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = tag
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "srcset")]
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        (self.scripts if self.inside == "script" else self.text).append(data)

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""


def read_page(made: Context) -> Page:
    page = Page()
    page.feed((made.out / "measured" / "report.html").read_text(encoding="utf-8"))
    return page


def page_text(made: Context) -> str:
    return " ".join(" ".join(read_page(made).text).split())


def test_page_loads_nothing_and_runs_only_its_own_script(three: Context) -> None:
    page = read_page(three)
    source = (three.out / "measured" / "report.html").read_text(encoding="utf-8")
    assert page.addresses == [] and "url(" not in source and "@import" not in source
    assert len([script for script in page.scripts if script.strip()]) == 1
    assert "alert(1)" not in "".join(page.scripts)
    assert "default-src 'none'" in source


def test_page_shows_model_output_as_text(three: Context) -> None:
    assert EVIL in "".join(read_page(three).text)


def test_page_says_what_was_found_in_both_languages(three: Context) -> None:
    text = page_text(three)
    assert "The tuned model answers 80.0% of 30 unseen questions correctly" in text
    assert "the model it started from 0.0%, or 16.7% when it may only choose among the labels" in text
    assert "微调后的模型在 30 道未见过的问题上答对 80.0%" in text
    assert "desk & routing" in text
    for heading in ("Summary", "结果汇总", "Training loss", "Parity of the exported model", "How it was measured"):
        assert heading in text


def test_page_is_the_same_for_the_same_report(three: Context) -> None:
    assert render_page(full(three)) == render_page(full(three))


def test_page_of_a_dataset_without_labels_shows_exact_match_and_no_matrix(tmp_path: Path, measure: Measure) -> None:
    made = write_report(tmp_path, base=measure("base", 3, labelled=False), tuned=measure("tuned", 30, labelled=False))
    text = page_text(made)
    assert "Exact match" in text and "Which labels are confused" not in text
    assert "The tuned model answers 100.0%" in text
    assert "A sample of wrong answers" not in text


def test_page_of_many_labels_lists_the_commonest_confusions(three: Context) -> None:
    found = full(three)
    labels = [f"label {at}" for at in range(30)]
    counts = [[int(at == given) * 3 + int(given == 30) for given in range(31)] for at in range(30)]
    scored = {label: {"precision": 1.0, "recall": 0.75, "f1": 0.86, "rows": 4.0} for label in labels}
    found["confusion"] = {role: {"labels": labels, "counts": counts} for role in found["models"]}
    found["by_label"] = dict.fromkeys(found["models"], scored)
    assert "with so many labels a matrix cannot be read" in render_page(found)


def test_page_with_nothing_but_perplexity_says_how_many_questions(three: Context) -> None:
    found = full(three)
    found["figures"] = {name: value for name, value in found["figures"].items() if name.endswith("perplexity")}
    assert "Measured on 30 test questions." in render_page(found)
    assert main_figure({}) == "perplexity"


def test_report_confusion_counts_answers_without_a_label_in_the_last_column(three: Context) -> None:
    tuned = full(three)["confusion"]["tuned"]
    assert tuned["labels"] == ["crude", "earn", "grain"]
    assert tuned["counts"] == [[8, 0, 0, 2], [0, 8, 0, 2], [0, 0, 8, 2]]
    assert full(three)["by_label"]["tuned"]["crude"] == {"precision": 1.0, "recall": 0.8, "f1": 0.8889, "rows": 10.0}


def test_wrong_answers_leave_out_the_shared_instruction_and_start_at_the_smallest_id() -> None:
    rows = tuple(
        Prediction(id=name, question=f"Which?\n{name}", gold="a", label="a", text="b", predicted=None)
        for name in ("3", "1", "2")
    )
    sample = wrong_answers(Predictions(rows, ("a",)), "generate", 2)
    assert [(entry["id"], entry["question"]) for entry in sample] == [("1", "1"), ("2", "2")]
    alone = wrong_answers(Predictions(rows[:1], ("a",)), "constrained", 5)
    assert alone == [{"id": "3", "question": "Which?\n3", "wanted": "a", "answer": None}]


def test_loss_curve_leaves_out_what_is_no_number_and_needs_two_points() -> None:
    facts = {"losses": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": float("nan")}]}
    assert loss_curve(facts) == [[1, 2.0]]
    assert loss_curve({}) == [] and loss_plot([[1, 2.0]]) is None


def test_table_has_a_line_per_figure_and_a_cell_per_model(three: Context) -> None:
    lines = {row.name: row for row in report.render_table(full(three))}
    assert lines["accuracy"].cells["tuned"] == "80.0% (62.7-90.5)"
    assert lines["accuracy"].title == "Accuracy"
    assert lines["constrained_accuracy"].cells["base"].startswith("16.7% (")
    assert lines["bytes"].cells["exported"] == "5.0 MB"
    assert lines["latency_p50_ms"].cells["base"] == "500 ms"
    assert set(lines["macro_f1"].cells) == {"base", "tuned", "exported"}
    chinese = {row.name: row.title for row in report.render_table(full(three), "zh")}
    assert chinese["accuracy"] == "准确率"


def test_table_leaves_out_what_no_model_has(three: Context) -> None:
    found = full(three)
    found["figures"] = {name: value for name, value in found["figures"].items() if "perplexity" not in name}
    del found["figures"]["base.accuracy"]
    lines = {row.name: row for row in report.render_table(found)}
    assert "perplexity" not in lines and lines["accuracy"].cells["base"] == NONE


def test_cells_carry_their_unit() -> None:
    assert size(2.5e9) == "2.50 GB" and duration(12_340) == "12.3 s"
    assert cell("tokens_per_s", Figure(value=3.14)) == "3.1" and cell("tokens_per_s", Figure(value=314)) == "314"
    assert cell("perplexity", Figure(value=2.345)) == "2.35" or cell("perplexity", Figure(value=2.345)) == "2.34"
    assert cell("perplexity", Figure(value=234.5, low=200.0, high=300.0)) == "234 (200-300)"
    assert points(Figure(value=-0.01)) == "-1.0"


def test_external_of_a_report_is_nothing(tmp_path: Path) -> None:
    assert report.external(report.ReportParams(), tmp_path) == {}
