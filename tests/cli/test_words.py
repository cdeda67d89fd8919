"""The command line in the user's language, down to the library's own words."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from inhouse.cli.main import main

ENGLISH = re.compile(
    r"Usage|Options:|Commands:|PROJECT|SECTION|FOLDER|Missing|No such|Show this message|Field required|Got unexpected"
    r"|Invalid value|Try "
)


@pytest.mark.parametrize(
    ("words", "english", "chinese"),
    [
        (["data", "why"], "ROW is missing", "缺少 行"),
        (["data", "lsit"], "there is no command 'lsit'; did you mean 'list'?", "没有命令 'lsit'；是否想写 'list'？"),
        (["data", "list", "--ofline"], "there is no option --ofline", "没有选项 --ofline"),
        (["data", "list", "more"], "more words than this command takes: more", "参数过多：more"),
        (["data", "check", "--rows", "many"], "--rows: expected a whole number", "--rows：应为整数"),
        (["data", "check", "--rows", "900"], "--rows: must be <= 100", "--rows: 取值必须 <= 100"),
        (["data", "check", "--rows"], "the option --rows is not used so", "选项 --rows 的用法有误"),
        (
            ["data", "export", "v1", "x", "--format", "csv"],
            "--format: expected one of: parquet, jsonl",
            "--format：应为",
        ),
        (["data", "review", "next"], "--reviewer is missing", "缺少 --reviewer"),
    ],
)
def test_mistakes_are_told_in_the_users_language(
    words: list[str], english: str, chinese: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--lang", "en"] if words[-1] != "--rows" else ["--lang", "en", *words]) == 2
    assert english in capsys.readouterr().err
    assert main([*words, "--lang", "zh"] if words[-1] != "--rows" else ["--lang", "zh", *words]) == 2
    said = capsys.readouterr().err
    assert chinese in said and not ENGLISH.search(said), said


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["data"],
        ["data", "why"],
        ["data", "label"],
        ["data", "export"],
        ["data", "review", "next"],
        ["run"],
        ["demo"],
    ],
)
def test_help_is_chinese_throughout(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--help", "--lang", "zh"]) == 0
    shown = capsys.readouterr().out
    assert "用法：inhouse" in shown and "选项：" in shown and "显示帮助并退出" in shown
    assert not ENGLISH.search(shown) and "[required]" not in shown and "[OPTIONS]" not in shown
    assert main([*words, "--help", "--lang", "en"]) == 0
    assert "Usage: inhouse" in capsys.readouterr().out


def test_a_run_without_this_terminal_has_no_option_that_needs_one(capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--ask", "--dry-run"):
        assert main(["jobs", "submit", option, "--lang", "en"]) == 2
        assert f"there is no option {option}" in capsys.readouterr().err
    assert main(["jobs", "submit", "--help", "--lang", "en"]) == 0
    assert "--until" in capsys.readouterr().out


def test_what_a_setting_breaks_is_told_in_chinese(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "inhouse.yaml"
    for written, told in (
        ("data: {sources: [a.csv], split: {test: 0.6, valid: 0.5}}", "没有数据可供训练"),
        ("data: {sources: [a.csv], steps: [{use: length, min_chars: 9, max_chars: 8}]}", "没有值既不小于 9 又不大于 8"),
        ("release: {gates: [{figure: tuned.accuracy}]}", "关卡需要 at_least 或 at_most"),
    ):
        file.write_text(f"version: 1\nname: a\n{written}\n")
        assert main(["run", str(file), "--dry-run", "--lang", "zh"]) == 2
        assert told in capsys.readouterr().err
