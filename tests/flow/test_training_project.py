"""A whole project with a chain, replay, forgetting and gates, run twice on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from training_project import write_project

from inhouse.core.artifact import Artifact
from inhouse.core.run import Events
from inhouse.core.store import Store
from inhouse.flow.pipeline import pipeline
from inhouse.flow.plan import plan, until
from inhouse.flow.project import Project, load
from inhouse.flow.runner import Run, run
from inhouse.release.evidence import as_markdown

Whole = tuple[Path, dict[str, Artifact]]


def how(folder: Path) -> Run:
    (folder / "job").mkdir(exist_ok=True)
    return Run(Store(folder / "ws"), folder, Events(folder / "job" / "events.jsonl"), offline=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    return folder, run(pipeline(write_project(folder, tiny_llama)), how(folder))


def again(whole: Whole, *overrides: str) -> tuple[Project, dict[str, str]]:
    """What a run of the same project with other settings would make anew, by step."""
    project = load(whole[0], overrides)
    states = {p.node.name: p.state for p in plan(pipeline(project), how(whole[0]).store, whole[0])}
    return project, {name: state for name, state in states.items() if state != "cached"}


def test_same_project_in_another_workspace_has_the_same_loss_curve_and_weights(
    whole: Whole, tiny_llama: Path, tmp_path: Path
) -> None:
    nodes = until(pipeline(write_project(tmp_path, tiny_llama)), "train")
    second = run(nodes, how(tmp_path))
    for name in ("tuned_1", "tuned", "tuned_forgetting"):
        assert second[name].id == whole[1][name].id  # the id hashes every file: adapter, merged weights, tokenizer
        assert second[name].recipe == whole[1][name].recipe
    assert second["tuned"].facts["losses"] == whole[1]["tuned"].facts["losses"]
    assert len(second["tuned"].facts["losses"]) == second["tuned"].facts["steps"]


def test_record_of_a_training_holds_all_that_its_bytes_depend_on(whole: Whole) -> None:
    record, made = whole[1]["tuned"], whole[1]
    assert record.inputs == {
        "base": made["tuned_1"].id, "dataset": made["dataset"].id, "replay": made["general"].id,
    }  # fmt: skip
    assert record.seed == 3 and record.packages["torch"] and record.params["learning_rate"] == 2e-2
    ran_on = record.facts["ran_on"]
    assert {"code", "libraries", "threads", "processor", "device", "machine", "system", "python"} == set(ran_on)
    assert ran_on["threads"] >= 1 and ran_on["libraries"]["torch"] == record.packages["torch"]


def test_training_of_a_chain_starts_from_the_weights_before(whole: Whole) -> None:
    store = how(whole[0]).store
    chained = store.path(whole[1]["tuned"].id) / "README.md"
    assert whole[1]["tuned_1"].id in chained.read_text()


def test_replayed_rows_are_the_asked_share_and_counted(whole: Whole) -> None:
    facts = whole[1]["tuned"].facts
    own = facts["rows"] - facts["too_long"]
    assert facts["replay"]["samples"] == round(own * 0.2 / 0.8)
    assert facts["replay"]["share"] == pytest.approx(0.2, abs=0.5 / own)
    assert whole[1]["tuned_1"].facts["replay"] is None


def test_report_has_the_figures_of_the_training(whole: Whole) -> None:
    figures = whole[1]["report"].facts["figures"]
    facts, forgotten = whole[1]["tuned"].facts, whole[1]["tuned_forgetting"].facts["forgetting"]
    assert figures["training.loss"] == facts["losses"][-1]["loss"]
    assert figures["training.trainable_share"] == facts["trainable_share"]
    assert figures["training.parity.merged"] == facts["parity"]["merged"]
    assert figures["training.forgetting"] == forgotten["change"]
    assert forgotten["change"] == pytest.approx(forgotten["after"] - forgotten["before"], abs=2e-6)
    assert forgotten["low"] <= forgotten["change"] <= forgotten["high"]
    page = how(whole[0]).store.path(whole[1]["report"].id) / "measured" / "report.json"
    assert json.loads(page.read_text())["figures"]["training.forgetting"]["low"] == forgotten["low"]


def test_release_that_forgot_more_than_its_gate_allows_fails(whole: Whole) -> None:
    assert whole[1]["release"].facts["passed"]
    measured = whole[1]["report"].facts["figures"]["training.forgetting"]
    project, anew = again(whole, f"release.gates.0.at_most={measured - 0.001}")
    assert anew == {"release": "run"}
    verdicts = run(pipeline(project), how(whole[0]))["release"].facts
    assert not verdicts["passed"]
    assert verdicts["failed"] == [f"training.forgetting <= {measured - 0.001:g}"]
    kept, _ = again(whole, f"release.gates.0.at_most={measured + 0.001}")
    assert run(pipeline(kept), how(whole[0]))["release"].facts["passed"]


def test_gate_on_forgetting_that_nobody_measured_fails(whole: Whole) -> None:
    project, anew = again(whole, "train.1.forgetting=null")
    assert set(anew) == {"report", "release"}
    assert run(pipeline(project), how(whole[0]))["release"].facts["failed"] == ["training.forgetting <= 100"]


def test_other_rows_of_the_general_set_are_measured_without_training_again(whole: Whole) -> None:
    _, anew = again(whole, "train.1.forgetting.rows=4")
    assert set(anew) == {"tuned_forgetting", "report", "release"}
    _, anew = again(whole, "train.0.max_steps=3")
    assert {"tuned_1", "tuned", "tuned_forgetting"} <= set(anew)
    assert not {"base", "general", "dataset", "base_predictions"} & set(anew)


def test_release_carries_the_terms_and_sources_of_every_dataset(whole: Whole) -> None:
    folder = how(whole[0]).store.path(whole[1]["release"].id)
    assert {"talk", "news"} <= {licence.subject for licence in whole[1]["release"].licences}
    evidence = json.loads((folder / "measured" / "evidence.json").read_text())
    assert {"news", "general.talk"} <= set(evidence["sources"])
    assert evidence["asked"]["stages"]["tuned_1"]["params"]["dataset"] == "general"
    assert evidence["training"]["replay"]["samples"] > 0
    assert "general.talk" in as_markdown(evidence)
