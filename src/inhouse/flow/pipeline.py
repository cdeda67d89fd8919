"""The steps that a project asks for, in order, and what each of them reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from inhouse.compress import stage as compress
from inhouse.core.errors import UserError
from inhouse.core.model import ModelParams
from inhouse.core.params import Params, needs
from inhouse.core.protocols import Stage
from inhouse.data import stage as data
from inhouse.evaluate import report
from inhouse.evaluate import stage as evaluate
from inhouse.evaluate.stage import EvaluateParams
from inhouse.flow.project import Project
from inhouse.release import stage as release
from inhouse.release.settings import ReleaseNode
from inhouse.select import stage as select
from inhouse.train import forgetting
from inhouse.train import stage as train
from inhouse.train.params import TrainParams

NEEDS = {
    "model": (), "data": (), "train": ("model",), "evaluate": ("model", "data"), "compress": ("model", "train", "data"),
    "release": ("model", "evaluate"),
}  # fmt: skip
MEASURED = ("base", "tuned", "exported")  # what the report sets side by side; the steps of a chain are not among them
NO_NAMES = {"data", "model"}  # what extra_data may not be called besides the names of steps


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


def pipeline(project: Project) -> tuple[Node, ...]:
    """The steps of a project, each after the ones it reads."""
    _refuse_gaps(project)
    nodes = [Node("base", select, project.model)] if project.model else []
    for name, params in project.extra_data.items():
        nodes.append(Node(name, data, params, seed=project.seed, use=project.use))
    if project.data:  # after the others: what builds data ends with it
        nodes.append(Node("dataset", data, project.data, seed=project.seed, use=project.use))
    nodes += _trained(project)
    if project.compress:
        learned = {name: name for name in sorted(_datasets_of(project.trainings))}
        # The adapter of the last training belongs on what that one began from.
        before = "base" if len(project.trainings) < 2 else f"tuned_{len(project.trainings) - 1}"
        inputs = {"base": before, "tuned": "tuned", "dataset": "dataset"} | learned
        nodes.append(Node("exported", compress, project.compress, inputs))
    if project.evaluate:
        nodes += _measured(project, project.evaluate, {n.name for n in nodes})
    if project.release:
        nodes.append(_released(project, nodes))
    _refuse_names(project, nodes)
    return tuple(nodes)


def _refuse_gaps(project: Project) -> None:
    """Raise plan.needs for a section without one that it needs, plan.nothing for a project that asks for nothing."""
    there = {name for name in NEEDS if getattr(project, name)}
    measured = [section.forgetting for section in project.trainings if section.forgetting]
    needed = dict(NEEDS)
    if "dataset" in _datasets_of([*project.trainings, *measured]):
        needed["train"] = ("model", "data")
    for section, names in needed.items():
        if missing := [name for name in names if section in there and name not in there]:
            raise UserError("plan.needs", section=section, missing=missing[0])
    _refuse_ends(project)
    if not there and not project.extra_data:
        raise UserError("plan.nothing")


def _refuse_ends(project: Project) -> None:
    """Raise plan.chain_* where a training leaves what the next one cannot begin from, plan.* where it is not exported.

    Virtual tokens cannot be merged into weights, and what names labels writes nothing.
    """
    for place, (one, other) in enumerate(pairwise(project.trainings), 1):
        if _tunes_prompt(one):
            raise UserError("plan.chain_prompt", place=place)
        if _classifies(one) and not _classifies(other):
            raise UserError("plan.chain_classifier", place=place)
    if project.compress and project.trainings:
        if _writes_nothing(project):
            raise UserError("plan.classifier")
        if _tunes_prompt(project.trainings[-1]):
            raise UserError("plan.unmerged")


def _writes_nothing(project: Project) -> bool:
    """Whether what is made names labels."""
    return bool(project.trainings) and _classifies(project.trainings[-1])


def _classifies(section: TrainParams) -> bool:
    return section.objective.model_dump().get("use") == "classify"


def _tunes_prompt(section: TrainParams) -> bool:
    return section.method.model_dump().get("use") == "prompt"


def _refuse_names(project: Project, nodes: Sequence[Node]) -> None:
    """Raise plan.name_taken for a dataset that is called like a step."""
    names = [node.name for node in nodes]
    for name in project.extra_data:
        if name in NO_NAMES or names.count(name) > 1:
            raise UserError("plan.name_taken", name=name)


def _datasets_of(sections: Sequence[Params]) -> set[str]:
    """The steps that make the datasets which settings name."""
    found = (need for section in sections for need in needs(section))
    return {_dataset_step(value) for mark, value in found if mark.kind == "dataset"}


def _dataset_step(name: str) -> str:
    return "dataset" if name == "data" else name


def _trained(project: Project) -> Iterator[Node]:
    """The trainings, each from what the one before made; the last makes `tuned`. Models they learn from come first."""
    models = _other_models(project)
    yield from (Node(name, select, params) for params, name in models.items() if name != "base")
    before = "base"
    for place, section in enumerate(project.trainings, 1):
        name = "tuned" if place == len(project.trainings) else f"tuned_{place}"
        yield Node(name, train, section, _inputs(project, section, models, {"base": before}), project.seed)
        if section.forgetting:
            learned = sorted(_datasets_of(project.trainings[:place]))
            # From the project's base, in a chain too: what a release has forgotten is what the base still knew.
            known = {"before": "base", "after": name}
            known |= {f"trained_{number}": step for number, step in enumerate(learned, 1)}
            yield Node(
                f"{name}_forgetting", forgetting, section.forgetting,
                _inputs(project, section.forgetting, models, known),
            )  # fmt: skip
        before = name


def _other_models(project: Project) -> dict[ModelParams, str]:
    """The steps of models that trainings read besides their base: `teacher`; `teacher_2` for another one."""
    found: dict[ModelParams, str] = {project.model: "base"} if project.model else {}
    for mark, value in (need for section in project.trainings for need in needs(section)):
        if mark.kind == "model" and value not in found:
            again = sum(name == mark.role or name.startswith(f"{mark.role}_") for name in found.values())
            found[value] = f"{mark.role}_{again + 1}" if again else mark.role
    return found


def _inputs(
    project: Project, section: Params, models: Mapping[ModelParams, str], inputs: Mapping[str, str]
) -> dict[str, str]:
    """`inputs` and the steps that a section's settings name, by role. Raises plan.no_dataset, plan.input_twice."""
    found = dict(inputs)
    for mark, value in needs(section):
        if mark.kind == "dataset" and value != "data" and value not in project.extra_data:
            known = ", ".join([*(["data"] if project.data else []), *project.extra_data]) or "-"
            raise UserError("plan.no_dataset", section="train", name=value, known=known)
        step = _dataset_step(value) if mark.kind == "dataset" else models[value]
        if found.setdefault(mark.role, step) != step:
            raise UserError("plan.input_twice", section="train", role=mark.role, one=found[mark.role], other=step)
    return found


