"""The build as a whole: the same bytes however it is cut, worked on, or interrupted."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from inhouse.core.errors import Cancelled, UserError
from inhouse.core.protocols import Context
from inhouse.core.run import Events
from inhouse.data import stage, tasks
from inhouse.data.settings import DataParams
from inhouse.data.tasks import Crew, Finished, publish

WORDS = re.findall(
    r"\w+", "bank rate ship crude grain trade loan price cut rise week report 利率 下调 银行 货币 小麦 出口 原油 上涨"
)
DATA = {
    "sources": [{"from": "a.jsonl"}, {"from": "b.jsonl"}],
    "steps": [
        "normalize_space",
        {"use": "length", "min_chars": 20},
        "exact_dedup",
        {"use": "truncate", "max_chars": 90},
    ],
    "shape": "text",
    "split": {"test": 0.1, "valid": 0.1},
    "mix": {"a": 2, "b": 1, "by": "chars", "short": "repeat", "epochs": 3},
}


def documents(seed: int, count: int) -> list[dict[str, str]]:
    """Some short, some repeated, most different."""
    chooser = random.Random(seed)
    texts = [" ".join(chooser.choices(WORDS, k=chooser.randint(1, 40))) for _ in range(count)]
    return [{"text": chooser.choice(texts[:40]) if number % 5 == 0 else text} for number, text in enumerate(texts)]


@pytest.fixture
def sources(folder: Any) -> Any:
    folder.jsonl("a.jsonl", documents(1, 300))
    folder.jsonl("b.jsonl", [*documents(2, 300), "broken"])
    return folder


def built(folder: Any, shard_bytes: int = 4096, data: dict[str, Any] = DATA) -> dict[str, bytes]:
    """The files of an artifact built with shards of this size."""
    context: Context = folder.context()
    params = DataParams.model_validate(data)
    result = stage.perform(params, stage.located_of(params, context), context, shard_bytes)
    stage.write(result, context.out)
    return {p.relative_to(context.out).as_posix(): p.read_bytes() for p in files_of(context.out)}


def files_of(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and "measured" not in p.parts)


def test_build_in_other_shards_gives_the_same_bytes(sources: Any) -> None:
    whole = built(sources, 1 << 20)
    assert built(sources, 2000) == whole == built(sources, 777)
    facts = json.loads(whole["dataset.json"])
    repeats = sum(facts["rows"].values()) - (facts["read"] - facts["rejected"]["total"] - facts["dropped"]["total"])
    mixed = {source["name"]: source for source in facts["mix"]["sources"]}
    assert repeats == sum(source["copies"] - source["rows"] for source in mixed.values())
    assert mixed["a"]["achieved"] == pytest.approx(2 / 3, abs=0.02)
    assert {"train-00000.parquet", "figures/02-length.parquet", "dropped.parquet", "rejected.jsonl"} <= set(whole)


def test_build_by_two_workers_gives_the_same_bytes(sources: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = built(sources)
    monkeypatch.setattr(stage, "SMALL", 0)
    monkeypatch.setattr(stage, "usable_cores", lambda: 2)
    assert built(sources) == alone


def test_build_on_ray_gives_the_same_bytes(sources: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    alone = built(sources)
    monkeypatch.setattr(stage, "SMALL", 0)
    monkeypatch.setattr(stage, "usable_cores", lambda: 2)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    try:
        assert built(sources, data={**DATA, "engine": "ray"}) == alone
    finally:
        ray.shutdown()


BUILD = """
import sys
from pathlib import Path
from inhouse.core.protocols import Context
from inhouse.core.run import Events
from inhouse.data import stage
from inhouse.data.settings import DataParams
import json
if __name__ == "__main__":
    folder, scratch, out = map(Path, sys.argv[1:4])
    stage.SMALL = 0
    context = Context({}, out, scratch, folder / ".sources", folder, Events(), 7, True, "evaluation")
    params = DataParams.model_validate(json.loads(sys.argv[4]))
    result = stage.perform(params, stage.located_of(params, context), context, 1500)
    stage.write(result, out)
