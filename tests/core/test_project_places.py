"""Where a mistake in a project file is said to be, and what is suggested: by its place, of the real sections."""

from __future__ import annotations

from pathlib import Path

import pytest

from inhouse.core.errors import UserError
from inhouse.core.messages import use_language
from inhouse.flow.project import load

HEAD = "version: 1\nname: tiny\nmodel: {base: pypi:unused==1.0}\n"


def refused(folder: Path, data: str, *overrides: str) -> str:
    """What is said of a project with this data section."""
    file = folder / "inhouse.yaml"
    file.write_text(HEAD + data, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load(file, overrides)
    assert caught.value.code.startswith("project.invalid")
    return str(caught.value).replace(str(folder), "")


def test_key_in_the_wrong_section_is_sent_to_the_right_one(tmp_path: Path) -> None:
    said = refused(tmp_path, "data:\n  sources:\n    - {from: a.csv, name: a, fail_above: 0.2}\n")
    assert "inhouse.yaml:6: data.sources.0.fail_above: unknown key; this key stands in: data" in said
    assert "did you mean" not in said
    use_language("zh")
    assert "该键应放在：data" in refused(tmp_path, "data:\n  sources:\n    - {from: a.csv, name: a, fail_above: 0.2}\n")


def test_misspelt_key_is_compared_with_the_keys_of_its_place_only(tmp_path: Path) -> None:
    said = refused(tmp_path, "data:\n  sources: [{from: a.csv, reader: {use: csv, delimter: ';'}}]\n")
    assert "data.sources.0.reader.delimter" in said and "did you mean 'delimiter'" in said
    said = refused(tmp_path, "data:\n  sources: [a.csv]\n  steps: [{use: length, max_word: 3}]\n")
    assert "data.steps.0.max_word: unknown key; did you mean 'max_words'" in said
    said = refused(tmp_path, "data:\n  sources: [a.csv]\n  split: {test: 0.1, min_words: 3}\n")
    assert "did you mean" not in said


def test_one_wrong_item_is_one_problem(tmp_path: Path) -> None:
    said = refused(tmp_path, "data:\n  sources: [{from: a.csv, part: exam}]\n")
    assert "data.sources.0.part" in said and "too short" not in said
    said = refused(tmp_path, "data:\n  sources: []\n")
    assert "data.sources: too short" in said


def test_override_of_a_section_that_the_file_lacks_is_named_whole(tmp_path: Path) -> None:
    said = refused(tmp_path, "data:\n  sources: [a.csv]\n", "data.split.test=1.2")
    assert said.startswith("On the command line: data.split.test: must be < 1")
    said = refused(tmp_path, "data:\n  sources: [a.csv]\n  splitt: {}\n", "data.split={test: 1.2}", "data.x=1")
    assert "On the command line: data.split.test: must be < 1" in said and "line: data.x: unknown key" in said
    assert "inhouse.yaml:6: data.splitt: unknown key" in said


def test_setting_of_another_operator_is_told_whose_it_is(tmp_path: Path) -> None:
    data = "data: {sources: [a.csv]}\ntrain: {method: {use: lora, r: 4}}\n"
    said = refused(tmp_path, data, "train.method.use=prompt")
    assert "inhouse.yaml:5: train.method.r: prompt has no such setting; it is one of: lora, qlora" in said
    said = refused(tmp_path, "data:\n  sources: [a.csv]\n  steps: [{use: length, actions: {}}]\n")
    assert "length has no such setting; it is one of: pii" in said


def test_tags_and_marks_of_the_checker_are_not_shown(tmp_path: Path) -> None:
    said = refused(tmp_path, "data:\n  sources: [a.csv]\n  steps: [{use: pii, actions: {EMAIL: mask}}]\n")
    assert "data.steps.0.actions.EMAIL: " in said and "[key]" not in said
    said = refused(tmp_path, "data:\n  sources: [a.csv]\n  steps: [{use: length, min_words: 9, max_words: 2}]\n")
    assert "data.steps.0: nothing is at least 9" in said


def test_missing_key_is_still_named(tmp_path: Path) -> None:
    assert "data.sources: this key is missing" in refused(tmp_path, "data: {steps: [length]}\n")
