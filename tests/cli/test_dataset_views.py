"""What a person sees of a dataset: figures that add up, places that `why` takes, and what to type next."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from inhouse.api.data_check import DataRequest, check_data
from inhouse.api.run import RunRequest, RunResult, run, shortcut
from inhouse.cli import views
from inhouse.cli.main import main
from inhouse.cli.notes import note
from inhouse.core import store
from inhouse.core.messages import use_language
from inhouse.core.protocols import Context
from inhouse.core.run import Events
from inhouse.data import tasks
from inhouse.data.look import first_look
from inhouse.data.settings import DataParams
from inhouse.data.stage import located_of

PROJECT = """
version: 1
name: tiny
model: {base: pypi:unused==1.0}
data:
  sources: [{name: news, from: news.jsonl, licence: MIT}, {name: b, from: b.jsonl, licence: MIT}]
  steps: [normalize_space, {use: length, min_chars: 8}, exact_dedup, counterfactual]
  split: {test: 0.25}
  shape: text
  fail_above: 0.5
  mix: {news: 0.8, b: 0.2, by: rows, total: 150, short: repeat, epochs: 4}
"""
Say = Callable[..., str]


@pytest.fixture(autouse=True)
def no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (tasks, store):
        monkeypatch.setattr(module, "sync_folder", lambda path: None)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    rows: list[Any] = [{"text": f"He said that week {n} was hard for his brother in the city {n}"} for n in range(60)]
    rows += [{"text": "short"}, *[{"text": None}] * 5, *rows[:4]]
    (tmp_path / "news.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    others = [{"text": f"The rate of week {n} was cut by {n * 3} points"} for n in range(50)]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in others))
    (tmp_path / "inhouse.yaml").write_text(PROJECT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    yield tmp_path


def figures(shown: str) -> dict[str, int]:
    found = re.findall(r"^ {1,3}(\S.*?) {2,}([\d,]+) *$", shown, re.M)
    return {name: int(n.replace(",", "")) for name, n in found}


def test_check_figures_add_up_with_augmentation_repeats_and_mix(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = check_data(DataRequest(rows=2), Events())
    views.show("checked", result, as_json=False)
    shown = capsys.readouterr().out
    seen = figures(shown)
    assert seen["made by augmentation"] > 0
    assert seen["read"] + seen["made by augmentation"] == seen["kept"] + seen["dropped"] + seen["rejected"]
    assert seen["written, with the repeats of the mix"] == seen["train"] + seen["test"] > seen["kept"]
    drops = [n for name, n in seen.items() if re.match(r"\d |mix", name)]
    assert sum(drops) == seen["dropped"] and any(name.startswith("mix: not needed") for name in seen)
    assert "empty_text" not in shown and "too_short" not in shown and "assistant" not in shown


def test_check_names_places_as_why_takes_them_and_says_how_many_more(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    views.show("checked", check_data(DataRequest(rows=2), Events()), as_json=False)
    shown = capsys.readouterr().out
    assert "news/news.jsonl:61 (line 62): null or empty text" in shown and "… 3 more" in shown and "… 2 more" in shown
    run(RunRequest(until="data"), Events())
    places = re.findall(r"(news/news\.jsonl:\d+)", shown)
    assert len(places) >= 5
    for place in places:
        assert main(["data", "why", place, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["fate"] in ("dropped", "rejected")


def test_build_shows_its_version_counts_card_and_what_to_type_next(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(RunRequest(until="data"), Events())
    views.show("run", first, as_json=False)
    shown = capsys.readouterr().out
    assert first.dataset is not None and f"Dataset v1  {first.dataset.id[:12]}" in shown
    seen = figures(shown)
    assert seen["read"] + seen["made by augmentation"] == seen["kept"] + seen["dropped"] + seen["rejected"]
    assert "3 exact_dedup: equal to another row" in seen and first.dataset.card.is_file()
    assert "Card: " in shown and "inhouse data why --dataset v1 news:0" in shown and "data diff" not in shown
    again = shortcut(RunRequest(until="data"))
    assert isinstance(again, RunResult)
    views.show("run", again, as_json=False)
    assert "already made" in capsys.readouterr().out
    run(RunRequest(until="data", overrides=("data.steps.1.min_chars=3",)), Events())
    second = run(RunRequest(until="data", overrides=("data.steps.1.min_chars=4",)), Events())
    views.show("run", second, as_json=False)
    shown = capsys.readouterr().out
    assert "Dataset v3" in shown and "inhouse data diff v2 v3" in shown


def test_build_of_another_workspace_says_so_in_the_next_commands(
    project: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    elsewhere = tmp_path / "other"
    views.show("run", run(RunRequest(until="data", workspace=elsewhere), Events()), as_json=False)
    assert f"inhouse data list --workspace {elsewhere}" in capsys.readouterr().out


def looked(folder: Path, rows: list[Any], shape: str) -> str:
    """The note of a first look at these rows."""
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    params = DataParams.model_validate({"sources": ["a.jsonl"], "shape": shape})
    context = Context({}, folder / "out", folder / "work", folder / "s", folder, Events(), 0, True, "internal")
    [source] = located_of(params, context)
    return note("data.look", first_look(params, source))


def test_first_look_says_only_what_is_known(tmp_path: Path) -> None:
    told = looked(tmp_path, [{"text": "eight ch"}, {"text": "eight ch"}, {"text": None}], "text")
    assert told == "First look at a (3 rows): 57 bytes, shape text, median length 8 characters, 1 repeated, 1 unusable."
    use_language("zh")
    assert looked(tmp_path, [{"text": "x" * 5000, "label": "good"}], "classification") == (
        "初步查看 a（前 1 行）：5.0 KB，结构 classification，长度中位数 5,000 字符，标签：good 1。"
    )


def test_retune_looks_at_the_dataset_of_the_project_as_it_stands(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(RunRequest(until="data"), Events())
    run(RunRequest(until="data", overrides=("data.steps.1.min_chars=3",)), Events())
    words = ["data", "retune", "inhouse.yaml", "data.steps.1.min_chars=50"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["version"] == "v1" and found["steps"][0]["dropped"] == 1 < found["steps"][0]["would_drop"]
    assert main(words) == 0 and "Dataset v1 (" in capsys.readouterr().out
    assert main([*words, "--dataset", "v2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == "v2"
    (project / "inhouse.yaml").write_text(PROJECT.replace("min_chars: 8", "min_chars: 9"))
    assert main(words) == 2 and "--dataset v2" in capsys.readouterr().err
    assert main([*words, "--workspace", "nowhere"]) == 2 and "no dataset yet" in capsys.readouterr().err


def test_list_at_80_columns_has_one_line_for_each_version(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(RunRequest(until="data"), Events())
    assert main(["data", "list"]) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert len(lines) == 3 and max(map(len, lines)) <= 80
    assert re.search(r"v1 .*\d{4}-\d\d-\d\d \d\d:\d\d  .*150 train \+ \d+ test .*news, b$", lines[2])


def test_why_names_no_step_for_what_the_mix_left_out(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    built = run(RunRequest(until="data"), Events())
    gone = pl.read_parquet(built.dataset.card.parent / "dropped.parquet") if built.dataset else pl.DataFrame()
    row = gone.filter(pl.col("step") == "mix")["id"][0]
    assert main(["data", "why", row]) == 0
    shown = capsys.readouterr().out
    assert "left out by the mix: not needed" in shown and "step 0" not in shown
    assert main(["data", "why", row, "--lang", "zh"]) == 0
    assert "未被配比选入：按配比未选入" in capsys.readouterr().out


def test_why_shows_notes_and_own_settings_in_the_users_language(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (project / "news.jsonl").open("a") as file:
        file.write(json.dumps({"text": "write to zhang.san@qq.com about the bread in the city"}) + "\n")
    (project / "inhouse.yaml").write_text(PROJECT.replace("normalize_space,", "{use: pii, types: [email]},"))
    run(RunRequest(until="data"), Events())
    assert main(["data", "why", "news:70", "--lang", "zh"]) == 0
    shown = capsys.readouterr().out
    assert '01-pii  types: ["email"]\n' in shown and "actions" not in shown
    assert "起始字符: 9" in shown and "slot" not in shown and "start" not in shown


def test_check_cuts_long_texts(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"text": f"{n} " + "long " * 400} for n in range(20)]
    (project / "news.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    views.show("checked", check_data(DataRequest(rows=1, overrides=("data.mix=null",)), Events()), as_json=False)
    shown = capsys.readouterr().out
    assert len(shown) < 3000
