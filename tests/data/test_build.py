"""The build as a whole: the same bytes however it is cut, worked on, or interrupted."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import crew_work
import polars as pl
import pytest
import xxhash
from project_folder import Folder
from truth_build import DATA as EVERY
from truth_build import News

from inhouse.core.errors import Cancelled, UserError
from inhouse.core.plugins import operators
from inhouse.core.protocols import Context
from inhouse.core.run import Events
from inhouse.data import stage, tasks
from inhouse.data.settings import DataParams
from inhouse.data.tasks import Crew, publish

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


SHARD = 9000  # bytes; so cut the news are some 120 tasks
KILLS = 20
BY_TWO_WORKERS = (4, 9, 14, 19)  # these of the kills hit a build with worker processes


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


@pytest.fixture(scope="module")
def news(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A file and a folder on which every step that needs no model has something to do."""
    folder = Folder(tmp_path_factory.mktemp("news"))
    writer = News(1)
    folder.jsonl("a.jsonl", writer.rows(110))
    folder.jsonl("b/one.jsonl", writer.rows(55))
    folder.jsonl("b/two.jsonl", [*writer.rows(55), "broken"])
    return folder


@pytest.fixture(scope="module")
def whole(news: Folder) -> dict[str, bytes]:
    """What becomes of it in one shard a file, in this process."""
    return built(news, 1 << 20, EVERY)


def test_news_has_something_to_do_for_every_step(whole: dict[str, bytes]) -> None:
    """Or the tests below would compare what did nothing."""
    without_model = {"perplexity", "paraphrase", "back_translation"}
    assert {operator_name(step) for step in EVERY["steps"]} == set(operators("cleaner")) - without_model
    facts = json.loads(whole["dataset.json"])
    dropping = {found["step"] for found in facts["dropped"]["steps"] if found["reasons"]}
    assert dropping >= {
        "length", "symbols", "repetition", "language", "exact_dedup", "near_dedup", "leaks", "boilerplate",
        "rare_words", "balance",
    }  # fmt: skip
    assert {"notes/01-fix_text.parquet", "notes/07-pii.parquet", "figures/03-length.parquet"} <= set(whole)
    train = pl.read_parquet(io.BytesIO(whole["train-00000.parquet"]))
    places = range(len(EVERY["steps"]))
    born = {
        xxhash.xxh3_64_hexdigest(f"{parent}:{place}:0".encode()): operator_name(EVERY["steps"][place])
        for parent in {*train["id"].str.slice(0, 16), *train["parent"].drop_nulls()} for place in places
    }  # fmt: skip
    assert {born[row] for row in train["id"] if row in born} == {"synonyms", "grammar", "counterfactual"}
    texts = [turn["content"] for turns in train["messages"] for turn in turns if turn["role"] == "user"]
    assert any("PHONE" in text for text in texts) and any("Schöne Grüße" in text for text in texts)
    assert max(map(len, texts)) <= 300 + len("Which desk? ")
    assert train["id"].str.contains("#").any()


def operator_name(step: str | dict[str, Any]) -> str:
    return step if isinstance(step, str) else step["use"]


@pytest.fixture(scope="module")
def cut(news: Folder, whole: dict[str, bytes]) -> tuple[dict[str, bytes], int]:
    """The same of shards of SHARD bytes, and how many tasks that took."""
    files = built(news, SHARD, EVERY)
    return files, finished_tasks(news.path / f".scratch{news.count}")


def finished_tasks(scratch: Path) -> int:
    return sum(1 for _ in scratch.glob("*/*/result.json"))


def test_build_in_other_shards_gives_the_same_bytes(
    news: Folder, whole: dict[str, bytes], cut: tuple[dict[str, bytes], int]
) -> None:
    files, tasks_run = cut
    assert files == whole and tasks_run > 5 * KILLS
    assert built(news, 4001, EVERY) == whole


def test_mix_is_what_the_rows_of_a_build_add_up_to(sources: Any) -> None:
    whole = built(sources, 1 << 20)
    facts = json.loads(whole["dataset.json"])
    repeats = sum(facts["rows"].values()) - (facts["read"] - facts["rejected"]["total"] - facts["dropped"]["total"])
    mixed = {source["name"]: source for source in facts["mix"]["sources"]}
    assert repeats == sum(source["copies"] - source["rows"] for source in mixed.values())
    assert mixed["a"]["achieved"] == pytest.approx(2 / 3, abs=0.02)
    assert {"train-00000.parquet", "figures/02-length.parquet", "dropped.parquet", "rejected.jsonl"} <= set(whole)


def test_build_by_two_workers_gives_the_same_bytes(
    news: Folder, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "SMALL", 1)
    monkeypatch.setattr(stage, "usable_cores", lambda: 2)
    assert built(news, SHARD, EVERY) == whole


