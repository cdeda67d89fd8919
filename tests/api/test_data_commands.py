"""The data commands as a person types them: list, why, diff, clean, export."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from inhouse.api.request import Request
from inhouse.api.unfinished import clean_training
from inhouse.cli.main import main
from inhouse.core import store
from inhouse.core.errors import UserError
from inhouse.core.plugins import operators
from inhouse.core.run import Events
from inhouse.data import tasks
from inhouse.data.settings import DataParams
from inhouse.flow.plan import pipeline
from inhouse.flow.project import load
from inhouse.flow.runner import Run
from inhouse.flow.runner import run as run_nodes

ROOT = Path(__file__).parents[2]
PROJECT = """
version: 1
name: tiny
model: {base: pypi:unused==1.0}
data:
  sources: [{name: news, from: news.jsonl, licence: MIT}]
  steps: [normalize_space, {use: length, min_chars: 8}, exact_dedup]
  split: {test: 0.25}
  shape: text
  fail_above: 0.2
"""
Say = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True, scope="module")
def no_power_cuts() -> Iterator[None]:
    """Nothing here can tell whether an artifact was flushed to the disk."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (tasks, store):
            patch.setattr(module, "sync_folder", lambda path: None)
        yield


def build(folder: Path) -> str:
    """What `inhouse data build` does, in this process."""
    nodes = tuple(node for node in pipeline(load(folder)) if node.room == "data")
    made = run_nodes(nodes, Run(store.Store(folder / ".inhouse"), folder, Events(), True))
    return made["dataset"].id


