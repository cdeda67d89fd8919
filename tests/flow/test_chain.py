"""Chained trainings, further datasets, other models as inputs: the steps that a project asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from pydantic import Field

from inhouse.core.artifact import Artifact
from inhouse.core.errors import UserError
from inhouse.core.model import ModelParams
from inhouse.core.params import Needs, OnlyHow, Params, needs
from inhouse.flow.pipeline import Node, pipeline
from inhouse.flow.plan import recipe, until
from inhouse.flow.project import Project, load
from inhouse.train.stage import TrainParams

DATA: dict[str, Any] = {"sources": "rows.csv", "split": {"test": 0.3}}
WHOLE: dict[str, Any] = {
    "name": "chain",
    "model": {"base": "smollm2-135m-instruct"},
    "data": DATA,
    "extra_data": {"corpus": DATA, "general": DATA},
    "train": [{"dataset": "corpus"}, {"replay": {"dataset": "general"}, "forgetting": {"dataset": "general"}}],
    "evaluate": {},
    "compress": {},
    "release": {},
}


class Taught(Params):
    """Settings like a distilling objective's: they name a model."""

    teacher: Annotated[ModelParams | None, Needs("teacher", "model")] = None


class Deep(Params):
    """Settings that name inputs below a list and a mapping, and one that decides nothing."""

    listed: tuple[Taught, ...] = ()
    named: dict[str, Taught] = Field(default_factory=dict)
    told: Annotated[Taught, OnlyHow()] = Taught(teacher=ModelParams(base="told"))


def project(**changes: Any) -> Project:
    return Project.model_validate({**WHOLE, **changes})


def steps(made: Project) -> dict[str, Node]:
    return {node.name: node for node in pipeline(made)}


def taught(*models: str | None, base: str = "smollm2-135m-instruct") -> Project:
    """A chain of trainings, each with a method that names this teacher."""
    teachers = [None if name is None else ModelParams(base=name) for name in models]
    sections = tuple(TrainParams().model_copy(update={"method": Taught(teacher=teacher)}) for teacher in teachers)
    return project(model={"base": base}).model_copy(update={"train": sections})


def test_chain_has_a_step_per_training_each_from_the_one_before() -> None:
    made = steps(project())
    assert list(made) == [
        "base", "corpus", "general", "dataset", "tuned_1", "tuned", "tuned_forgetting", "exported",
        "base_predictions", "tuned_predictions", "exported_predictions", "report", "release",
    ]  # fmt: skip
    assert made["tuned_1"].inputs == {"base": "base", "dataset": "corpus"}
    assert made["tuned"].inputs == {"base": "tuned_1", "dataset": "dataset", "replay": "general"}
    assert made["exported"].inputs["base"] == "tuned_1"  # which the last adapter belongs on
    for place, node in enumerate(made.values()):
        assert set(node.inputs.values()) <= set(list(made)[:place])


def test_chain_of_one_is_the_training_itself() -> None:
    one = {"learning_rate": 1e-4}
    assert pipeline(project(train=[one])) == pipeline(project(train=one))


def test_forgetting_compares_the_base_with_every_training_that_asks_and_leaves_out_what_was_trained() -> None:
    asking = {"forgetting": {"dataset": "general"}}
    made = steps(project(train=[{"dataset": "corpus", **asking}, asking]))
    assert made["tuned_1_forgetting"].inputs == {
        "before": "base", "after": "tuned_1", "trained_1": "corpus", "dataset": "general",
    }  # fmt: skip
    assert made["tuned_forgetting"].inputs == {
        "before": "base", "after": "tuned", "trained_1": "corpus", "trained_2": "dataset", "dataset": "general",
    }  # fmt: skip
    assert made["report"].inputs["forgetting"] == "tuned_forgetting"
    assert made["tuned_forgetting"].room == "train"


def test_report_of_a_chain_measures_base_final_and_export_only() -> None:
    made = steps(project())
    assert made["report"].inputs == {
        "base": "base_predictions", "tuned": "tuned_predictions", "exported": "exported_predictions",
        "parity": "exported", "training": "tuned", "forgetting": "tuned_forgetting",
    }  # fmt: skip
    assert "forgetting" not in steps(project(train={}))["report"].inputs


def test_release_of_a_chain_reads_every_dataset_and_model_behind_it() -> None:
    behind = steps(project())["release"].inputs
    names = {"base", "corpus", "general", "dataset", "tuned_1", "tuned", "tuned_forgetting"}
    assert behind == {"model": "exported", "report": "report"} | {name: name for name in names}


