"""The runner: caching, resuming, publishing, waiting, with small real stages that write files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from inhouse.core.artifact import Licence
from inhouse.core.errors import Cancelled, UserError
from inhouse.core.fingerprint import FileHashes
from inhouse.core.params import Params
from inhouse.core.protocols import Context, Made
from inhouse.core.run import Events
from inhouse.core.store import Store
from inhouse.flow import runner
from inhouse.flow.lineage import lineage
from inhouse.flow.plan import Node, plan, until
from inhouse.flow.runner import Run, commit_of, packages, run


class TextParams(Params):
    text: str = "a"


def stage(room: str, work: Any) -> Any:
    """A stage module of `room` whose run is `work`; it reads `input.txt` of the project folder when it is there."""
    module = ModuleType(f"inhouse.{room}.stage")

    def external(params: TextParams, project_dir: Path) -> dict[str, str]:
        file = project_dir / "input.txt"
        return {"input": FileHashes(project_dir / "memo.json").of(file)} if file.exists() else {}

    vars(module).update(VERSION="1", KIND="dataset", external=external, run=work)
    return module


def write_text(params: TextParams, context: Context) -> Made:
    before = "".join((i.path / "text").read_text() for i in context.inputs.values())
    (context.out / "text").write_text(before + params.text)
    return Made(facts={"chars": len(params.text)}, licences=(Licence(subject=params.text, spdx="MIT", source="x"),))


def two_steps(second: Any = write_text, text: str = "b") -> tuple[Node, ...]:
    first = Node("first", stage("data", write_text), TextParams(text="a"))
    return first, Node("second", stage("train", second), TextParams(text=text), {"before": "first"})


@pytest.fixture
def how(tmp_path: Path) -> Run:
    job = tmp_path / "job-1"
    job.mkdir()
    return Run(Store(tmp_path / "ws"), tmp_path, Events(job / "events.jsonl"), offline=True)


def seen(how: Run) -> list[str]:
    assert how.events.path is not None
    lines = how.events.path.read_text().splitlines()
    return [f"{e['event']} {e['stage']}" for e in map(json.loads, lines) if e["event"].startswith("stage.")]


def test_run_makes_artifacts_with_records(how: Run) -> None:
    made = run(two_steps(), how)
    assert (how.store.path(made["second"].id) / "text").read_text() == "ab"
    record = made["second"]
    assert record.inputs == {"before": made["first"].id} and record.facts["chars"] == 1
    assert [lic.subject for lic in record.licences] == ["b", "a"]
    assert record.packages["inhouse"] and record.facts["seconds"] >= 0 and record.facts["peak_bytes"] > 0
    assert not list(how.store.work.iterdir()) and not (how.store.locks / "run.owner").exists()


def test_run_again_finds_everything_made(how: Run) -> None:
    first = run(two_steps(), how)
    assert run(two_steps(), how) == first
    assert seen(how)[-2:] == ["stage.cached first", "stage.cached second"]


def test_run_changed_step_reruns_only_what_follows(how: Run) -> None:
    run(two_steps(), how)
    run(two_steps(text="c"), how)
    assert seen(how)[-3:] == ["stage.cached first", "stage.started second", "stage.finished second"]


def test_run_changed_input_file_reruns_but_equal_bytes_stop_the_cascade(how: Run) -> None:
    (how.project_dir / "input.txt").write_text("1")
    first = run(two_steps(), how)
    (how.project_dir / "input.txt").write_text("22")
    nodes = two_steps()
    again = Node("second", stage("train", write_text), nodes[1].params, nodes[1].inputs)
    vars(again.stage)["external"] = lambda params, folder: {"input": "same"}
    made = run((nodes[0], again), how)
    assert made["first"].id == first["first"].id and made["first"].recipe != first["first"].recipe
    run((nodes[0], again), how)
    (how.project_dir / "input.txt").write_text("333")
    run((nodes[0], again), how)
    assert seen(how)[-3:] == ["stage.started first", "stage.finished first", "stage.cached second"]


def test_run_takes_restated_terms_without_a_rerun(how: Run) -> None:
    nodes = two_steps()
    run(nodes, how)
    source = how.store.find(run(nodes, how)["first"].recipe)
    assert source is not None
    restated = source.model_copy(update={"stated": (Licence(subject="a", spdx="Apache-2.0", source="y"),)})
    how.store.use(restated.inheriting(()))
    made = run(nodes, how)
    assert [lic.spdx for lic in made["second"].licences] == ["MIT", "Apache-2.0"]
    assert seen(how)[-1] == "stage.cached second"


def test_run_forced_room_runs_again(how: Run) -> None:
    run(two_steps(), how)
    run(two_steps(), Run(how.store, how.project_dir, how.events, True, frozenset({"data"})))
    assert seen(how)[-3:] == ["stage.started first", "stage.finished first", "stage.cached second"]


def test_run_failed_stage_keeps_what_was_finished(how: Run) -> None:
    def fail(params: TextParams, context: Context) -> Made:
        (context.out / "half").write_text("x")
        (context.scratch / "checkpoint").write_text("1")
        raise UserError("project.missing", path="x")

    with pytest.raises(UserError):
        run(two_steps(fail), how)
    checkpoints: list[str] = []

    def resume(params: TextParams, context: Context) -> Made:
        checkpoints.extend(p.name for p in context.scratch.iterdir())
        assert not list(context.out.iterdir())
        return write_text(params, context)

    run(two_steps(resume), how)
    assert checkpoints == ["checkpoint"]
    assert "stage.cached first" in seen(how)


def test_run_full_disk_is_a_clear_error(how: Run) -> None:
    def fill(params: TextParams, context: Context) -> Made:
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left"):
        run(two_steps(fill), how)


def test_run_cancelled_before_a_step_stops(how: Run) -> None:
    assert how.events.path is not None

    def then_cancel(params: TextParams, context: Context) -> Made:
        how.events.path.with_name("cancel").touch()  # type: ignore[union-attr]
        return write_text(params, context)

    first = Node("first", stage("data", then_cancel), TextParams())
    with pytest.raises(Cancelled):
        run((first, two_steps()[1]), how)
    assert "stage.finished first" in seen(how)


def test_run_second_one_waits_for_the_first(how: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "LOCK_POLL_S", 0.01)
    entered, go_on = threading.Event(), threading.Event()

    def slow(params: TextParams, context: Context) -> Made:
        entered.set()
        assert go_on.wait(30)
        return write_text(params, context)

    first = Node("first", stage("data", slow), TextParams())
    one = threading.Thread(target=run, args=((first,), how))
    one.start()
    assert entered.wait(30)
    (tmp_path / "job-2").mkdir()
    events = Events(tmp_path / "job-2" / "events.jsonl")
    made: dict[str, Any] = {}
    two = threading.Thread(
        target=lambda: made.update(run((first,), Run(how.store, how.project_dir, events, offline=True)))
    )
    two.start()
    deadline = time.monotonic() + 30
    while "run.waiting" not in (events.path.read_text() if events.path and events.path.exists() else ""):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert '"owner": "job-1"' in events.path.read_text()  # type: ignore[union-attr]
    time.sleep(0.1)  # it looks again many times, and tells it once
    assert events.path.read_text().count("run.waiting") == 1  # type: ignore[union-attr]
    go_on.set()
    one.join(30)
    two.join(30)
    assert made["first"].id and '"stage.cached"' in events.path.read_text()  # type: ignore[union-attr]


def test_owner_that_is_gone_is_a_question_mark(tmp_path: Path) -> None:
    assert runner._owner(tmp_path / "none") == "?"


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_runner import Events, Run, Store, two_steps, run
how = Run(Store(Path({root!r}) / "ws"), Path({root!r}), Events(), offline=True)
print("go", flush=True)
run(two_steps(), how)
"""


