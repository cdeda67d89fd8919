"""Long work as jobs: a folder with command.json, pid, events.jsonl, result.json, and a child process."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from inhouse.core.artifact import Frozen
from inhouse.core.errors import UserError
from inhouse.core.messages import language
from inhouse.core.run import process_mark
from inhouse.core.settings import child_environment, chosen_waiting
from inhouse.core.store import Store, write_durably
from inhouse.engines.waiting import waiting

Status = Literal["running", "done", "failed", "cancelled", "lost"]
KEEP = 50  # finished jobs kept in a workspace
POLL_S = 0.05
SPINS = 10_000  # tens of microseconds
CANCELLED = 130
SECRETS = {"key": "INHOUSE_API_KEY"}  # fields of requests, and the variables that carry them


class Job(Frozen):
    """What is known of one job. 'lost': its process ended without a result (killed, power cut)."""

    id: str
    function: str
    status: Status
    started: str
    pid: int | None
    seconds: float
    error: str | None = None


def submit(store: Store, function: str, request: dict[str, Any], *, attached: bool, offline: bool) -> Path:
    """Start `function` ('module:name' below inhouse.api) in a child process; returns the job's folder.

    An attached job ends with the process that submitted it; a detached one lives on. Secrets of the request reach it in
    its environment and are written nowhere.
    """
    hidden = {variable: request[name] for name, variable in SECRETS.items() if request.get(name)}
    store.create()
    prune(store)
    job_id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    folder = store.jobs / job_id
    folder.mkdir()
    command = {
        "function": function,
        "request": {name: value for name, value in request.items() if name not in SECRETS},
        "parent": os.getpid() if attached else None,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    (folder / "events.jsonl").touch()
    write_durably(folder / "command.json", json.dumps(command, ensure_ascii=False, indent=1))
    with (folder / "output.log").open("wb") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "inhouse.api.worker", str(folder)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env=child_environment(offline) | threads() | {"INHOUSE_LANG": language()} | hidden,
            start_new_session=True,
        )  # fmt: skip
    write_durably(folder / "pid", f"{child.pid} {process_mark(child.pid)}")
    _children[folder] = child
    return folder


_children: dict[Path, subprocess.Popen[bytes]] = {}


def threads() -> dict[str, str]:
    """How torch's threads wait in a job, unless the user has said it. They meet after every product.

    Training on 2 quiet cores: 1.3 times as fast by the wall as asleep, at the same CPU time; beside other work two
    thirds as fast. Spinning as long as GNU OpenMP does by itself takes two thirds of the CPU time.
    """
    return {} if chosen_waiting() else waiting(SPINS)


def alive(folder: Path) -> bool:
    """Whether the job's process still runs."""
    if child := _children.get(folder):
        return child.poll() is None
    try:
        pid, mark = (folder / "pid").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return False
    return process_mark(int(pid)) == mark


def result(folder: Path) -> dict[str, Any] | None:
    """What the job wrote at its end: {"value": …} or {"error": …}; None when it has not ended, or was killed."""
    try:
        value: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return value


def tail(folder: Path, *, follow: bool = True) -> Iterator[dict[str, Any]]:
    """The job's events from the first; with `follow`, go on until the job ends."""
    with (folder / "events.jsonl").open(encoding="utf-8") as f:
        part = ""
        while True:
            running = follow and alive(folder)
            while piece := f.readline():
                part += piece
                if part.endswith("\n"):
                    yield json.loads(part)
                    part = ""
            if not running:
                return
            time.sleep(POLL_S)


def cancel(folder: Path) -> None:
    """Ask the job to stop; it does so at its next progress report, keeping what is finished."""
    (folder / "cancel").touch()


def find(store: Store, job_id: str | None) -> Path:
    """The folder of a job by its id or the beginning of it; the newest job when None."""
    found = sorted(p for p in store.jobs.glob("*") if p.name.startswith(job_id or ""))
    if not found or (job_id and len(found) > 1 and found[0].name != job_id):
        raise UserError("job.unknown", id=job_id or "-", found=len(found))
    return found[0] if job_id else found[-1]


def describe(folder: Path) -> Job:
    """The state of one job."""
    command = json.loads((folder / "command.json").read_text(encoding="utf-8"))
    ended = result(folder)
    if ended is None and not alive(folder):
        ended = result(folder)  # it may have ended between the two looks
    newest = max((folder / name).stat().st_mtime for name in ("command.json", "events.jsonl"))
    started = datetime.fromisoformat(command["started"])
    return Job(
        id=folder.name,
        function=command["function"],
        status=_status(folder, ended),
        started=command["started"],
        pid=int((folder / "pid").read_text().split()[0]) if (folder / "pid").exists() else None,
        seconds=round(max(0.0, newest - started.timestamp()), 1),
        error=ended["error"]["message"] if ended and "error" in ended else None,
    )


def _status(folder: Path, ended: dict[str, Any] | None) -> Status:
    if ended is None:
        return "running" if alive(folder) else "lost"
    if "error" not in ended:
        return "done"
    return "cancelled" if ended["error"]["exit_code"] == CANCELLED else "failed"


def listing(store: Store) -> tuple[Job, ...]:
    """Every job of the workspace, newest first."""
    folders = sorted((p for p in store.jobs.glob("*") if (p / "command.json").exists()), reverse=True)
    return tuple(describe(p) for p in folders)


def prune(store: Store) -> None:
    """Remove the folders of all but the newest finished jobs."""
    for folder in sorted(store.jobs.glob("*"), reverse=True)[KEEP:]:
        if not alive(folder):
            shutil.rmtree(folder, ignore_errors=True)
