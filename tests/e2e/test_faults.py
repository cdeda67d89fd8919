"""`inhouse run` under kill -9, twice at once, cancelled, on a full disk, and with bad input."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from projects import Project

Make = Callable[[str], Project]


def ids(result: dict) -> dict[str, str]:
    return {step["name"]: step["id"] for step in result["steps"]}


def start(project: Project, *words: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        project.command(*words), cwd=project.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env
    )


def unmeasured() -> dict[str, str]:
    """The environment without coverage: its data file hits limits too, and what is killed writes none."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}


def workers(project: Project) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(project.folder) in line and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def test_run_killed_twenty_times_ends_in_the_same_ids(tiny_project: Make, made_project: Project) -> None:
    clean = ids(made_project.json("run"))
    project = tiny_project("killed")
    moments = random.Random(5)
    interrupted = 0
    for _ in range(20):
        child = start(project, "run", env=unmeasured())
        try:
            child.wait(timeout=moments.uniform(0.3, 6.0))
        except subprocess.TimeoutExpired:
            interrupted += 1
            child.send_signal(signal.SIGKILL)
            child.wait()
        deadline = time.monotonic() + 10
        while workers(project):
            assert time.monotonic() < deadline, "the job outlived the command that was killed"
            time.sleep(0.05)
    assert interrupted >= 5
    assert ids(project.json("run")) == clean
    workspace = project.folder / ".inhouse"
    assert not list((workspace / "work").iterdir())
    assert {p.name for p in (workspace / "objects").iterdir()} == set(clean.values())
    assert not list((workspace / "locks").glob("*.owner"))


def test_two_runs_at_once_are_both_right(tiny_project: Make) -> None:
    project = tiny_project("twice")
    first, second = start(project, "run"), start(project, "run")
    assert first.wait(timeout=300) == 0 and second.wait(timeout=300) == 0
    made = project.json("run")
    assert all(step["state"] == "cached" for step in made["steps"])
    assert made["release"]["label"] == "tiny:v1"
    assert len(project.json("release", "list")["releases"]) == 1