def change(folder: Path, old: str, new: str) -> None:
    file = folder / "inhouse.yaml"
    file.write_text(file.read_text("utf-8").replace(old, new), encoding="utf-8")


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """Run a command in a project folder; exit code, output, complaints."""
    rows: list[Any] = [{"text": f"the rate of week {n} was cut by {n * 3} points"} for n in range(20)]
    rows += [rows[4], {"text": "short"}, {"text": None}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "news.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "inhouse.yaml").write_text(PROJECT, encoding="utf-8")
    monkeypatch.chdir(tmp_path)

    def command(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        language = "zh" if "zh" in words else "en"
        code = main(["data", *(word for word in words if word != "zh"), "--lang", language])
        said = capsys.readouterr()
        return code, said.out, said.err

    return command


def test_list_of_an_empty_workspace_says_how_to_begin(say: Say) -> None:
    assert say("list")[:2] == (0, "No dataset yet. Build one: inhouse data build\n")
    assert json.loads(say("list", "--json")[1]) == {"versions": []}


def test_list_shows_versions_in_order(say: Say, tmp_path: Path) -> None:
    first = build(tmp_path)
    change(tmp_path, "min_chars: 8", "min_chars: 3")
    second = build(tmp_path)
    found = json.loads(say("list", "--json")[1])["versions"]
    assert [(v["name"], v["id"], sum(v["rows"].values()), v["sources"]) for v in found] == [
        ("v1", first, 20, ["news"]),
        ("v2", second, 21, ["news"]),
    ]
    shown = say("list")[1]
    assert first[:8] in shown and "v2" in shown and "创建时间" in say("list", "zh")[1]


def test_why_tells_each_fate_of_a_projects_row(say: Say, tmp_path: Path) -> None:
    build(tmp_path)
    assert "kept, part t" in say("why", "news:3")[1]
    gone = next(out for n in (4, 20) if "dropped" in (out := say("why", str(tmp_path), f"news:{n}")[1]))
    assert "dropped by step 3 exact_dedup: equal to another row" in gone and "Kept instead:" in gone
    short = say("why", "inhouse.yaml", "news/news.jsonl:21")[1]
    assert "dropped by step 2 length: too short" in short and "≥ 8" in short and "As the source has it" in short
    assert "无法使用，第 23 行：文本为空" in say("why", "news:22", "zh")[1]
    (tmp_path / "news.jsonl").write_text("{}\n")
    code, _, complaint = say("why", "news:3")
    assert code == 2 and "--dataset v1 news:3" in complaint
    assert "changed since" in say("why", "--dataset", "v1", "news:3")[1]
    assert json.loads(say("why", "--dataset", "v1", "news:3", "--json")[1])["fate"] == "kept"


def test_why_before_any_build_says_what_to_do(say: Say, tmp_path: Path) -> None:
    code, _, complaint = say("why", "news:3")
    assert code == 2 and "inhouse data build" in complaint
    change(tmp_path, PROJECT[PROJECT.index("data:") :], "")
    assert say("why", "news:3")[0] == 2


def test_why_shows_parents_children_and_repeats(say: Say, tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": f"He said that week {n} was hard for his brother"}) + "\n" for n in range(20))
    (tmp_path / "news.jsonl").write_text(lines)
    change(tmp_path, "steps: [", "steps: [counterfactual, ")
    change(tmp_path, "  shape: text", "  shape: text\n  mix: {news: 1, by: rows, total: 60, short: repeat, epochs: 4}")
    build(tmp_path)
    found = [json.loads(say("why", f"news:{n}", "--json")[1]) for n in range(20)]
    parent = next(why for why in found if why["children"])
    assert "Rows made from it" in say("why", parent["row"]["id"])[1]
    child = say("why", parent["children"][0])[1]
    assert "Made by augmentation from" in child and "The mix repeats it" in child


def test_clean_removes_what_failed_builds_left_and_nothing_else(say: Say, tmp_path: Path) -> None:
    build(tmp_path)
    kept = sorted((tmp_path / ".inhouse" / "objects").rglob("*"))
    change(tmp_path, "fail_above: 0.2", "fail_above: 0.0")
    change(tmp_path, "from: news.jsonl", "from: bad.jsonl")
    (tmp_path / "bad.jsonl").write_text((tmp_path / "news.jsonl").read_text() + "tel 13812345678\n")
    with pytest.raises(UserError):
        build(tmp_path)
    work = tmp_path / ".inhouse" / "work"
    [failed] = work.iterdir()
    others = [work / "abc" / "scratch" / "checkpoint", work / f"check-{os.getpid()}-x"]
    for folder in (*others, work / "check-999999999-x", work / "check-x"):
        folder.mkdir(parents=True)
    code, shown, _ = say("clean")
    assert code == 0 and "3 unfinished steps" in shown and not failed.exists()
    assert sorted(work.iterdir()) == sorted([work / "abc", others[1]])
    assert all(folder.exists() for folder in others)
    assert sorted((tmp_path / ".inhouse" / "objects").rglob("*")) == kept
    assert json.loads(say("clean", "--json")[1]) == {"folders": 0, "bytes": 0}
    (others[0] / "state.pt").write_bytes(b"12345")
    found = clean_training(Request(workspace=tmp_path / ".inhouse"))
    assert (found.folders, found.bytes) == (1, 5) and list(work.iterdir()) == [others[1]]
    assert sorted((tmp_path / ".inhouse" / "objects").rglob("*")) == kept


def test_diff_shows_a_few_ids_and_gives_programs_all(say: Say, tmp_path: Path) -> None:
    build(tmp_path)
    change(tmp_path, "min_chars: 8", "min_chars: 40")
    change(tmp_path, "{test: 0.25}", "{test: 0.5}")
    (tmp_path / "news.jsonl").write_text(
        (tmp_path / "news.jsonl").read_text() + '{"text": "one more row that is long enough"}\n'
    )
    build(tmp_path)
    code, shown, _ = say("diff", "v1", "v2")
    assert code == 0
    for words in (
        "content changed",
        "02-length.min_chars",
        "only in v1: dropped by length (too short)",
        "moved from",
    ):
        assert words in shown
    found = json.loads(say("diff", "v1", "v2", "--json")[1])
    (gone,) = found["only_first"]
    assert gone["count"] == len(gone["ids"]) > 5
    few = json.loads(say("diff", "v1", "v2", "--samples", "2", "--json")[1])
    assert len(few["only_first"][0]["ids"]) == 2
    assert "仅在 v1 中" in say("diff", "v1", "v2", "zh")[1]
    code, _, complaint = say("diff", "v1", "v3")
    assert code == 2 and "Did you mean v" in complaint


def test_diff_of_changed_texts_and_labels_names_them(say: Say, tmp_path: Path) -> None:
    rows = [{"text": f"the  rate of week {n}", "label": "ab"[n % 2]} for n in range(20)]
    write = (tmp_path / "news.jsonl").write_text
    write("".join(json.dumps(row) + "\n" for row in rows))
    change(tmp_path, "shape: text", "shape: classification")
    build(tmp_path)
    write("".join(json.dumps({**row, "label": "a"} if n == 1 else row) + "\n" for n, row in enumerate(rows)))
    change(tmp_path, "steps: [normalize_space, ", "steps: [")
    build(tmp_path)
    shown = say("diff", "v1", "v2")[1]
    assert "text changed" in shown and "label changed" in shown and "—" in shown


def test_export_writes_a_copy_and_pointers(say: Say, tmp_path: Path) -> None:
    build(tmp_path)
    code, shown, _ = say("export", "v1", "copies/one", "--format", "jsonl", "--dvc", "--mlflow")
    assert code == 0 and "dvc commit" in shown and "MLflow is not installed" in shown
    assert (tmp_path / "copies" / "one.dvc").exists() and (tmp_path / "copies" / "one.mlflow.json").exists()
    rows = [json.loads(line) for line in (tmp_path / "copies/one/train.jsonl").read_text("utf-8").splitlines()]
    assert rows and all(set(row) == {"id", "text", "source", "file", "offset"} for row in rows)
    code, _, complaint = say("export", "v1", "copies/one")
    assert code == 2 and "not empty" in complaint
    found = json.loads(say("export", "v1", "two", "--json")[1])
    assert found["dvc"] is None and "train-00000.parquet" in found["files"]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_page_on_data_shows_settings_that_are_valid(language: str) -> None:
    page = (ROOT / "docs" / language / "data.md").read_text("utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.S)
    assert len(blocks) == 2
    for block in blocks:
        DataParams.model_validate(yaml.safe_load(block)["data"])
    shown = set()
    for line in re.findall(r"^\| `?(?:\.|\{use|\w+`).*$", page, re.M):
        for setting in re.findall(r"`(\{use: .*?\})`", line):
            value = yaml.safe_load(setting)
            kind = next((kind for kind in ("reader", "cleaner") if value["use"] in operators(kind)), None)
            if kind is None:
                DataParams.model_validate({"sources": ["x"], "shape": value})
                continue
            operators(kind)[value["use"]].params.model_validate(value)
            shown.add(value["use"])
        shown |= {name for name in re.findall(r"`(\w+)`", line) if name in operators("cleaner") | operators("reader")}
    assert set(operators("reader")) <= shown | {"jsonl"}
    assert set(operators("cleaner")) - {"normalize"} <= shown
