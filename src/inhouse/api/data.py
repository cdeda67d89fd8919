"""Datasets of a workspace: list and compare versions, explain a row, copy one out."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from pydantic import Field

from inhouse.api.request import Request
from inhouse.core.artifact import Artifact, Frozen
from inhouse.core.errors import UserError
from inhouse.core.protocols import Context
from inhouse.core.run import Events
from inhouse.core.store import Store
from inhouse.data import diff, export, why
from inhouse.data.export import Exported, Format
from inhouse.data.versions import Version, find_version, version_of, versions
from inhouse.flow.plan import pipeline, recipe
from inhouse.flow.project import Project, load


class VersionLine(Frozen):
    """One dataset of the workspace."""

    name: str = Field(description="v1, v2, … in the order in which they were made")
    id: str
    created: str
    rows: dict[str, int] = Field(description="rows of each part")
    sources: tuple[str, ...]
    bytes: int


class Versions(Frozen):
    """Every dataset of the workspace, oldest first."""

    versions: tuple[VersionLine, ...]


class WhyRequest(Request):
    """Which row of which dataset."""

    project: Path = Field(Path("inhouse.yaml"), description="project file, or a folder that holds inhouse.yaml")
    overrides: tuple[str, ...] = Field((), description="section.key=value, applied over the file")
    row: str = Field(description="id of a row or its beginning, source:offset, or source/file:offset")
    dataset: str | None = Field(
        None, description="v2, or a dataset's id; default: what the project's data section made"
    )


class DiffRequest(Request):
    """Which two datasets."""

    first: str = Field(description="v1, or a dataset's id")
    second: str = Field(description="v2, or a dataset's id")
    samples: int | None = Field(
        None, ge=0, description="ids named for each kind of change; default: all with JSON, else 5"
    )


class ExportRequest(Request):
    """Which dataset goes where."""

    dataset: str = Field(description="v2, or a dataset's id")
    folder: Path = Field(description="folder to write: new, or empty")
    format: Format = Field("parquet", description="parquet: the tables as they are; jsonl: one row a line")
    dvc: bool = Field(False, description="write FOLDER.dvc beside it, as `dvc add` would")
    mlflow: bool = Field(False, description="write FOLDER.mlflow.json, and log it where MLflow has a tracking server")


def list_datasets(request: Request) -> Versions:
    """The datasets of this workspace, numbered in the order in which they were made."""
    return Versions(versions=tuple(_line(version) for version in versions(request.store)))


def _line(version: Version) -> VersionLine:
    record = version.record
    return VersionLine(
        name=version.name, id=record.id, created=record.created, rows=version.rows,
        sources=tuple(version.sources), bytes=record.bytes,
    )  # fmt: skip


def explain_row(request: WhyRequest) -> why.Why:
    """What became of one row and why: kept, dropped by which step, rejected, or left out by a mix."""
    store = request.store
    if request.dataset is not None:
        version = find_version(store, request.dataset)
    else:
        version = version_of(store, _built(load(request.project, request.overrides), request))
    nowhere = Path()
    context = Context(
        inputs={},
        out=nowhere,
        scratch=nowhere,
        sources=store.sources,
        project_dir=_folder(request.project),
        events=Events(),
        seed=0,
        offline=True,
    )  # fmt: skip  (nothing is downloaded to explain a row)
    return why.explain(version, request.row, context)


def _built(project: Project, request: WhyRequest) -> Artifact:
    """The dataset that the project's data section made. Raises data.not_built when it was not built as it stands."""
    if (found := made_by(project, request)) is not None:
        return found
    if not (there := versions(request.store)):
        raise UserError("data.version_none", workspace=request.store.root)
    raise UserError("data.not_built", project=request.project, newest=there[-1].name, row=request.row)


class OfProject(Protocol):
    """A request about a project."""

    @property
    def store(self) -> Store:
        """Its workspace."""

    @property
    def project(self) -> Path:
        """The project file, or its folder."""


def made_by(project: Project, request: OfProject) -> Artifact | None:
    """The dataset that a project's data section made; None when it was not built as it stands."""
    node = next((node for node in pipeline(project) if node.room == "data"), None)
    if node is None:
        raise UserError("plan.no_step", room="data")
    key, _, _ = recipe(node, {}, _folder(request.project))
    return request.store.find(key)


def _folder(project: Path) -> Path:
    return (project if project.is_dir() else project.parent).absolute()


def compare_datasets(request: DiffRequest) -> diff.Difference:
    """What changed from one dataset to another, row by row."""
    first, second = (find_version(request.store, name) for name in (request.first, request.second))
    found = diff.compare(first, second)
    return found if request.samples is None else found.sampled(request.samples)


def export_dataset(request: ExportRequest) -> Exported:
    """Copy a dataset out of the workspace, with a pointer for DVC or an input for MLflow where asked."""
    version = find_version(request.store, request.dataset)
    made = export.export(version, request.folder, request.format)
    if request.dvc:
        made = made.model_copy(update={"dvc": export.write_dvc(request.folder)})
    if request.mlflow:
        content = export.mlflow_input(version, request.folder)
        path = export.write_mlflow(content, request.folder)
        logged, reason = export.log_mlflow(content, request.offline)
        made = made.model_copy(update={"mlflow": path, "logged": logged, "not_logged": reason})
    return made
