"""Look at data before building from it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from pydantic import Field

from inhouse.api.request import Request
from inhouse.core.artifact import Frozen
from inhouse.core.errors import UserError
from inhouse.core.protocols import Context
from inhouse.core.rows import Row
from inhouse.core.run import Events
from inhouse.data.build import build
from inhouse.data.source import locate
from inhouse.data.summary import summary
from inhouse.flow.project import load


class DataRequest(Request):
    """Which project's data."""

    project: Path = Field(Path("inhouse.yaml"), description="project file, or a folder that holds inhouse.yaml")
    overrides: tuple[str, ...] = Field((), description="section.key=value, applied over the file")
    rows: int = Field(3, ge=0, le=100, description="how many rows to show")


class Checked(Frozen):
    """What a build would keep and drop, and its first rows."""

    summary: dict[str, Any]
    rows: tuple[Row, ...]
    rejected: tuple[str, ...]


def check_data(request: DataRequest, events: Events) -> Checked:
    """Read the sources and apply the steps in memory; only fetched sources are kept."""
    project = load(request.project, request.overrides)
    if project.data is None:
        raise UserError("plan.no_step", room="data")
    folder = request.project if request.project.is_dir() else request.project.parent
    request.store.create()
    with tempfile.TemporaryDirectory() as nowhere:
        context = Context(
            inputs={}, out=Path(nowhere), scratch=Path(nowhere), sources=request.store.sources,
            project_dir=folder.absolute(), events=events, seed=project.seed, offline=request.offline, use=project.use,
        )  # fmt: skip
        located = [locate(source, context) for source in project.data.sources]
        built = build(project.data, located, project.seed, events)
    bad = [f"{r.file}:{r.reject.offset} {r.reject.reason}" for r in built.rejected[: request.rows]]
    return Checked(summary=summary(built), rows=built.rows[: request.rows], rejected=tuple(bad))
