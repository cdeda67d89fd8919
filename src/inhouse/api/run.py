"""Run a project: from the base model to a promoted release."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from inhouse.api import jobs
from inhouse.api.examples import example_project
from inhouse.api.request import Request
from inhouse.core.artifact import Artifact, Frozen
from inhouse.core.gate import Verdict
from inhouse.core.messages import language
from inhouse.core.run import Events
from inhouse.core.store import Store, disk_errors
from inhouse.data.versions import versions
from inhouse.evaluate.report import FULL_REPORT, PAGE, render_table
from inhouse.flow import plan as planning
from inhouse.flow import promotion
from inhouse.flow.jobs import Job
from inhouse.flow.project import Project, load
from inhouse.flow.runner import Run
from inhouse.flow.runner import run as run_nodes

Room = Literal["select", "data", "train", "evaluate", "compress", "release"]


class SubmitRequest(Request):
    """What to run without this terminal."""

    project: Path = Field(Path("inhouse.yaml"), description="project file, or a folder that holds inhouse.yaml")
    overrides: tuple[str, ...] = Field((), description="section.key=value, applied over the file")
    until: Room | None = Field(None, description="stop after this step of the lifecycle")
    again: tuple[Room, ...] = Field((), description="run these steps again although they are cached")


class RunRequest(SubmitRequest):
    """What to run."""

    dry_run: bool = Field(False, description="show what would run, and run nothing")
    ask: bool = Field(False, description="then serve the release and stream one real answer")
    watch: float | None = Field(
        None, gt=0, le=1440, description="then look every so many minutes for what changed, and run that"
    )


class Step(Frozen):
    """One step of a run. `state` is what was found before it: cached, run, or waits for an earlier step."""

    name: str
    room: str
    state: Literal["cached", "run", "waits"]
    id: str | None = None
    bytes: int = 0
    seconds: float | None = None


class TableLine(Frozen):
    """One line of the summary: a figure's title, and its text for each model."""

    name: str
    title: str
    cells: dict[str, str]


class Released(Frozen):
    """The release a run ended in. `serving` is what its deployment points at now."""

    label: str
    artifact: str
    passed: bool
    deployment: str | None
    serving: str | None
    evidence: Path


class BuiltDataset(Frozen):
    """A dataset as a version of the workspace. `before` is the version before it; `facts` are its counts."""

    name: str
    id: str
    cached: bool
    card: Path
    workspace: Path
    sources: tuple[str, ...]
    before: str | None = None
    facts: dict[str, Any]


