"""Project files: lines, 'did you mean', overrides."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from inhouse.core.errors import UserError
from inhouse.core.messages import use_language
from inhouse.core.params import OneOf, Params
from inhouse.core.project import load_project


class Train(Params):
    learning_rate: float = Field(1e-4, gt=0)
    epochs: int = Field(1, le=9)
    shape: str = Field("abc", pattern="^[a-z]+$", min_length=2, max_length=4)
    fast: bool = False
    sizes: tuple[int, ...] = Field((), max_length=2)


class Sample(Params):
    name: str
    mode: Literal["fast", "slow"] = "fast"
    train: Train = Train()
    steps: tuple[Annotated[Params, OneOf("cleaner")], ...] = ()


def write(folder: Path, text: str) -> Path:
    path = folder / "inhouse.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_load_valid_file_gives_frozen_model(tmp_path: Path) -> None:
    project = load_project(write(tmp_path, "name: a\ntrain: {epochs: 3}\n"), Sample)
    assert project.name == "a" and project.train.epochs == 3
    with pytest.raises(ValueError, match="frozen"):
        project.name = "b"  # type: ignore[misc]


def test_load_unknown_key_names_line_and_near_key(tmp_path: Path) -> None:
    path = write(tmp_path, "name: a\ntrain:\n  epochs: 2\n  learning_rte: 0.1\n")
    with pytest.raises(UserError) as caught:
        load_project(path, Sample)
    assert caught.value.code == "project.invalid"
    assert caught.value.facts["line"] == 4
    assert "did you mean 'learning_rate'" in str(caught.value)
    assert str(path) in str(caught.value)


def test_load_several_mistakes_lists_each_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, "name: a\nmode: quick\ntrain:\n  epochs: many\n")
    with pytest.raises(UserError) as caught:
        load_project(path, Sample)
    text = str(caught.value)
    assert f"{path}:2: mode" in text and f"{path}:4: train.epochs" in text


def test_load_missing_key_points_at_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_project(write(tmp_path, "mode: fast\n"), Sample)
    assert caught.value.facts["where"] == "name" and caught.value.facts["line"] == 1


def test_load_unknown_operator_suggests_a_near_one(tmp_path: Path) -> None:
    path = write(tmp_path, "name: a\nsteps:\n  - normalize_space\n  - lenght\n")
    with pytest.raises(UserError) as caught:
        load_project(path, Sample)
    assert caught.value.facts["line"] == 4 and "did you mean 'length'" in str(caught.value)


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ("[3]", "expected an operator name"),
        ("[{min_words: 2}]", "'use' is missing"),
        ("[{use: length, min_word: 2}]", "min_words"),
    ],
)
def test_load_malformed_operator_says_what_is_wrong(tmp_path: Path, steps: str, said: str) -> None:
    with pytest.raises(UserError, match="steps") as caught:
        load_project(write(tmp_path, f"name: a\nsteps: {steps}\n"), Sample)
    assert said in str(caught.value)


def test_load_operator_by_name_equals_mapping(tmp_path: Path) -> None:
    short = load_project(write(tmp_path, "name: a\nsteps: [normalize_space]\n"), Sample)
    long = load_project(write(tmp_path, "name: a\nsteps: [{use: normalize_space}]\n"), Sample)
    assert short == long
    assert Sample(name="a", steps=short.steps) == short


def test_load_absent_file_says_how_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="inhouse init"):
        load_project(tmp_path / "none.yaml", Sample)


@pytest.mark.parametrize(
    "text", ["name: [a\n", "- a\n", "", "name: a\n\tb: 1\n", "name: \x00\n", "a: *x\n", "x" + "[" * 5000]
)
def test_load_broken_yaml_names_the_file(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        load_project(path, Sample)
    assert caught.value.code == "project.yaml" and str(path) in str(caught.value)


def test_load_other_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "inhouse.yaml"
    path.write_bytes("name: 项目".encode("gb18030"))
    with pytest.raises(UserError, match="UTF-8"):
        load_project(path, Sample)


def test_override_sets_nested_value_and_reads_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, "name: a\nsteps: [normalize_space, length]\n")
    project = load_project(path, Sample, ["train.learning_rate=2e-4", "steps.1.min_words=3", "name=b"][:1])
    assert project.train.learning_rate == 2e-4
    changed = load_project(path, Sample, ["steps.1=normalize_space", "name=b"])
    assert changed.name == "b" and changed.steps[0] == changed.steps[1]


def test_override_reaches_into_an_operator_in_its_short_form(tmp_path: Path) -> None:
    path = write(tmp_path, "name: a\nsteps: [length, {use: truncate, max_words: 9}]\n")
    changed = load_project(path, Sample, ["steps.0.min_words=3", "steps.1.max_words=5"])
    assert [step.model_dump(exclude_defaults=True) for step in changed.steps] == [{"min_words": 3}, {"max_words": 5}]


@pytest.mark.parametrize(
    "override", ["train", "=3", "steps.9=normalize_space", "name.x.y=1", "steps.x=1", "name=[", "name=&a [*a]"]
)
def test_override_that_fits_nothing_is_refused(tmp_path: Path, override: str) -> None:
    path = write(tmp_path, "name: a\nsteps: [normalize_space]\n")
    with pytest.raises(UserError) as caught:
        load_project(path, Sample, [override])
    assert caught.value.code == "project.override"


LAUGHS = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 8)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("name: a\na: &a [*a]\n", 2, "alias contains itself"),
        (LAUGHS, 6, "more than 100000 values"),
        ("name: a\ntrain:\n  epochs: 1\n  epochs: 2\n", 4, "'epochs' stands twice"),
    ],
)
def test_load_runaway_alias_or_repeated_key_is_refused(tmp_path: Path, text: str, line: int, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        load_project(write(tmp_path, text), Sample)
    assert caught.value.code == "project.yaml" and caught.value.facts["line"] == line


def test_load_shared_alias_is_read(tmp_path: Path) -> None:
    text = "name: a\nsteps: [&s {use: normalize_space}, *s]\n? [1]\n: 2\n"
    with pytest.raises(UserError, match="unhashable"):
        load_project(write(tmp_path, text), Sample)
    project = load_project(write(tmp_path, text.partition("?")[0]), Sample)
    assert project.steps[0] == project.steps[1]


def refused_in(language: str, path: Path) -> UserError:
    use_language(language)
    try:
        with pytest.raises(UserError) as caught:
            load_project(path, Sample)
    finally:
        use_language("en")
    return caught.value


@pytest.mark.parametrize(
    ("text", "en", "zh"),
    [
        ("mode: fast", "this key is missing", "缺少此项"),
        ("{name: a, zzzz: 1}", "unknown key", "未知的键"),
        ("{name: a, nam: 1}", "did you mean 'name'", "是否想写 'name'"),
        ("{name: 3}", "expected text", "应为文本"),
        ("{name: a, mode: quick}", "expected one of: 'fast', 'slow'", "应为以下之一：'fast', 'slow'"),
        ("{name: a, train: 3}", "a mapping of keys", "键值映射"),
        ("{name: a, train: {epochs: 1.5}}", "a whole number", "应为整数"),
        ("{name: a, train: {epochs: 10}}", "must be <= 9", "取值必须 <= 9"),
        ("{name: a, train: {learning_rate: x}}", "a number", "应为数值"),
        ("{name: a, train: {fast: x}}", "true or false", "应为布尔值"),
        ("{name: a, train: {sizes: x}}", "a list", "应为列表"),
        ("{name: a, train: {sizes: [1, 2, 3]}}", "at most 2", "最多为 2"),
        ("{name: a, train: {shape: x}}", "at least 2", "至少为 2"),
        ("{name: a, train: {shape: ABC}}", "the pattern ^[a-z]+$", "格式 ^[a-z]+$ 不符"),
        ("{name: a, steps: [zzzz]}", "there is no cleaner 'zzzz'", "没有名为 'zzzz' 的 cleaner"),
        ("{name: a, steps: [{use: length, min_words: 5, max_words: 2}]}", "nothing is at least 5", "设置有误"),
    ],
)
def test_problem_is_said_in_the_language_in_use(tmp_path: Path, text: str, en: str, zh: str) -> None:
    for language, said in (("en", en), ("zh", zh)):
        assert said in refused_in(language, write(tmp_path, text)).facts["problem"]


@pytest.mark.parametrize(
    ("text", "line", "en", "zh"),
    [
        ("name: a\nmode： fast\ntrain: {epochs: 1}\n", 2, "'：', where YAML needs ':'", "全角符号“：”"),
        ("name: a\ntrain: {epochs: 1， fast: true}\n", 2, "'，', where YAML needs ','", "“，”"),
        ("name:　a\nmode: fast\n", 1, "where YAML needs ' '", "半角的“ ”"),
        ("name: a\ntrain:\n\tepochs: 1\n", 3, "indented with spaces", "制表符"),
        ("name: a  # 说明：在此\ntrain: [1\n", 3, "expected", "expected"),
        ("name: 你好，世界\nmode: 说明：好\ntrain: [1\n", 4, "expected", "expected"),
    ],
)
def test_sign_of_a_chinese_keyboard_is_named_with_its_line(
    tmp_path: Path, text: str, line: int, en: str, zh: str
) -> None:
    for language, said in (("en", en), ("zh", zh)):
        error = refused_in(language, write(tmp_path, text))
        assert (error.code, error.facts["line"]) == ("project.yaml", line)
        assert said in error.facts["problem"]
