"""Run the same work on many shards: here, in worker processes, or on Ray; each is done once, also over a crash."""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

from inhouse.core.errors import InhouseError, UserError, from_dict
from inhouse.core.messages import language, use_language
from inhouse.core.plugins import require
from inhouse.core.run import Events, collect_seldom, die_with_parent, end_quickly
from inhouse.core.settings import leave_parallelism_to_processes
from inhouse.core.store import sync_folder, sync_tree

Engine = Literal["local", "ray"]
RESULT = "result.json"
DRAFT = ".part"
POLL_S = 0.5  # between looks at a request to stop


@dataclass(frozen=True)
class Finished:
    """What a task left: its folder, and what it says of itself."""

    folder: Path
    facts: dict[str, Any] = field(default_factory=dict)


def finished(folder: Path) -> Finished | None:
    """The result of a task that was done before, whole or not at all."""
    try:
        return Finished(folder, json.loads((folder / RESULT).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


@contextmanager
def publish(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A folder to write in and facts to fill; both appear under their name by one rename, or not at all."""
    started = time.monotonic()
    # With the pid: a worker whose parent was killed may live on for a moment beside the build that goes on.
    draft = folder.with_name(f"{folder.name}.{os.getpid()}{DRAFT}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    facts: dict[str, Any] = {}
    yield draft, facts
    facts["seconds"] = round(time.monotonic() - started, 3)
    (draft / RESULT).write_text(json.dumps(facts, ensure_ascii=False), encoding="utf-8")
    sync_tree(draft)  # or a power cut may leave the folder under its name with empty files in it
    try:
        draft.rename(folder)
    except OSError:
        if finished(folder) is None:
            raise
        shutil.rmtree(draft)  # somebody else finished the same work: with the same bytes
    sync_folder(folder.parent)  # the name too


def clear_drafts(folder: Path) -> None:
    """Remove what tasks that were killed left half done."""
    for draft in folder.glob(f"*/*{DRAFT}"):
        shutil.rmtree(draft, ignore_errors=True)


class Crew:
    """Who does the work: `workers` processes of this machine (1: this process itself), or a Ray cluster.

    Processes start with the first work for several of them, and end with the `with` block.
    """

    def __init__(self, workers: int, engine: Engine, events: Events) -> None:
        self.workers = workers
        self.engine = engine
        self.events = events
        self._pool: ProcessPoolExecutor | None = None
        self._others: set[BaseProcess] = set()  # children that are not this crew's

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._pool is None:
            return
        if kind is not None:
            # Not one task is waited for: what is half done is done again by the next build, and a person who asked to
            # stop should not sit through it.
            for process in set(multiprocessing.active_children()) - self._others:
                process.terminate()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pool = None

    @property
    def pool(self) -> ProcessPoolExecutor:
        """The worker processes."""
        if self._pool is None:
            # spawn, not fork: a forked child may wait for ever for a lock that a thread of polars held.
            context = multiprocessing.get_context("spawn")
            facts = (os.getpid(), language())
            self._others = set(multiprocessing.active_children())
            self._pool = ProcessPoolExecutor(self.workers, mp_context=context, initializer=_begin, initargs=facts)
        return self._pool

    def each(self, function: Callable[[Any], Finished], tasks: Sequence[Any]) -> Iterator[Finished]:
        """The result of every task, in the order of the tasks. Raises the first error, and stops the rest."""
        if self.engine == "ray":
            yield from _on_ray(function, tasks, self)
        elif self.workers == 1 or len(tasks) < 2:
            for task in tasks:
                self.events.check()
                yield function(task)
        else:
            yield from _in_processes(function, tasks, self)


def _in_processes(function: Callable[[Any], Finished], tasks: Sequence[Any], crew: Crew) -> Iterator[Finished]:
    waiting = {crew.pool.submit(_guarded, function, task): number for number, task in enumerate(tasks)}
    try:
        yield from _ordered(waiting, crew.events)
    except BrokenProcessPool:
        raise UserError("data.worker_lost", workers=crew.workers) from None


def _ordered(waiting: dict[Future[Any], int], events: Events) -> Iterator[Finished]:
    """Results in order as soon as they are there, with a look at a request to stop in between."""
    ready: dict[int, Finished] = {}
    shown = 0
    while waiting:
        done, _ = wait(waiting, timeout=POLL_S, return_when=FIRST_COMPLETED)
        events.check()
        for future in done:
            ready[waiting.pop(future)] = _opened(future.result())
        while shown in ready:
            yield ready.pop(shown)
            shown += 1


def _begin(parent: int, spoken: str) -> None:
    """Prepare a worker: it ends with its parent, and leaves parallelism to the processes."""
    die_with_parent(parent)
    collect_seldom()
    atexit.register(end_quickly)
    leave_parallelism_to_processes()
    use_language(spoken)


def _guarded(function: Callable[[Any], Finished], task: Any) -> tuple[Finished | None, dict[str, Any] | None]:
    """The result, or the error as facts: errors with facts do not survive pickling."""
    try:
        return function(task), None
    except InhouseError as error:
        return None, error.to_dict()


def _opened(outcome: tuple[Finished | None, dict[str, Any] | None]) -> Finished:
    result, error = outcome
    if error is not None:
        raise from_dict(error)
    assert result is not None  # one of the two is there
    return result


def _on_ray(function: Callable[[Any], Finished], tasks: Sequence[Any], crew: Crew) -> Iterator[Finished]:
    """The tasks as a Ray Data set: the folder that they write to must be shared by all machines of the cluster."""
    require("distributed", "ray")
    import ray

    if not ray.is_initialized():
        ray.init(num_cpus=crew.workers, include_dashboard=False, log_to_driver=False)
    items = [{"number": number, "task": task} for number, task in enumerate(tasks)]

    def work(item: dict[str, Any]) -> dict[str, Any]:
        return {"number": item["number"], "outcome": _guarded(function, item["task"])}

    done: dict[int, Finished] = {}
    shown = 0
    for row in ray.data.from_items(items, override_num_blocks=max(len(items), 1)).map(work).iter_rows():
        crew.events.check()
        done[row["number"]] = _opened(row["outcome"])
        while shown in done:
            yield done.pop(shown)
            shown += 1