def test_build_on_ray_gives_the_same_bytes(
    news: Folder, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(stage, "SMALL", 1)
    monkeypatch.setattr(stage, "usable_cores", lambda: 2)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    try:
        assert built(news, 20_000, {**EVERY, "engine": "ray"}) == whole
    finally:
        ray.shutdown()


@pytest.fixture
def start(news: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Path], Any]:
    """Starts a build with so many workers that writes to a folder, and leaves what is unfinished beside it.

    With one worker it is forked off a server that has all modules loaded but ran nothing, which saves seconds a start.
    """
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["build_child"])
    import build_child

    def started(workers: int, out: Path) -> Any:
        out.mkdir()
        arguments = (json.dumps(EVERY), SHARD, news.path, tmp_path / "scratch", out)
        if workers > 1:
            return Script(workers, *map(str, arguments))
        child = context.Process(target=build_child.build, args=arguments)
        child.start()
        return child

    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("INHOUSE_THREADS", "1")
    return started


def killed_at(count: int, scratch: Path, child: Any) -> bool:
    """Kill a build as soon as so many tasks are finished; false when it ended before."""
    deadline = time.monotonic() + 120
    while finished_tasks(scratch) < count and child.is_alive():
        assert time.monotonic() < deadline, "the build does not go on"
        child.join(0.01)
    child.kill()
    child.join()
    return bool(child.exitcode == -signal.SIGKILL)


class Script:
    """A build with worker processes of its own, with the manners of a Process."""

    def __init__(self, workers: int, *arguments: str) -> None:
        environment = {**os.environ, "INHOUSE_THREADS": str(workers)}
        script = str(Path(__file__).with_name("build_child.py"))
        self.process = subprocess.Popen([sys.executable, script, *arguments], env=environment)

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def join(self, timeout: float | None = None) -> None:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout)

    def kill(self) -> None:
        self.process.kill()

    @property
    def exitcode(self) -> int | None:
        return self.process.returncode


def test_build_killed_at_twenty_moments_goes_on_and_ends_in_the_same_bytes(
    whole: dict[str, bytes], cut: tuple[dict[str, bytes], int], tmp_path: Path, start: Callable[[int, Path], Any]
) -> None:
    kills = 0
    for kill in range(KILLS):
        child = start(2 if kill in BY_TWO_WORKERS else 1, tmp_path / f"out-{kill}")
        kills += killed_at(cut[1] * (kill + 1) // (KILLS + 2), tmp_path / "scratch", child)
    assert kills == KILLS
    child = start(1, tmp_path / "out")
    child.join()
    assert child.exitcode == 0
    assert {p.relative_to(tmp_path / "out").as_posix(): p.read_bytes() for p in files_of(tmp_path / "out")} == whole


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


@pytest.mark.parametrize("workers", [1, 2])
def test_crew_gives_results_in_order_and_the_first_error(workers: int) -> None:
    with Crew(workers, "local", Events()) as crew:
        assert [str(done.folder) for done in crew.each(crew_work.fail, [0, 1, 2])] == ["0", "1", "2"]
        with pytest.raises(UserError) as error:
            list(crew.each(crew_work.fail, [0, 1, 2, 3, 4]))
    assert error.value.code == "data.empty" and error.value.facts["source"] == "s"


@pytest.mark.parametrize(("megabytes", "cores", "workers"), [(0, 8, 1), (1.5, 8, 1), (2, 8, 2), (5, 8, 5), (5, 2, 2)])
def test_build_starts_a_worker_only_for_work_that_pays_for_it(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, megabytes: float, cores: int, workers: int
) -> None:
    monkeypatch.setattr(stage, "SMALL", 2**20)
    monkeypatch.setattr(stage, "usable_cores", lambda: cores)
    seen: list[int] = []

    def crew(number: int, *_: object) -> Crew:
        seen.append(number)
        raise Cancelled

    monkeypatch.setattr(stage, "Crew", crew)
    folder.write("a.txt", b"x" * int(megabytes * 2**20))
    with pytest.raises(Cancelled):
        folder.run({"sources": "a.txt", "shape": "text"})
    assert seen == [workers]


def test_crew_that_is_asked_to_stop_ends_workers_in_the_middle_of_their_work(tmp_path: Path) -> None:
    events = Events(tmp_path / "events.jsonl")
    started = 0.0
    with pytest.raises(Cancelled), Crew(2, "local", events) as crew:
        for number, _ in enumerate(crew.each(crew_work.sleep, [0.0, 0.0, 60.0, 60.0])):
            if number == 1:
                (tmp_path / "cancel").touch()
                started = time.monotonic()
    assert time.monotonic() - started < 2
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [1, 2])
def test_crew_stops_when_the_job_is_cancelled(tmp_path: Path, workers: int) -> None:
    (tmp_path / "cancel").touch()
    with pytest.raises(Cancelled), Crew(workers, "local", Events(tmp_path / "events.jsonl")) as crew:
        list(crew.each(crew_work.wait, list(range(50))))


def test_crew_says_so_when_a_worker_is_killed() -> None:
    with pytest.raises(UserError) as error, Crew(2, "local", Events()) as crew:
        list(crew.each(crew_work.die, [1, 2, 3]))
    assert error.value.code == "data.worker_lost"
