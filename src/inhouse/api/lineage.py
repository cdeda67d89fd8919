"""From an answer's release back to data rows' sources, seeds, code and licences."""

from __future__ import annotations

from pydantic import Field

from inhouse.api.request import Request
from inhouse.core.artifact import Artifact, Frozen
from inhouse.flow.lineage import lineage


class LineageRequest(Request):
    """Which artifact to trace."""

    artifact: str | None = Field(None, description="id of an artifact or its beginning; the newest when left out")


class Line(Frozen):
    """One artifact of a lineage."""

    depth: int
    role: str
    repeated: bool
    record: Artifact


class Lineage(Frozen):
    """An artifact and everything it came from, depth first."""

    lines: tuple[Line, ...]


def show_lineage(request: LineageRequest) -> Lineage:
    """Everything that an artifact was made from."""
    store = request.store
    records = [] if request.artifact else list(store.records())
    if not request.artifact and not records:
        return Lineage(lines=())
    start = request.artifact or records[-1].id
    found = lineage(store, start)
    lines = tuple(Line(depth=a.depth, role=a.role, repeated=a.repeated, record=a.artifact) for a in found)
    return Lineage(lines=lines)
