"""The steps that a project asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from inhouse.api.examples import example_project
from inhouse.core.artifact import Artifact, Licence
from inhouse.core.errors import UserError
from inhouse.flow.plan import operator_versions, pipeline, recipe, until
from inhouse.flow.project import Project, load, schema

EXAMPLE = load(example_project())


def without(*sections: str, **changes: Any) -> Project:
    return EXAMPLE.model_copy(update={**dict.fromkeys(sections), **changes})


def names(project: Project) -> list[str]:
    return [node.name for node in pipeline(project)]


def test_pipeline_of_a_whole_project_has_every_step_after_its_inputs() -> None:
    nodes = pipeline(EXAMPLE)
    assert names(EXAMPLE) == [
        "base", "dataset", "tuned", "exported", "base_predictions", "tuned_predictions", "exported_predictions",
        "report", "release",
    ]  # fmt: skip
    for index, node in enumerate(nodes):
        assert set(node.inputs.values()) <= {n.name for n in nodes[:index]}
    engines = {n.name: n.params.engine for n in nodes if n.name.endswith("_predictions")}  # type: ignore[attr-defined]
    assert engines["base_predictions"] == "transformers" and engines["exported_predictions"] == "llamacpp"


def test_until_a_room_takes_each_needed_step_once() -> None:
    nodes = until(pipeline(EXAMPLE), "compress")
    assert [n.name for n in nodes] == ["base", "dataset", "tuned", "exported"]
    assert [n.name for n in until(pipeline(EXAMPLE), "evaluate")] == names(EXAMPLE)[:-1]


def test_pipeline_leaves_out_what_the_file_leaves_out() -> None:
    assert names(without("data", "train", "evaluate", "compress", "release")) == ["base"]
    assert names(without("train", "compress", "release")) == ["base", "dataset", "base_predictions", "report"]
    assert "exported" not in names(without("compress"))
    (release,) = [n for n in pipeline(without("compress")) if n.name == "release"]
    assert release.inputs["model"] == "tuned"


def test_project_without_a_model_builds_data_and_nothing_else(tmp_path: Path) -> None:
    assert names(without("model", "train", "evaluate", "compress", "release")) == ["dataset"]
    file = tmp_path / "inhouse.yaml"
    file.write_text("name: corpus\ndata: {sources: raw}\n")
    assert [node.name for node in until(pipeline(load(file)), "data")] == ["dataset"]
    with pytest.raises(UserError) as caught:
        pipeline(without("model", "data", "train", "evaluate", "compress", "release"))
    assert caught.value.code == "plan.nothing"


def test_pipeline_measures_a_remote_model_through_its_endpoint() -> None:
    assert EXAMPLE.model is not None
    remote = EXAMPLE.model.model_copy(update={"base": "https://example.org/v1"})
    nodes = pipeline(without("train", "compress", "release", model=remote))
    assert nodes[2].params.engine == "remote"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("gone", "section", "missing"),
    [(("data",), "train", "data"), (("data", "train", "compress", "release"), "evaluate", "data"),
     (("model",), "train", "model"), (("model", "train", "compress", "release"), "evaluate", "model"),
     (("train",), "compress", "train"), (("evaluate",), "release", "evaluate")],
)  # fmt: skip
def test_pipeline_without_a_needed_section_names_both(gone: tuple[str, ...], section: str, missing: str) -> None:
    with pytest.raises(UserError) as caught:
        pipeline(without(*gone))
    assert caught.value.facts == {"section": section, "missing": missing}


def artifact(name: str, *terms: Licence) -> Artifact:
    return Artifact(
        id=name, kind="model", stage="select", node="base", stage_version="1", recipe=name, params={}, created="",
        stated=terms,
    ).inheriting(())  # fmt: skip


def test_recipe_of_a_release_changes_with_the_terms_of_its_inputs() -> None:
    release, tuned = pipeline(EXAMPLE)[-1], pipeline(EXAMPLE)[2]
    plain, stated = artifact("a"), artifact("a", Licence(subject="a", spdx="MIT", source="x"))
    assert recipe(release, {"base": plain}, Path())[0] != recipe(release, {"base": stated}, Path())[0]
    assert recipe(tuned, {"base": plain}, Path())[0] == recipe(tuned, {"base": stated}, Path())[0]


def test_recipe_changes_with_params_inputs_and_seed_only() -> None:
    tuned = pipeline(EXAMPLE)[2]
    inputs = {role: artifact(role) for role in ("base", "dataset")}
    key, _, used = recipe(tuned, inputs, Path())
    assert recipe(tuned, inputs, Path())[0] == key
    assert set(used) == {"inhouse.train.methods.lora", "inhouse.train.objectives.sft"}
    assert recipe(tuned, {**inputs, "base": artifact("c")}, Path())[0] != key
    assert recipe(pipeline(without(seed=8))[2], inputs, Path())[0] != key
    faster = EXAMPLE.train.model_copy(update={"learning_rate": 1e-5})  # type: ignore[union-attr]
    assert recipe(pipeline(without(train=faster))[2], inputs, Path())[0] != key
    assert recipe(pipeline(without(use="internal"))[2], inputs, Path())[0] == key


def test_operators_are_found_wherever_they_stand_in_params() -> None:
    assert EXAMPLE.data is not None
    found = {name.rpartition(".")[2] for name, _ in operator_versions(EXAMPLE.data)}
    assert {"csv", "normalize_space", "truncate", "length", "exact_dedup", "balance"} <= found


def test_schema_describes_every_section_and_operator() -> None:
    document = schema()
    assert set(document["properties"]) >= {"model", "data", "train", "evaluate", "compress", "release", "serve"}
    text = str(document)
    for operator in ("exact_dedup", "lora", "gguf", "macro_f1", "parquet"):
        assert f"'{operator}'" in text
