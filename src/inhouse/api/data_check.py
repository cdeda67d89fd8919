"""Look at data before building from it, and try other thresholds after."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field

from inhouse.api.request import Request
from inhouse.core.artifact import Frozen
from inhouse.core.errors import UserError
from inhouse.core.protocols import Context
from inhouse.core.rows import PARTS, Row
from inhouse.core.run import Events, process_mark
from inhouse.data.build import READS, described
from inhouse.data.finish import first_texts
from inhouse.data.look import first_look
from inhouse.data.settings import DataParams
from inhouse.data.stage import Result, located_of, perform
from inhouse.dataset import read_rows
from inhouse.flow.project import Project, load

EXCERPT_CHARS = 120
CHECK = "check-"  # how the folder of a check begins


class DataRequest(Request):
    """Which project's data."""

    project: Path = Field(Path("inhouse.yaml"), description="project file, or a folder that holds inhouse.yaml")
    overrides: tuple[str, ...] = Field((), description="section.key=value, applied over the file")
    rows: int = Field(3, ge=0, le=100, description="how many rows to show")


class Sample(Frozen):
    """A row that a step would drop, and how it begins ('' where a step takes personal data out)."""

    step: str
    number: int = Field(description="place of the step from 1; 0: no step of the project")
    reason: str
    id: str
    place: str = Field(description="source/file:offset, as `data why` takes it")
    begins: str


class Checked(Frozen):
    """What a build would keep and drop, and its first rows."""

    summary: dict[str, Any]
    rows: tuple[Row, ...]
    rejected: tuple[str, ...]
    dropped: tuple[Sample, ...] = ()


def check_data(request: DataRequest, events: Events) -> Checked:
    """Do what a build would do, and keep nothing but fetched sources; a first look at each source comes at once."""
    project, params = data_of(request)
    with _passing_context(request, project, events) as context:
        located = located_of(params, context)
        for source in located:
            events.note("data.look", **first_look(params, source))
        result = perform(params, located, context)
        bad = [described(line) for line, _ in zip(result.built.rejects(), range(request.rows), strict=False)]
        return Checked(
            summary=result.facts,
            rows=tuple(_first_rows(result, request.rows)),
            rejected=tuple(bad),
            dropped=tuple(_samples(result, request.rows)),
        )


def data_of(request: DataRequest) -> tuple[Project, DataParams]:
    """The project and its data section. Raises plan.no_step when there is none."""
    project = load(request.project, request.overrides)
    if project.data is None:
        raise UserError("plan.no_step", room="data")
    return project, project.data


@contextmanager
def _passing_context(request: DataRequest, project: Project, events: Events) -> Iterator[Context]:
    """A context whose folders are gone afterwards, and those of checks that were killed."""
    folder = request.project if request.project.is_dir() else request.project.parent
    request.store.create()
    for left in request.store.work.glob(f"{CHECK}*"):
        if abandoned(left):
            shutil.rmtree(left, ignore_errors=True)
    passing = Path(tempfile.mkdtemp(prefix=f"{CHECK}{os.getpid()}-", dir=request.store.work))
    try:
        yield Context(
            inputs={}, out=passing / "out", scratch=passing / "scratch", sources=request.store.sources,
            project_dir=folder.absolute(), events=events, seed=project.seed, offline=request.offline, use=project.use,
        )  # fmt: skip
    finally:
        shutil.rmtree(passing, ignore_errors=True)


def abandoned(folder: Path) -> bool:
    """Whether a folder of the workspace's `work` is what a build left, or a check that was killed.

    A build is nobody's while the run lock is held; a check takes no lock, so its folder names its process.
    """
    if is_check(folder):
        pid = folder.name.removeprefix(CHECK).partition("-")[0]
        return not pid.isdigit() or process_mark(int(pid)) is None
    return (folder / "scratch" / READS).is_dir()


def is_check(folder: Path) -> bool:
    """Whether a folder of the workspace's `work` is a check's."""
    return folder.name.startswith(CHECK)


def _first_rows(result: Result, count: int) -> Iterator[Row]:
    left = count
    for part in PARTS:
        for table in result.tables:
            if table.facts["part"] == part and left:
                for row, _ in zip(read_rows(table.folder, part), range(left), strict=False):
                    left -= 1
                    yield row


def _samples(result: Result, each: int) -> Iterator[Sample]:
    """The first rows of each step and reason."""
    from inhouse.data.beside import dropped_table

    table = dropped_table(result.built)
    seen: Counter[tuple[int, str, str]] = Counter()
    chosen = []
    for item in table.iter_rows(named=True):
        kind = item["number"], item["step"], item["reason"]
        seen[kind] += 1
        if seen[kind] <= each:
            chosen.append(item)
    begins = first_texts(result.built, [int(item["id"], 16) for item in chosen], EXCERPT_CHARS)
    for item in chosen:
        place = f"{item['source']}/{item['file']}:{item['offset']}"
        shown = " ".join(begins.get(int(item["id"], 16), "").split())
        told = {name: item[name] for name in ("step", "number", "reason", "id")}
        yield Sample(**told, place=place, begins=shown)