def _measured(project: Project, settings: EvaluateParams, made: set[str]) -> Iterator[Node]:
    """Each model is measured by itself, so that a new export does not measure base and tuned again."""
    measured = [name for name in MEASURED if name != "base"] if _writes_nothing(project) else MEASURED
    models = [name for name in measured if name in made]
    for name in models:
        engine = "llamacpp" if name == "exported" else _reference_engine(project)
        params = evaluate.EvaluateNode(engine=engine, settings=settings)
        yield Node(f"{name}_predictions", evaluate, params, {"model": name, "dataset": "dataset"}, project.seed)
    inputs = {name: f"{name}_predictions" for name in models}
    also = {"parity": "exported", "training": "tuned", "forgetting": "tuned_forgetting"}
    inputs |= {role: name for role, name in also.items() if name in made}
    yield Node("report", report, report.ReportParams(name=project.name), inputs, project.seed)


def _reference_engine(project: Project) -> Literal["transformers", "remote"]:
    assert project.model is not None  # pipeline: what is measured needs a model
    return "remote" if project.model.base.startswith(("http://", "https://")) else "transformers"


def _released(project: Project, nodes: Sequence[Node]) -> Node:
    """The release reads all that was made, so that its evidence and its licences are complete."""
    assert project.release is not None
    made = [node.name for node in nodes]
    model = next(name for name in ("exported", "tuned", "base") if name in made)
    behind = [node.name for node in nodes if node.room not in ("evaluate", "release") and node.name != model]
    inputs = {"model": model, "report": "report"} | {name: name for name in behind}
    params = ReleaseNode(release=project.release, serve=project.serve, declared_use=project.use, project=project.name)
    return Node("release", release, params, inputs)