"""


def test_build_killed_at_any_moment_goes_on_and_ends_in_the_same_bytes(sources: Any, tmp_path: Path) -> None:
    whole = built(sources, 1500)
    chooser = random.Random(5)
    scratch, kills = tmp_path / "scratch", 0
    script = tmp_path / "build.py"
    script.write_text(BUILD, encoding="utf-8")
    environment = {**os.environ, "INHOUSE_THREADS": "2"}
    for attempt in range(40):
        out = tmp_path / f"out-{attempt}"
        out.mkdir()
        command = [sys.executable, str(script), str(sources.path), str(scratch), str(out), json.dumps(DATA)]
        child = subprocess.Popen(command, env=environment)
        try:
            code = child.wait(0.6 + 0.12 * chooser.random() * attempt if kills < 20 else 120)
        except subprocess.TimeoutExpired:
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
            kills += 1
            continue
        assert code == 0, f"attempt {attempt}"
        break
    found = {p.relative_to(out).as_posix(): p.read_bytes() for p in files_of(out)}
    assert found == whole
    assert kills, "the build was never interrupted"


def test_steps_that_drop_every_row_of_a_segment_are_an_error(sources: Any) -> None:
    with pytest.raises(UserError) as error:
        built(sources, data={**DATA, "steps": ["exact_dedup", {"use": "length", "min_chars": 9999}, "exact_dedup"]})
    assert error.value.code == "data.all_dropped"


def test_documents_without_a_test_part_are_allowed_when_asked_for(sources: Any) -> None:
    files = built(sources, data={"sources": "a.jsonl", "shape": "text", "split": {"test": 0}})
    assert "test-00000.parquet" not in files and "train-00000.parquet" in files


def test_figures_of_dropped_rows_are_kept_too(sources: Any) -> None:
    folder = sources.run({**DATA, "fail_above": 0.5}).out
    figures = pl.read_parquet(folder / "figures" / "02-length.parquet")
    dropped = pl.read_parquet(folder / "dropped.parquet").filter(pl.col("reason") == "too_short")
    assert dropped.height and set(dropped["id"]) <= set(figures["id"])
    assert figures.filter(pl.col("id").is_in(dropped["id"].to_list()))["chars"].max() < 20


def test_task_that_fails_leaves_nothing_under_its_name(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), publish(tmp_path / "task") as (out, _):
        (out / "half").touch()
        raise ZeroDivisionError
    assert tasks.finished(tmp_path / "task") is None
    with publish(tmp_path / "task") as (out, facts):
        facts["rows"] = 3
    done = tasks.finished(tmp_path / "task")
    assert done and done.facts["rows"] == 3 and not (done.folder / "half").exists()


def _fail(number: int) -> Finished:
    if number == 3:
        raise UserError("data.empty", source="s", place="p")
    return Finished(Path(str(number)))


@pytest.mark.parametrize("workers", [1, 2])
def test_crew_gives_results_in_order_and_the_first_error(workers: int) -> None:
    with Crew(workers, "local", Events()) as crew:
        assert [str(done.folder) for done in crew.each(_fail, [0, 1, 2])] == ["0", "1", "2"]
        with pytest.raises(UserError) as error:
            list(crew.each(_fail, [0, 1, 2, 3, 4]))
    assert error.value.code == "data.empty" and error.value.facts["source"] == "s"


def _wait(number: int) -> Finished:
    time.sleep(0.05)
    return Finished(Path(str(number)))


@pytest.mark.parametrize("workers", [1, 2])
def test_crew_stops_when_the_job_is_cancelled(tmp_path: Path, workers: int) -> None:
    (tmp_path / "cancel").touch()
    with pytest.raises(Cancelled), Crew(workers, "local", Events(tmp_path / "events.jsonl")) as crew:
        list(crew.each(_wait, list(range(50))))


def _die(number: int) -> Finished:
    os.kill(os.getpid(), signal.SIGKILL)
    return Finished(Path())


def test_crew_says_so_when_a_worker_is_killed() -> None:
    with pytest.raises(UserError) as error, Crew(2, "local", Events()) as crew:
        list(crew.each(_die, [1, 2, 3]))
    assert error.value.code == "data.worker_lost"