def test_export_reads_the_datasets_that_were_learned_to_tell_their_terms_from_the_model_s() -> None:
    assert set(steps(project())["exported"].inputs) == {"base", "tuned", "dataset", "corpus", "general"}
    assert set(steps(project(train={}))["exported"].inputs) == {"base", "tuned", "dataset"}


def test_until_training_takes_the_whole_chain_and_until_data_every_dataset() -> None:
    nodes = pipeline(project())
    assert [n.name for n in until(nodes, "train")] == [
        "base", "corpus", "general", "dataset", "tuned_1", "tuned", "tuned_forgetting",
    ]  # fmt: skip
    assert [n.name for n in until(nodes, "data")] == ["corpus", "general", "dataset"]


def test_training_on_another_dataset_needs_no_data_section() -> None:
    made = project(data=None, train={"dataset": "corpus"}, evaluate=None, compress=None, release=None)
    assert steps(made)["tuned"].inputs == {"base": "base", "dataset": "corpus"}
    only = Project(name="x", extra_data={"corpus": project().extra_data["corpus"]})
    assert list(steps(only)) == ["corpus"]


@pytest.mark.parametrize("train", [{}, {"dataset": "corpus", "forgetting": {"dataset": "data"}}])
def test_training_on_data_without_that_section_names_it(train: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        pipeline(project(data=None, train=train, evaluate=None, compress=None, release=None))
    assert (caught.value.code, caught.value.facts) == ("plan.needs", {"section": "train", "missing": "data"})


@pytest.mark.parametrize(
    "train",
    [{"dataset": "genral"}, {"replay": {"dataset": "genral"}}, {"forgetting": {"dataset": "genral"}}],
)
def test_dataset_that_is_not_there_is_named_with_those_that_are(train: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"'genral'.*data, corpus, general") as caught:
        pipeline(project(train=[train]))
    assert caught.value.code == "plan.no_dataset"


@pytest.mark.parametrize("name", ["base", "data", "model", "dataset", "tuned_1", "tuned_forgetting", "report"])
def test_dataset_called_like_a_step_is_refused(name: str) -> None:
    with pytest.raises(UserError) as caught:
        pipeline(project(extra_data={**WHOLE["extra_data"], name: DATA}))
    assert (caught.value.code, caught.value.facts) == ("plan.name_taken", {"name": name})


def test_teacher_is_a_step_of_its_own_and_an_input_of_the_training() -> None:
    made = steps(taught("qwen3-0.6b"))
    assert made["teacher"].params == ModelParams(base="qwen3-0.6b")
    assert made["teacher"].room == "select"
    assert made["tuned"].inputs == {"base": "base", "dataset": "dataset", "teacher": "teacher"}
    assert "teacher" in made["release"].inputs


def test_distilling_project_file_gets_its_teacher(tmp_path: Path) -> None:
    path = tmp_path / "inhouse.yaml"
    objective = {"use": "distill", "teacher": {"base": "qwen3-0.6b", "licence": "Apache-2.0"}}
    path.write_text(yaml.safe_dump({**WHOLE, "train": [{"objective": objective}, {}]}), encoding="utf-8")
    made = steps(load(path))
    assert made["teacher"].params == ModelParams(base="qwen3-0.6b", licence="Apache-2.0")
    assert made["tuned_1"].inputs["teacher"] == "teacher" and "teacher" not in made["tuned"].inputs


def test_teachers_that_are_equal_are_one_step_and_the_base_may_teach_itself() -> None:
    made = steps(taught("qwen3-0.6b", "qwen3-1.7b", None, "smollm2-135m-instruct", "qwen3-0.6b"))
    assert [name for name in made if name.startswith("teacher")] == ["teacher", "teacher_2"]
    taught_by = [made[name].inputs.get("teacher") for name in ("tuned_1", "tuned_2", "tuned_3", "tuned_4", "tuned")]
    assert taught_by == ["teacher", "teacher_2", None, "base", "teacher"]


def test_needs_are_found_at_any_depth_except_where_only_how_is_said() -> None:
    one, two = (Taught(teacher=ModelParams(base=name)) for name in "ab")
    found = list(needs(Deep(listed=(one, Taught()), named={"x": two})))
    assert found == [(Needs("teacher", "model"), one.teacher), (Needs("teacher", "model"), two.teacher)]
    assert [value for _, value in needs(TrainParams())] == ["data"]
    section = TrainParams.model_validate({"replay": {"dataset": "general"}, "forgetting": {"dataset": "other"}})
    assert [(mark.role, value) for mark, value in needs(section)] == [("dataset", "data"), ("replay", "general")]


class Two(Params):
    """Settings that name two datasets for one input."""

    one: Annotated[str, Needs("replay", "dataset")] = Field("corpus", description="a dataset")


def test_two_datasets_for_one_input_are_refused() -> None:
    section = project(train={"replay": {"dataset": "general"}}).trainings[0]
    made = project().model_copy(update={"train": section.model_copy(update={"method": Two()})})
    with pytest.raises(UserError) as caught:
        pipeline(made)
    assert caught.value.code == "plan.input_twice"
    same = section.model_copy(update={"method": Two(one="general")})
    assert steps(project().model_copy(update={"train": same}))["tuned"].inputs["replay"] == "general"


def artifact(name: str) -> Artifact:
    return Artifact(
        id=name, kind="model", stage="s", node="n", stage_version="1", recipe=name, params={}, created=""
    )  # fmt: skip


def test_asking_for_forgetting_trains_nothing_again_and_asking_for_replay_does() -> None:
    def key(**train: Any) -> str:
        node = steps(project(train=train))["tuned"]
        return recipe(node, {role: artifact(step) for role, step in node.inputs.items()}, Path())[0]

    assert key() == key(forgetting={"dataset": "general"}) == key(forgetting={"dataset": "general", "rows": 5})
    assert key() != key(replay={"dataset": "general"}) != key(replay={"dataset": "general", "share": 0.2})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "inhouse.yaml"
    path.write_text(yaml.safe_dump(WHOLE, sort_keys=False), encoding="utf-8")
    return path


def test_override_of_one_dataset_leaves_another_that_shares_its_anchor(tmp_path: Path) -> None:
    path = tmp_path / "inhouse.yaml"
    path.write_text("name: x\ndata: &d {sources: a.csv, split: {test: 0.3}}\nextra_data: {general: *d}\n")
    made = load(path, ["extra_data.general.split.test=0.5"])
    assert made.data is not None
    assert (made.data.split.test, made.extra_data["general"].split.test) == (0.3, 0.5)  # type: ignore[union-attr]


def test_override_reaches_an_item_of_a_chain(file: Path) -> None:
    made = load(file, ["train.0.learning_rate=2e-4", "train.1.replay.share=0.3", "extra_data.corpus.split.test=0.5"])
    assert made.trainings[0].learning_rate == 2e-4
    assert made.trainings[1].replay is not None and made.trainings[1].replay.share == 0.3
    assert made.trainings[0].replay is None
    with pytest.raises(UserError) as caught:
        load(file, ["train.2.learning_rate=2e-4"])
    assert caught.value.code == "project.override"


@pytest.mark.parametrize(
    ("change", "where", "said"),
    [
        ("train.1.learning_rat=1", "train.1.learning_rat", "learning_rate"),
        ("train.0.learning_rate=-1", "train.0.learning_rate", "> 0"),
        ("train=5", "train", "mapping"),
        ("train=[]", "train", "1"),
        ("extra_data.corpus.stpes=[]", "extra_data.corpus.stpes", "steps"),
        ("extra_data.Big Set={}", "extra_data.Big Set", "match"),
    ],
)
def test_mistake_in_a_chain_is_told_where_it_stands(file: Path, change: str, where: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load(file, [change])
    assert caught.value.facts["where"] == where
    assert said in caught.value.facts["problem"]


def test_mistake_in_a_single_training_names_no_form(tmp_path: Path) -> None:
    path = tmp_path / "inhouse.yaml"
    path.write_text("name: x\ntrain:\n  learning_rat: 1\n", encoding="utf-8")
    with pytest.raises(UserError, match="learning_rate") as caught:
        load(path)
    assert (caught.value.facts["line"], caught.value.facts["where"]) == (3, "train.learning_rat")


def test_a_classifier_is_not_exported() -> None:
    sections = {"train": {"objective": {"use": "classify"}}, "extra_data": {}}
    with pytest.raises(UserError) as error:
        pipeline(project(**sections))
    assert error.value.code == "plan.classifier"
    assert "exported" not in steps(project(**sections, compress=None))


PROMPT = {"method": {"use": "prompt", "num_virtual_tokens": 4}}
LABELS = {"objective": {"use": "classify"}}


@pytest.mark.parametrize(
    ("train", "code"),
    [
        (PROMPT, "plan.unmerged"),
        ([{}, PROMPT], "plan.unmerged"),
        ([PROMPT, {}], "plan.chain_prompt"),
        ([LABELS, {}], "plan.chain_classifier"),
        ([LABELS, LABELS], "plan.classifier"),
    ],
)
def test_what_nothing_can_go_on_from_is_refused_before_anything_is_trained(train: Any, code: str) -> None:
    with pytest.raises(UserError) as error:
        pipeline(project(train=train, extra_data={}))
    assert error.value.code == code
    if code in ("plan.unmerged", "plan.classifier"):
        assert "exported" not in steps(project(train=train, extra_data={}, compress=None))
