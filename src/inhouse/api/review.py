"""Review by people: fill a queue, answer, settle disputes, take the result out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from inhouse.api.label import file_params, read_project, read_sources
from inhouse.api.request import Request
from inhouse.core.artifact import Frozen
from inhouse.core.errors import UserError
from inhouse.core.run import Events
from inhouse.core.store import disk_errors, write_durably
from inhouse.data.label.items import Item, Items, labels_of
from inhouse.data.label.review import queue as queues
from inhouse.data.label.review.exchange import as_csv, as_lines, from_studio, studio_config, to_studio
from inhouse.data.label.review.figures import ReviewStatus, status_of
from inhouse.data.label.review.queue import NewTask, Queue, Task
from inhouse.data.label.review.tables import open_file
from inhouse.data.label.settings import LabelParams
from inhouse.flow.project import load

if TYPE_CHECKING:
    from sqlalchemy import Engine

PROJECTS = (".yaml", ".yml")
STUDIO = ".json"
EXPORTS = {".jsonl": as_lines, ".ndjson": as_lines, ".csv": as_csv, STUDIO: to_studio}


class AddRequest(Request):
    """Which rows people should look at."""

    place: Path = Field(Path("inhouse.yaml"), description="project file or folder, or a file of rows")
    queue: str | None = Field(None, min_length=1, max_length=64, description="name of the queue")
    labels: tuple[str, ...] = Field((), description="the labels there are, for a file of rows")
    text_column: str = Field("text", description="column to label, for a file of rows")
    label_column: str = Field("label", description="column of labels, for a file of rows")
    which: Literal["open", "all"] = Field("open", description="rows without a given label, or all")
    reviewers: int = Field(2, ge=1, le=9, description="answers that each row needs")


class QueueRequest(Request):
    """Which queue; it may be left out when there is only one."""

    queue: str | None = Field(None, description="name of the queue")


class ReviewerRequest(QueueRequest):
    """Who answers. `set` answers without a conversation."""

    reviewer: str = Field(min_length=1, max_length=128, description="your name in the queue")
    set: tuple[str, ...] = Field((), description="ID=LABEL, the answer for one row")


class ExportRequest(QueueRequest):
    """Where the review goes, in the format of the ending: .jsonl, .csv, or .json for Label Studio."""

    file: Path = Field(description="file to write")


class ImportRequest(QueueRequest):
    """A Label Studio export, as JSON."""

    file: Path = Field(description="file to read")
    labels: tuple[str, ...] = Field((), description="labels there are besides those that the file shows")
    text_column: str = Field("text", description="column that holds the text")
    label_column: str = Field("label", description="column for the label")
    reviewers: int = Field(2, ge=1, le=9, description="answers that each row needs")


class Added(Frozen):
    """What went into a queue: `rows` seen, of which `added` were not there yet."""

    queue: str
    labels: tuple[str, ...]
    rows: int
    added: int
    left_out: int = 0


class TaskView(Frozen):
    """One text of a queue."""

    id: str
    text: str
    state: Literal["open", "disputed", "decided"]
    given: str | None = None
    suggestion: str | None = None
    suggested_by: str | None = None
    score: float | None = None
    answers: dict[str, str] = Field(default_factory=dict)
    label: str | None = None
    decided_by: str | None = None


class TaskViews(Frozen):
    """Texts of a queue, and the labels there are (none: people write their answers)."""

    queue: str
    labels: tuple[str, ...]
    tasks: tuple[TaskView, ...]


class Exported(Frozen):
    """What was written. `config` is the labelling configuration for Label Studio."""

    queue: str
    file: Path
    rows: int
    config: str | None = None


def review_add(request: AddRequest, events: Events) -> Added:
    """Put rows of a project or of a file into a queue."""
    if request.place.is_dir() or request.place.suffix.lower() in PROJECTS:
        project = load(request.place)
        params, found = read_project(project, request.place, request, events)
        name = request.queue or project.name
    else:
        params, found = _read_file(request, events)
        name = request.queue or request.place.name.split(".")[0] or request.place.name
    tasks = [task for item in found.rows if (task := _task(item, params, request.which == "all"))]
    labels = labels_of(found.rows, params)
    labels = labels if len(labels) > 1 else ()  # nothing to choose from: people write their answers
    queue = Queue(name[:64], labels, params.text_column, params.label_column)
    added = queues.add_tasks(open_file(request.store.root), queue, tasks, request.reviewers)
    return Added(queue=queue.name, labels=queue.labels, rows=len(found.rows), added=added)


def review_next(request: ReviewerRequest) -> TaskViews:
    """The next text for a reviewer, or with `set` the texts as they are after these answers."""
    desk = open_desk(request)
    if request.set:
        return desk.blind([desk.answer(task, label) for task, label in pairs_of(request.set)])
    found = desk.next()
    return desk.blind([found] if found else [])


def review_adjudicate(request: ReviewerRequest) -> TaskViews:
    """The disputed texts, or with `set` the texts as they are after these verdicts."""
    desk = open_desk(request)
    if request.set:
        return desk.view([desk.settle(task, label) for task, label in pairs_of(request.set)])
    return desk.view(desk.disputed())


def review_status(request: QueueRequest) -> ReviewStatus:
    """How far a queue is, and how far its reviewers agree."""
    engine = open_file(request.store.root)
    queue = queues.find_queue(engine, request.queue)
    return status_of(queue, queues.all_tasks(engine, queue))


def review_export(request: ExportRequest) -> Exported:
    """Write the decided rows as JSON lines or CSV, or every row for Label Studio.

    Raises review.bad_ending, and review.none_decided when there is no row to write.
    """
    write = EXPORTS.get(request.file.suffix.lower())
    if write is None:
        raise UserError("review.bad_ending", path=request.file, endings=", ".join(EXPORTS))
    engine = open_file(request.store.root)
    queue = queues.find_queue(engine, request.queue)
    tasks = queues.all_tasks(engine, queue)
    studio = request.file.suffix.lower() == STUDIO
    if not studio and not any(task.label is not None for task in tasks):
        raise _none_decided(request, queue, tasks)
    content = write(queue, tasks)
    with disk_errors(request.file):
        request.file.parent.mkdir(parents=True, exist_ok=True)
        write_durably(request.file, content)
    rows = len(tasks) if studio else sum(task.label is not None for task in tasks)
    return Exported(queue=queue.name, file=request.file, rows=rows, config=studio_config(queue) if studio else None)


def _none_decided(request: ExportRequest, queue: Queue, tasks: list[Task]) -> UserError:
    states = [task.state for task in tasks]
    still, disputed = states.count("open"), states.count("disputed")
    command = "adjudicate" if disputed and not still else "next"
    return UserError(
        "review.none_decided", queue=queue.name, open=still, disputed=disputed, path=request.file, command=command
    )


def review_import(request: ImportRequest) -> Added:
    """Take over texts, answers, verdicts and suggestions from a Label Studio export."""
    engine = open_file(request.store.root)
    name = request.queue or request.file.stem
    queue = Queue(name[:64], (), request.text_column, request.label_column)
    found = from_studio(request.file, queue)
    labels = tuple(dict.fromkeys((*request.labels, *found.labels)))
    queue = Queue(queue.name, labels, queue.text_column, queue.label_column)
    added = queues.add_tasks(engine, queue, found.tasks, request.reviewers)
    queues.restore(engine, queue, found.recorded)
    return Added(
        queue=queue.name, labels=queues.find_queue(engine, queue.name).labels, rows=len(found.tasks), added=added,
        left_out=found.left_out,
    )  # fmt: skip


class Desk:
    """One reviewer at one queue."""

    def __init__(self, engine: Engine, queue: Queue, reviewer: str) -> None:
        self.engine = engine
        self.queue = queue
        self.reviewer = reviewer
        self.skipped: set[str] = set()

    def next(self) -> Task | None:
        """The next text that needs this reviewer, those skipped left out."""
        return queues.next_task(self.engine, self.queue, self.reviewer, self.skipped)

    def answer(self, task: str, label: str) -> Task:
        """Give or replace an answer."""
        return queues.answer(self.engine, self.queue, task, self.reviewer, label)

    def settle(self, task: str, label: str) -> Task:
        """Decide a dispute."""
        return queues.adjudicate(self.engine, self.queue, task, self.reviewer, label)

    def disputed(self) -> list[Task]:
        """The texts whose reviewers disagree."""
        return queues.disputed_tasks(self.engine, self.queue)

    def left(self) -> int:
        """How many texts are not decided yet."""
        return sum(task.state != "decided" for task in queues.all_tasks(self.engine, self.queue))

    def view(self, tasks: list[Task]) -> TaskViews:
        """Texts as a result."""
        shown = tuple(_view(task) for task in tasks)
        return TaskViews(queue=self.queue.name, labels=self.queue.labels, tasks=shown)

    def blind(self, tasks: list[Task]) -> TaskViews:
        """Texts without what others answered: two answers are worth more than one only when they are independent."""
        mine = [replace(t, answers=tuple((n, label) for n, label in t.answers if n == self.reviewer)) for t in tasks]
        return self.view(mine)


def open_desk(request: ReviewerRequest) -> Desk:
    """A place for this reviewer at the queue."""
    engine = open_file(request.store.root)
    return Desk(engine, queues.find_queue(engine, request.queue), request.reviewer)


def pairs_of(given: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """`ID=LABEL` taken apart. Raises review.bad_set."""
    for one in given:
        task, found, label = one.partition("=")
        if not found or not task.strip():
            raise UserError("review.bad_set", given=one)
        yield task.strip(), label


def _read_file(request: AddRequest, events: Events) -> tuple[LabelParams, Items]:
    if not request.place.exists():
        raise UserError("review.no_file", path=request.place)
    if len(request.labels) == 1:
        raise UserError("label.few_labels", found=request.labels[0])
    columns = {"text_column": request.text_column, "label_column": request.label_column}
    params = LabelParams.model_validate({**columns, "labels": request.labels or None})
    params = file_params(request.place, params)
    return params, read_sources(params, Path.cwd(), request, events)


def _task(item: Item, params: LabelParams, all_rows: bool) -> NewTask | None:
    """A row as a task: a label that rules or a model gave is a suggestion, any other is given."""
    by = item.fields.get("label_by")
    if item.label is not None and by in ("rules", "model"):
        score = item.fields.get("label_confidence")
        sure = float(score) if isinstance(score, int | float) else None
        fields = {name: value for name, value in item.fields.items() if name != params.label_column}
        doubt = 1.0 - (0.5 if sure is None else sure)
        return NewTask(item.id, item.text, fields, None, item.label, str(by), sure, doubt)
    if item.label is not None and not all_rows:
        return None
    return NewTask(item.id, item.text, item.fields, given=item.label, priority=1.0 if item.label is None else 0.0)


def _view(task: Task) -> TaskView:
    asked = task.asked
    return TaskView(
        id=asked.id, text=asked.text, state=task.state, given=asked.given, suggestion=asked.suggestion,
        suggested_by=asked.suggested_by, score=asked.score, answers=dict(task.answers), label=task.label,
        decided_by=task.decided_by,
    )  # fmt: skip
