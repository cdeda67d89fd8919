"""The command line in the user's language, down to the library's own words."""

from __future__ import annotations

import re

import pytest

from inhouse.cli.main import main

ENGLISH = re.compile(
    r"Usage|Options:|Missing|No such|Show this message|Field required|Got unexpected|Invalid value|Try "
)


@pytest.mark.parametrize(
    ("words", "english", "chinese"),
    [
        (["data", "why"], "ROW is missing", "缺少 ROW"),
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
    "words", [[], ["data"], ["data", "why"], ["data", "label"], ["data", "review", "next"], ["run"]]
)
def test_help_is_chinese_throughout(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--help", "--lang", "zh"]) == 0
    shown = capsys.readouterr().out
    assert "用法：" in shown and "选项" in shown and "显示帮助并退出" in shown
    assert not ENGLISH.search(shown) and "[required]" not in shown and "[OPTIONS]" not in shown
    assert main([*words, "--help", "--lang", "en"]) == 0
    assert "Usage: inhouse" in capsys.readouterr().out
