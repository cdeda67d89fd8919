"""From an answer's release back to data rows' sources, seeds, code and licences."""

from __future__ import annotations

from pydantic import Field

from inhouse.api.request import Request
from inhouse.core.artifact import Artifact, Frozen
from inhouse.core.store import Store
from inhouse.flow.lineage import lineage, made_from
from inhouse.release.registry import open_registry


class LineageRequest(Request):
    """Which artifact to trace."""

    artifact: str | None = Field(
        None, description="id of an artifact or its beginning, or a release (name:v1); default: the newest release"
    )


class Line(Frozen):
    """One artifact of a lineage."""

    depth: int
    role: str
    repeated: bool
    record: Artifact


class Made(Frozen):
    """An artifact that came from another, and the releases that it is."""

    record: Artifact
    releases: tuple[str, ...] = Field(description="names of releases, as name:v1")


class Lineage(Frozen):
    """An artifact, everything it came from, depth first, and what was made from it."""

    lines: tuple[Line, ...]
    made: tuple[Made, ...] = ()


def show_lineage(request: LineageRequest) -> Lineage:
    """Everything that an artifact was made from."""
    store = request.store
    start = request.artifact or _newest(store)
    if start is None:
        return Lineage(lines=())
    released = any(record.kind == "release" for record in store.records())
    releases = open_registry(store).list_releases() if released else []
    start = next((each.artifact for each in releases if each.label == start), start)
    found = lineage(store, start)
    lines = tuple(Line(depth=a.depth, role=a.role, repeated=a.repeated, record=a.artifact) for a in found)
    made = tuple(
        Made(record=one, releases=tuple(each.label for each in releases if each.artifact == one.id))
        for one in made_from(store, found[0].artifact.id)
    )
    return Lineage(lines=lines, made=made)


def _newest(store: Store) -> str | None:
    """The release used last, else the artifact used last."""
    ids = {record.kind == "release": record.id for record in store.records()}
    return ids.get(True, ids.get(False))
