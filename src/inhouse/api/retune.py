"""Try other thresholds on a dataset that was built."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from inhouse.api.data import made_by
from inhouse.api.request import Request
from inhouse.core.artifact import Frozen
from inhouse.core.errors import UserError
from inhouse.data.retune import Retuned, retune
from inhouse.data.versions import Version, find_version, version_of, versions
from inhouse.flow.project import load


class RetuneRequest(Request):
    """Which project, with the thresholds to try as overrides; the dataset is the one that the file as it is made."""

    project: Path = Field(Path("inhouse.yaml"), description="project file, or a folder that holds inhouse.yaml")
    overrides: tuple[str, ...] = Field((), description="section.key=value, applied over the file")
    dataset: str = Field("", description="dataset to look at: v1, an id or its beginning; absent: the project's")


class RetuneResult(Frozen):
    """Every step that judges figures, then and now. `version` is the dataset's name in the workspace."""

    dataset: str
    version: str
    steps: tuple[Retuned, ...]


def retune_data(request: RetuneRequest) -> RetuneResult:
    """What other thresholds would drop, from the figures of a dataset that was built; nothing is built or changed."""
    project = load(request.project, request.overrides)
    if project.data is None:
        raise UserError("plan.no_step", room="data")
    version = _version(request)
    found = retune(version.folder, version.facts["steps"], project.data.steps)
    return RetuneResult(dataset=version.record.id, version=version.name, steps=tuple(found))


def _version(request: RetuneRequest) -> Version:
    """The dataset that is named, else the one that the project file makes without the overrides."""
    store = request.store
    if request.dataset:
        return find_version(store, request.dataset)
    if (record := made_by(load(request.project), request)) is not None:
        return version_of(store, record)
    if not (there := versions(store)):
        raise UserError("data.version_none", workspace=store.root)
    raise UserError("data.retune_not_built", project=request.project, newest=there[-1].name)