def test_run_interrupted_by_ctrl_c_stops_and_goes_on_later(tiny_project: Make) -> None:
    project = tiny_project("stopped")
    child = subprocess.Popen(
        project.command("run"), cwd=project.folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert child.stderr is not None
    for line in child.stderr:
        if "dataset" in line:
            break
    child.send_signal(signal.SIGINT)
    said = child.stderr.read()
    assert child.wait(timeout=60) == 130 and "Stopped at your request" in said
    jobs = project.json("jobs", "list")["jobs"]
    assert jobs[0]["status"] == "cancelled"
    assert project.run("run").returncode == 0


def test_run_job_submitted_can_be_watched(tiny_project: Make) -> None:
    project = tiny_project("job")
    job = project.json("jobs", "submit")
    assert job["status"] == "running"
    done = project.run("jobs", "tail", job["id"])
    assert done.returncode == 0 and "gates and release" in done.stdout
    assert project.json("jobs", "list")["jobs"][0]["status"] == "done"
    assert project.run("jobs", "cancel", "nothing-like-it").returncode == 2


def test_run_killed_worker_is_reported_as_lost(tiny_project: Make) -> None:
    project = tiny_project("lost")
    child = subprocess.Popen(
        project.command("run"), cwd=project.folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert child.stderr is not None
    child.stderr.readline()
    (worker,) = [p for p in workers(project) if p.pid != child.pid]
    worker.send_signal(signal.SIGKILL)
    assert child.wait(timeout=60) == 2
    assert "Run the same command again" in child.stderr.read()
    assert project.json("jobs", "list")["jobs"][0]["status"] == "lost"


def test_run_on_a_full_disk_names_the_path_and_recovers(tiny_project: Make) -> None:
    project = tiny_project("full")
    limited = ["prlimit", "--fsize=20000", *project.command("run")]
    done = subprocess.run(limited, cwd=project.folder, env=unmeasured(), capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "No space left while writing" in done.stderr and "Traceback" not in done.stderr
    assert project.run("run").returncode == 0


def test_run_in_a_folder_without_permission_is_a_clear_error(tiny_project: Make) -> None:
    project = tiny_project("closed")
    done = project.run("run", "--workspace", "/dev/null/inhouse")
    assert done.returncode == 2 and "Traceback" not in done.stderr and "/dev/null/inhouse" in done.stderr


ALONE = ["unshare", "--net", *([] if os.geteuid() == 0 else ["--map-root-user"])]


@pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run([*ALONE, "true"], check=False, capture_output=True).returncode != 0,
    reason="this machine does not let a process leave the network",
)
def test_fresh_run_works_without_any_network(tiny_project: Make) -> None:
    project = tiny_project("alone")
    words = [*ALONE, *project.command("run", "--offline", "--json")]
    done = subprocess.run(words, cwd=project.folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["release"]["label"] == "tiny:v1"


def test_run_failed_gate_ends_in_exit_code_3_and_promotes_nothing(half_made_project: Project) -> None:
    project = half_made_project
    words = ("run", "release.gates.0.figure=tuned.accuracy", "release.gates.0.at_least=2")
    done = project.run(*words)
    assert done.returncode == 3
    assert "was not promoted: tuned.accuracy" in done.stderr and "failed" in done.stdout
    printed = project.run(*words, "--json")
    assert printed.returncode == 3 and json.loads(printed.stdout)["release"]["passed"] is False
    (line,) = project.json("release", "list")["releases"]
    assert not line["passed"] and not line["deployments"]
    refused = project.run("release", "promote", line["label"])
    assert refused.returncode == 3 and project.run(*words).returncode == 3


def break_project(project: Project, old: str, new: str) -> None:
    text = project.file.read_text()
    assert old in text
    project.file.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seed: 3", "sede: 3", "did you mean 'seed'"),
        ("seed: 3", "seed: many", "seed"),
        ("from: news.csv", "from: none.csv", "none.csv"),
        ("labels: [money, grain]", "labels: [money, rain]", "grain"),
        ("use: lora", "use: lorra", "did you mean 'lora'"),
        ("figure: tuned.perplexity, at_least: 1", "figure: tuned.perplexity", "at_least or at_most"),
    ],
)
def test_run_with_a_mistake_in_the_file_says_where(tiny_project: Make, old: str, new: str, said: str) -> None:
    project = tiny_project("mistake")
    break_project(project, old, new)
    done = project.run("run")
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
    assert (
        not list((project.folder / ".inhouse" / "objects").glob("*")) or "news" in said or said in ("grain", "none.csv")
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.gguf", b""),
        ("random.gguf", os.urandom(4096)),
        ("truncated.gguf", b"GGUF\x03\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\x7f" + b"\0" * 64),
        ("weights.bin", b"\x80\x04pickle"),
    ],
)
def test_run_with_a_bad_model_file_is_refused(tiny_project: Make, name: str, content: bytes) -> None:
    project = tiny_project("bad")
    (project.folder / name).write_bytes(content)
    done = project.run("run", f"model.base=./{name}")
    assert done.returncode == 2 and name in done.stderr and "Traceback" not in done.stderr
    assert not list((project.folder / ".inhouse" / "objects").iterdir())


def test_run_with_pickle_weights_in_a_folder_is_refused(tiny_project: Make, tiny_llama: Path) -> None:
    project = tiny_project("pickle")
    folder = project.folder / "model"
    folder.mkdir()
    (folder / "config.json").write_text((tiny_llama / "config.json").read_text())
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    done = project.run("run", "model.base=./model")
    assert done.returncode == 2 and "pytorch_model.bin" in done.stderr


@pytest.mark.parametrize(
    ("content", "said"),
    [("text,label\n", "news"), ("text,label\n" + "".join(f"item {n},money\n" for n in range(20)), "money")],
)
def test_run_with_empty_or_one_class_data_is_refused(tiny_project: Make, content: str, said: str) -> None:
    project = tiny_project("data")
    (project.folder / "news.csv").write_text(content)
    done = project.run("run")
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_error_with_json_is_json(tiny_project: Make) -> None:
    project = tiny_project("json")
    done = project.run("run", "nothing.yaml", "--json")
    error = json.loads(done.stdout)["error"]
    assert done.returncode == 2 and error["code"] == "project.missing" and error["exit_code"] == 2


def test_error_in_chinese_when_asked(tiny_project: Make) -> None:
    project = tiny_project("zh")
    assert "找不到项目文件" in project.run("run", "nothing.yaml", "--lang", "zh").stderr
    assert "找不到项目文件" in project.run("run", "nothing.yaml", LC_ALL="zh_CN.UTF-8").stderr
