"""The steps a project asks for, in order, and which of them must run."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from inhouse.compress import stage as compress
from inhouse.core.artifact import Artifact
from inhouse.core.errors import UserError
from inhouse.core.fingerprint import hash_json
from inhouse.core.params import Params, deciding
from inhouse.core.plugins import source_digest
from inhouse.core.protocols import Stage
from inhouse.core.store import Store
from inhouse.data import stage as data
from inhouse.evaluate import report
from inhouse.evaluate import stage as evaluate
from inhouse.evaluate.stage import EvaluateParams
from inhouse.flow.project import Project
from inhouse.release import stage as release
from inhouse.release.settings import ReleaseNode
from inhouse.select import stage as select
from inhouse.train import stage as train

NEEDS = {
    "model": (), "data": (), "train": ("model", "data"), "evaluate": ("model", "data"), "compress": ("model", "train"),
    "release": ("model", "evaluate"),
}  # fmt: skip
State = Literal["cached", "run", "waits"]


@dataclass(frozen=True)
class Node:
    """One step: a stage with its params, and the steps whose artifacts it reads (role -> step name)."""

    name: str
    stage: Stage
    params: Params
    inputs: dict[str, str] = field(default_factory=dict)
    seed: int = 0  # 0 for a stage that draws nothing at random, so that a new seed does not rerun it
    use: str = "evaluation"  # the declared use, for a stage that refuses what its inputs' terms do not allow

    @property
    def room(self) -> str:
        """The lifecycle step this belongs to: select, data, train …"""
        return self.stage.__name__.split(".")[1]  # type: ignore[attr-defined,no-any-return]


@dataclass(frozen=True)
class Planned:
    """A step with what is known before the run. `recipe` is None while an input still has to be made."""

    node: Node
    state: State
    recipe: str | None
    artifact: Artifact | None


def pipeline(project: Project) -> tuple[Node, ...]:
    """The steps of a project, each after the ones it reads."""
    _refuse_gaps(project)
    nodes = [Node("base", select, project.model)] if project.model else []
    if project.data:
        nodes.append(Node("dataset", data, project.data, seed=project.seed, use=project.use))
    if project.train:
        nodes.append(Node("tuned", train, project.train, {"base": "base", "dataset": "dataset"}, project.seed))
    if project.compress:
        inputs = {name: name for name in ("base", "tuned", "dataset")}
        nodes.append(Node("exported", compress, project.compress, inputs))
    if project.evaluate:
        nodes += _measured(project, project.evaluate, [n.name for n in nodes if n.name != "dataset"])
    if project.release:
        nodes.append(_released(project, {n.name for n in nodes}))
    return tuple(nodes)


def _refuse_gaps(project: Project) -> None:
    """Raise plan.needs for a section without one that it needs, plan.nothing for a project that asks for nothing."""
    there = {name for name in NEEDS if getattr(project, name)}
    for section, needed in NEEDS.items():
        if missing := [name for name in needed if section in there and name not in there]:
            raise UserError("plan.needs", section=section, missing=missing[0])
    if not there:
        raise UserError("plan.nothing")


def _measured(project: Project, settings: EvaluateParams, models: list[str]) -> Iterator[Node]:
    """Each model is measured by itself, so that a new export does not measure base and tuned again."""
    for name in models:
        engine = "llamacpp" if name == "exported" else _reference_engine(project)
        params = evaluate.EvaluateNode(engine=engine, settings=settings)
        yield Node(f"{name}_predictions", evaluate, params, {"model": name, "dataset": "dataset"}, project.seed)
    inputs = {name: f"{name}_predictions" for name in models}
    if "exported" in models:
        inputs["parity"] = "exported"
    if "tuned" in models:
        inputs["training"] = "tuned"
    yield Node("report", report, report.ReportParams(name=project.name), inputs, project.seed)


def _reference_engine(project: Project) -> Literal["transformers", "remote"]:
    assert project.model is not None  # pipeline: what is measured needs a model
    return "remote" if project.model.base.startswith(("http://", "https://")) else "transformers"


def _released(project: Project, made: set[str]) -> Node:
    assert project.release is not None
    model = next(name for name in ("exported", "tuned", "base") if name in made)
    inputs = {"model": model, "report": "report"}
    inputs |= {name: name for name in ("base", "dataset", "tuned", "exported") if name in made and name != model}
    params = ReleaseNode(release=project.release, serve=project.serve, declared_use=project.use, project=project.name)
    return Node("release", release, params, inputs)


def until(nodes: tuple[Node, ...], room: str | None) -> tuple[Node, ...]:
    """The steps needed for those of one room; all of them when `room` is None."""
    if room is None:
        return nodes
    wanted = {n.name for n in nodes if n.room == room}
    if not wanted:
        raise UserError("plan.no_step", room=room)
    by_name = {n.name: n for n in nodes}
    pending = list(wanted)
    while pending:
        for name in by_name[pending.pop()].inputs.values():
            if name not in wanted:
                wanted.add(name)
                pending.append(name)
    return tuple(n for n in nodes if n.name in wanted)


def recipe(node: Node, inputs: Mapping[str, Artifact], project_dir: Path) -> tuple[str, dict[str, str], dict[str, str]]:
    """The cache key of a step, with the outside content and the operators that entered it.

    A release judges the terms of its inputs, so they enter its key; nothing else runs again when terms are restated.
    """
    external = node.stage.external(node.params, project_dir)
    used = dict(sorted(operator_versions(node.params)))
    key = {
        "stage": node.room,
        "kind": node.stage.KIND,
        "version": node.stage.VERSION,
        "params": deciding(node.params),
        "operators": used,
        "inputs": {role: artifact.id for role, artifact in inputs.items()},
        "external": external,
        "seed": node.seed,
        "use": node.use,
    }
    if node.stage.KIND == "release":
        key["terms"] = sorted({t.model_dump_json() for artifact in inputs.values() for t in artifact.licences})
    return hash_json(key)[:24], external, used


def operator_versions(params: BaseModel) -> Iterator[tuple[str, str]]:
    """Name and code digest of every operator that stands anywhere in `params`."""
    if hasattr(type(params), "model_fields") and "use" in type(params).model_fields:
        module = sys.modules[type(params).__module__]
        yield f"{type(params).__module__}", source_digest(module)
    for name in type(params).model_fields:
        yield from _inside(getattr(params, name))


def _inside(value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, BaseModel):
        yield from operator_versions(value)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _inside(item)
    elif isinstance(value, dict):
        yield from _inside(list(value.values()))


def plan(nodes: tuple[Node, ...], store: Store, project_dir: Path) -> tuple[Planned, ...]:
    """What a run would do now, without doing it."""
    planned: dict[str, Planned] = {}
    for node in nodes:
        before = {role: planned[name].artifact for role, name in node.inputs.items()}
        inputs = {role: artifact for role, artifact in before.items() if artifact is not None}
        if len(inputs) < len(before):
            planned[node.name] = Planned(node, "waits", None, None)
            continue
        key, _, _ = recipe(node, inputs, project_dir)
        found = store.find(key)
        state: State = "cached" if found else "run"
        planned[node.name] = Planned(node, state, key, found and found.inheriting(inputs.values()))
    return tuple(planned.values())
