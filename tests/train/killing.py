"""Train the tiny model, kill it with SIGKILL at given moments, resume it, and report what came out.

Usage: killing.py MODEL DATASET WORK PLAN, where PLAN is JSON: {"threads": 1, "settings": {...}, "moments": [...]}.
A moment is `none`, `step:N` (after step N), `file:K` (before the K-th change to a file below the work folder),
`out:K` (the same of the artifact's files alone), `save:N:NAME` (when this file of checkpoint N is opened for writing)
or `after:S` (S seconds after the start). Libraries are loaded once; every run is a fork of this process, which itself
computes nothing, so that no thread is lost in the fork.
Prints a JSON list with one mapping per moment.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import warm
from tiny_training import context, train_params

CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Counter:
    """Counts changes to files below `work`, and dies before the one that is asked for."""

    def __init__(self, work: Path, fatal: int | None) -> None:
        self.work, self.fatal, self.count = str(work), fatal, 0

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in CHANGES or self.work not in str(args[0]) or "events.jsonl" in str(args[0]):
            return
        if event == "open" and not (isinstance(args[1], str) and set(args[1]) & set("wax+")):
            return
        self.count += 1
        if self.count == self.fatal:
            die()


def die_at_save(step: str, name: str) -> None:
    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and f"checkpoint-{step}/{name}" in str(args[0]) and str(args[1]) != "r":
            die()

    sys.addaudithook(hook)


def die_after_step(wanted: int) -> None:
    import inhouse.core.run

    plain = inhouse.core.run.Events.progress

    def progress(self: Any, done: float, total: float | None = None, unit: str = "", **facts: Any) -> None:
        plain(self, done, total, unit, **facts)
        if unit == "steps" and done == wanted:
            die()

    inhouse.core.run.Events.progress = progress  # type: ignore[method-assign]


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def train(model: Path, dataset: Path, work: Path, settings: dict[str, Any], moment: str) -> dict[str, Any]:
    """One run in this process, to the end or to the moment."""
    from inhouse.train.stage import run

    kind, _, at = moment.partition(":")
    counter = Counter(work, int(at) if kind == "file" else None)
    sys.addaudithook(counter)
    sys.addaudithook(Counter(work / "out", int(at) + 2 if kind == "out" else None))  # 2: the folder made anew
    if kind == "step":
        die_after_step(int(at))
    if kind == "save":
        die_at_save(*at.split(":"))
    if kind == "after":
        timer = threading.Timer(float(at), die)
        timer.daemon = True
        timer.start()
    facts = run(train_params(**settings), context(model, dataset, work)).facts
    kept = ("losses", "evaluations", "best_step", "steps", "tokens", "resumed_from", "ran_on")
    left = sorted(path.name for path in (work / "scratch" / "checkpoints").glob("checkpoint-*"))
    return {key: facts[key] for key in kept} | {"out": hashes(work / "out"), "changes": counter.count, "left": left}


def forked(work: Path, *run: Any) -> dict[str, Any] | None:
    """What a run in a child process found; None when it was killed."""
    answer = work.parent / f"{work.name}.json"
    pid = os.fork()
    if pid == 0:
        try:
            answer.write_text(json.dumps(train(run[0], run[1], work, *run[2:])))
        finally:
            os._exit(0 if answer.exists() else 1)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return None
    found: dict[str, Any] = json.loads(answer.read_text())
    answer.unlink()
    return found


def killed_and_resumed(model: Path, dataset: Path, work: Path, settings: dict[str, Any], moment: str) -> dict[str, Any]:
    """A run that is killed at the moment, and the one after it."""
    work.mkdir(parents=True, exist_ok=True)
    first = forked(work, model, dataset, settings, moment)
    found = forked(work, model, dataset, settings, "none") if first is None else first
    assert found is not None
    events = (work / "events.jsonl").read_text().splitlines()
    notes = [json.loads(line)["code"] for line in events if '"event": "note"' in line]
    shutil.rmtree(work)
    return {"moment": moment, "killed": first is None, "notes": notes, **found}


if __name__ == "__main__":
    model, dataset, work = (Path(argument) for argument in sys.argv[1:4])
    plan = json.loads(sys.argv[4])
    os.environ["INHOUSE_THREADS"] = os.environ["OMP_NUM_THREADS"] = str(plan["threads"])
    warm.load()
    found = [
        killed_and_resumed(model, dataset, work / f"run-{number}", plan["settings"], moment)
        for number, moment in enumerate(plan["moments"])
    ]
    print(json.dumps(found))
