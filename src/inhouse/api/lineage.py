"""From an answer's release back to data rows' sources, seeds, code and licences."""

from __future__ import annotations

from pydantic import Field

from inhouse.api.request import Request
from inhouse.core.artifact import Artifact, Frozen
from inhouse.core.store import Store
from inhouse.flow.lineage import lineage


class LineageRequest(Request):
    """Which artifact to trace."""

    artifact: str | None = Field(None, description="id of an artifact or its beginning; default: the newest release")


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
    start = request.artifact or _newest(store)
    if start is None:
        return Lineage(lines=())
    found = lineage(store, start)
    lines = tuple(Line(depth=a.depth, role=a.role, repeated=a.repeated, record=a.artifact) for a in found)
    return Lineage(lines=lines)


def _newest(store: Store) -> str | None:
    """The release used last, else the artifact used last."""
    ids = {record.kind == "release": record.id for record in store.records()}
    return ids.get(True, ids.get(False))