def test_run_killed_at_any_moment_ends_in_the_same_ids(tmp_path: Path) -> None:
    clean = Run(Store(tmp_path / "clean"), tmp_path, Events(), offline=True)
    wanted = {name: a.id for name, a in run(two_steps(), clean).items()}
    (tmp_path / "x").mkdir()
    code = KILLED.format(tests=str(Path(__file__).parent), root=str(tmp_path / "x"))
    for attempt in range(8):
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=dict(os.environ))
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(0.004 * attempt)
        child.send_signal(signal.SIGKILL)
        child.wait()
    how = Run(Store(tmp_path / "x" / "ws"), tmp_path / "x", Events(), offline=True)
    assert {name: a.id for name, a in run(two_steps(), how).items()} == wanted
    assert not list(how.store.work.iterdir())


def test_plan_tells_cached_from_pending(how: Run) -> None:
    nodes = two_steps()
    assert [p.state for p in plan(nodes, how.store, how.project_dir)] == ["run", "waits"]
    run(nodes, how)
    assert [p.state for p in plan(nodes, how.store, how.project_dir)] == ["cached", "cached"]
    assert [p.state for p in plan(two_steps(text="c"), how.store, how.project_dir)] == ["cached", "run"]


def test_until_keeps_what_a_room_needs() -> None:
    nodes = two_steps()
    assert until(nodes, None) == nodes
    assert [n.name for n in until(nodes, "data")] == ["first"]
    assert [n.name for n in until(nodes, "train")] == ["first", "second"]
    with pytest.raises(UserError, match="release"):
        until(nodes, "release")


def test_lineage_expands_each_artifact_once(how: Run) -> None:
    def join(params: TextParams, context: Context) -> Made:
        return write_text(params, context)

    nodes = two_steps()
    third = Node("third", stage("release", join), TextParams(text="z"), {"one": "first", "two": "second"})
    made = run((*nodes, third), how)
    found = lineage(how.store, made["third"].id)
    assert [(a.depth, a.role, a.repeated) for a in found] == [
        (0, "", False), (1, "one", False), (1, "two", False), (2, "before", True),
    ]  # fmt: skip


def test_commit_is_known_inside_git_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit_of.cache_clear()
    assert commit_of(tmp_path) is None
    subprocess.run(
        "git init -q && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m x",
        shell=True, cwd=tmp_path, check=True,
    )  # fmt: skip
    commit_of.cache_clear()
    assert len(commit_of(tmp_path) or "") == 40
    (tmp_path / "inside").mkdir()
    monkeypatch.setenv("PATH", "/nonexistent")
    assert commit_of(tmp_path / "inside") is None
    commit_of.cache_clear()


def test_packages_leave_out_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "PACKAGES", ("pydantic", "no-such-package"))
    packages.cache_clear()
    assert set(packages()) == {"inhouse", "pydantic"}
    packages.cache_clear()
