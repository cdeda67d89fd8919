"""Before a training is run: what it will take here, which learning rate suits, a small search."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from inhouse.api.request import Request
from inhouse.core.errors import UserError
from inhouse.core.protocols import Input
from inhouse.core.run import Events
from inhouse.flow.pipeline import pipeline
from inhouse.flow.plan import Node
from inhouse.flow.project import load
from inhouse.flow.runner import Run
from inhouse.flow.runner import run as run_nodes
from inhouse.train.params import TrainParams
from inhouse.train.planning import Plan, plan_training, refuse_base
from inhouse.train.rates import RateFound
from inhouse.train.rates import find_rate as find_rate_of
from inhouse.train.search import Budget, Searched, search

SEARCHES = "search"  # folder of the workspace that keeps the trials


class TrainingRequest(Request):
    """Which training of which project."""

    project: Path = Field(Path("inhouse.yaml"), description="project file, or a folder that holds inhouse.yaml")
    overrides: tuple[str, ...] = Field((), description="section.key=value, applied over the file")
    section: int = Field(1, ge=1, description="which training of a chain")


class FindRateRequest(TrainingRequest):
    """How long the rate rises."""

    steps: int = Field(60, ge=10, le=1000, description="optimiser steps over which the learning rate rises")


class SearchRequest(TrainingRequest):
    """How long to search."""

    minutes: float = Field(gt=0, le=7 * 24 * 60, description="budget of the whole search in minutes")
    trials: int = Field(12, ge=1, le=1000, description="trials that share the budget, at most")


@dataclass(frozen=True)
class Training:
    """One training with what it reads, all of it made."""

    params: TrainParams
    inputs: dict[str, Input]
    seed: int


def plan_train(request: TrainingRequest, events: Events) -> Plan:
    """Memory, time and batch of a training on this machine, from two real steps. Nothing is trained.

    The base is fetched and the dataset built where they are not made yet. Raises train.does_not_fit and
    train.parallel_method.
    """
    from inhouse.train.distributed import check
    from inhouse.train.setup import prepare

    found = open_training(request, events)
    refuse_base(found.inputs["base"], found.params)
    if found.params.parallel is not None:
        check(found.params)
    ready = prepare(found.params, found.inputs, found.seed, events)
    return plan_training(ready, found.params, found.seed, request.store.root)


def find_rate(request: FindRateRequest, events: Events) -> RateFound:
    """The learning rate that suits model and data, by raising it over a few real steps. Nothing is kept of them."""
    from inhouse.train.setup import prepare

    found = open_training(request, events)
    refuse_base(found.inputs["base"], found.params)
    ready = prepare(found.params, found.inputs, found.seed, events)
    return find_rate_of(ready, found.params, request.steps, found.seed, events)


def search_rates(request: SearchRequest, events: Events) -> Searched:
    """Learning rate and rank by short trials within a budget; an interrupted search goes on where it stopped."""
    found = open_training(request, events)
    refuse_base(found.inputs["base"], found.params)
    budget = Budget(request.minutes, request.trials, found.seed, request.store.root / SEARCHES)
    return search(found.params, found.inputs, budget, events)


def open_training(request: TrainingRequest, events: Events) -> Training:
    """A training's settings and inputs; what it reads is made first. Raises plan.no_step, train.no_section."""
    project = load(request.project, request.overrides)
    if not project.trainings:
        raise UserError("plan.no_step", room="train")
    if request.section > len(project.trainings):
        raise UserError("train.no_section", section=request.section, count=len(project.trainings))
    params = project.trainings[request.section - 1]
    nodes = pipeline(project)
    node = next(node for node in nodes if node.params is params)
    folder = request.project if request.project.is_dir() else request.project.parent
    needed = inputs_of(nodes, node)
    made = run_nodes(needed, Run(request.store, folder.absolute(), events, request.offline))
    events.stage = node.name
    inputs = {role: Input(made[name], request.store.path(made[name].id)) for role, name in node.inputs.items()}
    return Training(params, inputs, node.seed)


def inputs_of(nodes: tuple[Node, ...], node: Node) -> tuple[Node, ...]:
    """The steps whose artifacts a step reads, directly or not, in order."""
    by_name = {other.name: other for other in nodes}
    wanted: set[str] = set()
    pending = list(node.inputs.values())
    while pending:
        name = pending.pop()
        if name not in wanted:
            wanted.add(name)
            pending += by_name[name].inputs.values()
    return tuple(other for other in nodes if other.name in wanted)
