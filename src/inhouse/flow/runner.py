"""Run the steps of a plan: skip what is cached, resume what was interrupted, publish what is finished."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from inhouse import __version__
from inhouse.core.artifact import Artifact
from inhouse.core.fingerprint import identity, list_files
from inhouse.core.protocols import Context, Input
from inhouse.core.run import Events, peak_memory, release_memory, reset_peak_memory
from inhouse.core.store import Store, disk_errors
from inhouse.flow.plan import Node, recipe

PACKAGES = ("torch", "transformers", "peft", "tokenizers", "safetensors", "xllamacpp", "gguf", "libgguf", "polars")
LOCK_POLL_S = 0.2


@dataclass(frozen=True)
class Run:
    """Where and how a run happens."""

    store: Store
    project_dir: Path
    events: Events
    offline: bool
    force: frozenset[str] = frozenset()  # rooms to run again although they are cached


def run(nodes: tuple[Node, ...], how: Run) -> dict[str, Artifact]:
    """Make every step's artifact; returns them by step name. One run at a time per workspace: a second one waits."""
    how.store.create()
    made: dict[str, Artifact] = {}
    with run_lock(how.store, how.events):
        how.store.recover()
        for index, node in enumerate(nodes):
            how.events.check()
            how.events.stage = node.name
            inputs = {role: made[name] for role, name in node.inputs.items()}
            key, external, used = recipe(node, inputs, how.project_dir)
            found = None if node.room in how.force else how.store.find(key)
            if found:
                found = found.inheriting(inputs.values())
                how.events.emit("stage.cached", index=index, count=len(nodes), id=found.id)
            else:
                how.events.emit("stage.started", index=index, count=len(nodes), recipe=key)
                found = _make(node, Origin(key, inputs, external, used), how)
                how.events.emit("stage.finished", id=found.id, seconds=found.facts["seconds"], bytes=found.bytes)
            made[node.name] = found
    return made


@dataclass(frozen=True)
class Origin:
    """What enters the record of a step besides what its stage reports."""

    recipe: str
    inputs: Mapping[str, Artifact]
    external: dict[str, str]
    operators: dict[str, str]


def _make(node: Node, key: Origin, how: Run) -> Artifact:
    inputs = {role: Input(record, how.store.path(record.id)) for role, record in key.inputs.items()}
    scratch, out = how.store.work_of(key.recipe)
    release_memory()
    reset_peak_memory()
    started = time.monotonic()
    context = Context(
        inputs=inputs, out=out, scratch=scratch, sources=how.store.sources, project_dir=how.project_dir,
        events=how.events, seed=node.seed, offline=how.offline, use=node.use,
    )  # fmt: skip
    with disk_errors(out):
        made = node.stage.run(node.params, context)
    files = list_files(out)
    record = Artifact(
        id=identity(node.stage.KIND, files), kind=node.stage.KIND, stage=node.room, node=node.name,
        stage_version=node.stage.VERSION, recipe=key.recipe, params=node.params.model_dump(mode="json"),
        operators=key.operators, inputs={role: i.id for role, i in key.inputs.items()}, external=key.external,
        files=files,
        facts={**made.facts, "seconds": round(time.monotonic() - started, 2), "peak_bytes": peak_memory()},
        stated=made.licences,
        seed=node.seed, packages=packages(), commit=commit_of(how.project_dir),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip
    return how.store.publish(record.inheriting(key.inputs.values()))


@cache
def packages() -> dict[str, str]:
    """Versions of inhouse and of the libraries that shape an artifact's bytes."""
    found = {"inhouse": __version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def commit_of(folder: Path) -> str | None:
    """The git commit the project file lives at, '+' when the work tree has changes, None outside git."""
    git = shutil.which("git")
    if git is None:
        return None
    done = subprocess.run(
        [git, "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty=+"],
        capture_output=True, text=True, check=False, timeout=20,
    )  # fmt: skip
    return done.stdout.strip() or None


@contextmanager
def run_lock(store: Store, events: Events) -> Iterator[None]:
    """Hold the workspace's run lock; tell who holds it while waiting, and stop waiting when cancelled."""
    from filelock import FileLock, Timeout

    lock = FileLock(store.locks / "run.lock")
    owner = store.locks / "run.owner"
    told = False
    while True:
        try:
            lock.acquire(timeout=LOCK_POLL_S)
            break
        except Timeout:
            if not told:
                events.note("run.waiting", owner=_owner(owner))
                told = True
            events.check()
    try:
        owner.write_text(events.path.parent.name if events.path else "python", encoding="utf-8")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _owner(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return "?"
