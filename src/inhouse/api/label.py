"""Label the rows of a project, and find labels that are probably wrong."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from inhouse.api.request import Request
from inhouse.core.agreement import Agreement
from inhouse.core.artifact import Frozen
from inhouse.core.errors import UserError
from inhouse.core.protocols import Context
from inhouse.core.run import Events
from inhouse.data.label.apply import LabelFigures, Labelled, label_rows, write_labelled
from inhouse.data.label.errors import FindErrors, Noise, Suspect, find_errors
from inhouse.data.label.items import Items, items_of, labels_of, without_personal_data
from inhouse.data.label.model import Place
from inhouse.data.label.review.queue import NewTask, Queue, add_tasks
from inhouse.data.label.review.tables import open_file
from inhouse.data.label.settings import LabelParams
from inhouse.data.operators.around import Around
from inhouse.data.privacy import pii_steps
from inhouse.data.shapes.classification import ClassificationShape
from inhouse.data.source import SourceParams, locate
from inhouse.flow.project import Project, load

OUTPUT = "labelled.jsonl"
ANSWERS = "answers"  # folder of the workspace that keeps what endpoints said


class LabelRequest(Request):
    """Which project's rows to label."""

    project: Path = Field(Path("inhouse.yaml"), description="project file, or a folder that holds inhouse.yaml")
    overrides: tuple[str, ...] = Field((), description="section.key=value, applied over the file")
    output: Path | None = Field(None, description=f"file to write; absent: {OUTPUT} beside the project file")
    review: bool = Field(False, description="put the rows that no label was given to before into the review queue")
    reviewers: int = Field(2, ge=1, le=9, description="answers that each reviewed row needs")


class LabelDone(Frozen):
    """What was labelled, where it was written, and how many rows went to the review queue."""

    figures: LabelFigures
    output: Path
    written: int
    queue: str | None = None
    queued: int = 0


class ErrorsRequest(Request):
    """Which project's labels to doubt."""

    project: Path = Field(Path("inhouse.yaml"), description="project file, or a folder that holds inhouse.yaml")
    overrides: tuple[str, ...] = Field((), description="section.key=value, applied over the file")
    rows: int = Field(20, ge=0, le=100_000, description="how many rows to show")
    folds: int = Field(5, ge=2, le=20, description="parts: each is judged by a model trained on the others")
    review: bool = Field(False, description="put these rows into the review queue")
    reviewers: int = Field(2, ge=1, le=9, description="answers that each reviewed row needs")


class LabelErrors(Frozen):
    """Rows whose label is doubtful, the worst first: `found` in all, of which `confident` count as errors."""

    rows: int
    skipped: int
    found: int
    confident: int
    suspects: tuple[Suspect, ...]
    noise: tuple[Noise, ...]
    judge: Agreement
    weak: bool  # the judge learned too little to be believed
    queue: str | None = None
    queued: int = 0


def label_data(request: LabelRequest, events: Events) -> LabelDone:
    """Label what has no label by the project's rules and model, and write the labelled rows as a source."""
    project = load(request.project, request.overrides)
    params, found = read_project(project, request.project, request, events)
    if params.ask is not None and project.data is not None and (hidden := pii_steps(project.data.steps)):
        around = Around(project.seed, _folder(request.project), request.store.root / ANSWERS, request.offline)
        found = without_personal_data(found, [step for _, step in hidden], around)
    place = Place(request.store.root / ANSWERS, request.offline, events)
    rows, figures = label_rows(found, params, place)
    output = request.output or _folder(request.project) / OUTPUT
    written = write_labelled(output, rows, params)
    done = LabelDone(figures=figures, output=output, written=written)
    if not request.review:
        return done
    queue = Queue(project.name, labels_of(found.rows, params), params.text_column, params.label_column)
    tasks = [_to_check(row) for row in rows if row.by != "given"]
    queued = add_tasks(open_file(request.store.root), queue, tasks, request.reviewers)
    return done.model_copy(update={"queue": queue.name, "queued": queued})


def label_errors(request: ErrorsRequest, events: Events) -> LabelErrors:
    """Rank rows whose given label a model trained on the other rows does not believe."""
    project = load(request.project, request.overrides)
    params, found = read_project(project, request.project, request, events)
    doubts = find_errors(found.rows, FindErrors(folds=request.folds), events)
    worst = doubts.suspects[: request.rows]
    done = LabelErrors(
        rows=doubts.rows, skipped=doubts.skipped, found=len(doubts.suspects),
        confident=sum(suspect.confident for suspect in doubts.suspects), suspects=worst, noise=doubts.noise,
        judge=doubts.judge, weak=doubts.weak,
    )  # fmt: skip
    if not request.review:
        return done
    queue = Queue(project.name, labels_of(found.rows, params), params.text_column, params.label_column)
    queued = add_tasks(open_file(request.store.root), queue, _doubted(worst, found), request.reviewers)
    return done.model_copy(update={"queue": queue.name, "queued": queued})


def read_project(project: Project, path: Path, request: Request, events: Events) -> tuple[LabelParams, Items]:
    """The settings that labelling works with, and the rows of its sources. Raises label.no_sources."""
    params = label_params(project)
    if not params.sources:
        raise UserError("label.no_sources", project=path)
    return params, read_sources(params, _folder(path), request, events)


def read_sources(params: LabelParams, folder: Path, request: Request, events: Events) -> Items:
    """The rows of the sources; only fetched sources are kept."""
    request.store.create()
    with tempfile.TemporaryDirectory() as nowhere:
        context = Context(
            inputs={}, out=Path(nowhere), scratch=Path(nowhere), sources=request.store.sources, project_dir=folder,
            events=events, seed=0, offline=request.offline,
        )  # fmt: skip
        return items_of([locate(source, context) for source in params.sources], params, events)


def label_params(project: Project) -> LabelParams:
    """The `label` section; what it leaves out is taken from `data`."""
    params = project.label or LabelParams()
    if project.data is None:
        return params
    known: dict[str, object] = {"sources": project.data.sources}
    if isinstance(shape := project.data.shape, ClassificationShape):
        known |= {"text_column": shape.text_column, "label_column": shape.label_column, "labels": shape.labels}
    missing = {name: value for name, value in known.items() if name not in params.model_fields_set}
    return params.model_copy(update=missing)


def file_params(path: Path, params: LabelParams) -> LabelParams:
    """Settings for the rows of one file."""
    return params.model_copy(update={"sources": (SourceParams.model_validate(str(path.absolute())),)})


def _folder(project: Path) -> Path:
    return (project if project.is_dir() else project.parent).absolute()


def _to_check(row: Labelled) -> NewTask:
    """A row for people to check: what is least sure comes first."""
    score = row.opinion.confidence if row.opinion else None
    doubt = 1.0 if row.label is None else 1.0 - (score if score is not None else 0.5)
    item = row.item
    return NewTask(
        item.id, item.text, item.fields, suggestion=row.label, suggested_by=row.by if row.label else None, score=score,
        priority=doubt,
    )  # fmt: skip


def _doubted(worst: Sequence[Suspect], found: Items) -> list[NewTask]:
    fields = {(item.id, item.label): item.fields for item in found.rows}
    return [
        NewTask(
            s.id, s.text, fields[s.id, s.given], given=s.given, suggestion=s.likely, suggested_by="confident learning",
            score=s.likely_probability, priority=s.margin,
        )
        for s in worst
    ]  # fmt: skip