class RunResult(Frozen):
    """What a run made."""

    project: str
    workspace: Path
    dry_run: bool = False
    steps: tuple[Step, ...]
    table: tuple[TableLine, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    release: Released | None = None
    report: Path | None = None
    dataset: BuiltDataset | None = Field(None, description="where the run ends with a dataset")
    facts: dict[str, Any] = Field(default_factory=dict)


class DemoRequest(Request):
    """The bundled example."""

    folder: Path = Field(Path("desk-routing"), description="folder that the example is written to")


def run(request: RunRequest, events: Events) -> RunResult:
    """Make every artifact the project asks for; what is cached is not made again."""
    project, nodes, folder = _prepare(request)
    store = request.store
    before = {p.node.name: p for p in planning.plan(nodes, store, folder)} if store.recipes.exists() else {}
    if request.dry_run:
        return _dry(project, request, nodes, before)
    how = Run(store, folder, events, request.offline, frozenset(request.again))
    made = run_nodes(nodes, how)
    steps = []
    for node in nodes:
        record, cached = made[node.name], node.name in before and before[node.name].artifact == made[node.name]
        steps.append(
            Step(
                name=node.name, room=node.room, state="cached" if cached else "run", id=record.id,
                bytes=record.bytes, seconds=record.facts["seconds"],
            )
        )  # fmt: skip
    return _finish(project, request, tuple(steps), made)


def shortcut(request: RunRequest) -> RunResult | None:
    """The result of a run that has nothing left to do (or of a dry run), without starting a job."""
    project, nodes, folder = _prepare(request)
    if request.again or not request.store.recipes.exists():
        return _dry(project, request, nodes, {}) if request.dry_run else None
    planned = {p.node.name: p for p in planning.plan(nodes, request.store, folder)}
    if request.dry_run:
        return _dry(project, request, nodes, planned)
    made = {name: p.artifact for name, p in planned.items() if p.artifact is not None}
    if len(made) < len(nodes):
        return None
    steps = tuple(
        Step(name=n.name, room=n.room, state="cached", id=made[n.name].id, bytes=made[n.name].bytes) for n in nodes
    )
    return _finish(project, request, steps, made)


def left_to_do(request: RunRequest) -> frozenset[str]:
    """The recipes of the steps that would be run now: others once what they read has changed. Nothing is run."""
    _, nodes, folder = _prepare(request)
    return frozenset(p.recipe for p in planning.plan(nodes, request.store, folder) if p.artifact is None and p.recipe)


def perform(request: RunRequest, watch: jobs.Watcher) -> RunResult:
    """Run as a job that `watch` sees; a run with nothing left to do needs no job."""
    return shortcut(request) or jobs.attach(run, request, watch)


def submit(request: SubmitRequest) -> Job:
    """Start a run that goes on without this terminal."""
    asked = RunRequest(**request.model_dump() | {"project": request.project.absolute()})
    _prepare(asked)  # a mistake in the file is told now, not in a log
    return jobs.detach(run, asked)


def demo(request: DemoRequest) -> RunRequest:
    """Write the bundled example to a folder; the answer is the request that runs it."""
    target = request.folder / "inhouse.yaml"
    if not target.exists():
        with disk_errors(target):
            request.folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(example_project(), target)
    return RunRequest(workspace=request.workspace, offline=request.offline, project=target, ask=True)


def _prepare(request: RunRequest) -> tuple[Project, tuple[planning.Node, ...], Path]:
    project = load(request.project, request.overrides)
    nodes = planning.until(planning.pipeline(project), request.until)
    file = request.project if request.project.is_dir() else request.project.parent
    return project, nodes, file.absolute()


def _dry(
    project: Project, request: RunRequest, nodes: tuple[planning.Node, ...], planned: Mapping[str, planning.Planned]
) -> RunResult:
    steps = []
    for node in nodes:
        found = planned.get(node.name)
        record = found.artifact if found else None
        state = found.state if found else ("waits" if node.inputs else "run")
        if node.room in request.again:
            state, record = "run", None
        steps.append(Step(name=node.name, room=node.room, state=state, id=record.id if record else None))
    return RunResult(project=project.name, workspace=request.store.root, dry_run=True, steps=tuple(steps))


def _finish(project: Project, request: RunRequest, steps: tuple[Step, ...], made: Mapping[str, Artifact]) -> RunResult:
    store = request.store
    for used in made.values():
        store.use(used)  # "the newest report" is the one of the latest run, cached or not
    report = store.path(made["report"].id) if "report" in made else None
    result = RunResult(
        project=project.name, workspace=store.root, steps=steps,
        table=table_of(report) if report else (), report=report / PAGE if report else None,
        dataset=_dataset(made[steps[-1].name], steps[-1], store) if steps and steps[-1].room == "data" else None,
        facts={name: artifact.facts for name, artifact in made.items()},
    )  # fmt: skip
    if "release" not in made:
        return result
    record = made["release"]
    done = promotion.register(project, store, record)
    released = Released(
        label=done.release.label, artifact=record.id, passed=done.release.passed, deployment=done.deployment,
        serving=done.serving, evidence=store.path(record.id) / "measured" / "evidence.md",
    )  # fmt: skip
    verdicts = tuple(Verdict.model_validate(v) for v in record.facts["verdicts"])
    return result.model_copy(update={"release": released, "verdicts": verdicts})


def _dataset(record: Artifact, step: Step, store: Store) -> BuiltDataset:
    found = versions(store)
    place = next(place for place, version in enumerate(found) if version.record.id == record.id)
    return BuiltDataset(
        name=found[place].name, id=record.id, cached=step.state == "cached", card=store.path(record.id) / "README.md",
        workspace=store.root, sources=tuple(found[place].sources), before=found[place - 1].name if place else None,
        facts=record.facts,
    )  # fmt: skip


def table_of(report: Path) -> tuple[TableLine, ...]:
    """The summary of a report artifact in the language in use."""
    content = json.loads((report / FULL_REPORT).read_text(encoding="utf-8"))
    return tuple(TableLine(name=r.name, title=r.title, cells=r.cells) for r in render_table(content, language()))
