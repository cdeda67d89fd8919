"""Long functions as jobs: attach to one, list, tail, cancel."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, Field

from inhouse.api.request import Request
from inhouse.core.artifact import Frozen
from inhouse.core.errors import UserError, from_dict
from inhouse.core.run import Events
from inhouse.core.store import full_disk
from inhouse.flow import jobs
from inhouse.flow.jobs import Job

R = TypeVar("R", bound=BaseModel)
Watcher = Callable[[dict[str, Any]], None]
LongFunction = Callable[[Any, Events], R]


class JobRequest(Request):
    """One job of the workspace."""

    job: str | None = Field(None, description="id of the job or its beginning; the newest when left out")


class Jobs(Frozen):
    """Jobs of a workspace, newest first."""

    jobs: tuple[Job, ...]


def attach(function: LongFunction[R], request: Request, watch: Watcher) -> R:
    """Run a long function as a job that ends with this process; `watch` sees every event as it happens."""
    folder = _submit(function, request, attached=True)
    try:
        for event in jobs.tail(folder):
            watch(event)
    except KeyboardInterrupt:
        jobs.cancel(folder)
        for event in jobs.tail(folder):
            watch(event)
    kind: type[R] = typing.get_type_hints(function)["return"]
    return outcome(folder, kind)


def detach(function: LongFunction[Any], request: Request) -> Job:
    """Start a long function as a job that lives on without this process."""
    return jobs.describe(_submit(function, request, attached=False))


def _submit(function: LongFunction[Any], request: Request, *, attached: bool) -> Path:
    name = f"{function.__module__.rpartition('.')[2]}:{function.__name__}"
    asked = request.model_dump(mode="json")
    return jobs.submit(request.store, name, asked, attached=attached, offline=request.offline)


def outcome(folder: Path, kind: type[R]) -> R:
    """The result of an ended job, or its error raised here."""
    ended = jobs.result(folder)
    if ended is None:
        raise full_disk(folder) or UserError("job.lost", id=folder.name, log=folder / "output.log")
    if "error" in ended:
        raise from_dict(ended["error"])
    return kind.model_validate(ended["value"])


def list_jobs(request: Request) -> Jobs:
    """The jobs of the workspace."""
    return Jobs(jobs=jobs.listing(request.store))


def tail_job(request: JobRequest) -> Iterator[dict[str, Any]]:
    """Every event of a job, from its first until it ends."""
    return jobs.tail(jobs.find(request.store, request.job))


def cancel_job(request: JobRequest) -> Job:
    """Ask a job to stop; what it finished is kept."""
    folder = jobs.find(request.store, request.job)
    jobs.cancel(folder)
    return jobs.describe(folder)
