"""Write the files that start a training on many machines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from inhouse.api.request import Request
from inhouse.core.artifact import Frozen
from inhouse.core.errors import UserError
from inhouse.core.store import disk_errors
from inhouse.flow.plan import pipeline
from inhouse.flow.project import load
from inhouse.train.distributed import check_kind
from inhouse.train.launch.files import Target, launch_files, next_step
from inhouse.train.launch.settings import Cluster, Strategy
from inhouse.train.parallel.settings import Kind
from inhouse.train.params import TrainParams


class LaunchRequest(Request, Cluster):
    """Which project, and the machines that train it."""

    project: Path = Field(Path("inhouse.yaml"), description="project file, or a folder that holds inhouse.yaml")
    overrides: tuple[str, ...] = Field((), description="section.key=value, applied over the file")
    folder: Path = Field(Path("launch"), description="folder to write to")


class Launched(Frozen):
    """The files that were written, and what to type next."""

    kind: str
    strategy: str
    processes: int
    files: tuple[Path, ...]
    command: str


def launch_training(request: LaunchRequest) -> Launched:
    """Write a launch file for torchrun, Slurm, Kubernetes, Ray or accelerate; nothing is started."""
    project = load(request.project, request.overrides)
    if project.train is None:
        raise UserError("plan.no_step", room="train")
    file = (request.project / "inhouse.yaml" if request.project.is_dir() else request.project).absolute()
    sections = project.model_dump()["train"]
    target = Target(
        name=project.name,
        project=file,
        workspace=request.store.root,
        storage=request.storage.absolute() if request.storage else file.parent,
        strategy=request.strategy or _strategy(sections),
        overrides=request.overrides,
        chain=len(sections) if isinstance(sections, list | tuple) else None,
    )
    kinds: dict[str, Kind] = {"ddp": "ddp", "fsdp2": "fsdp2", "tp": "tp", "pp": "pp"}
    kind = kinds.get(target.strategy, "deepspeed")
    for step in pipeline(project):
        if isinstance(step.params, TrainParams):
            check_kind(step.params, kind)
    cluster = Cluster.model_validate(request.model_dump(include=set(Cluster.model_fields)))
    written = launch_files(cluster, target)
    with disk_errors(request.folder):
        request.folder.mkdir(parents=True, exist_ok=True)
        for name, content in written.items():
            (request.folder / name).write_text(content, encoding="utf-8")
    return Launched(
        kind=cluster.kind,
        strategy=target.strategy,
        processes=cluster.processes,
        files=tuple(request.folder / name for name in written),
        command=next_step(cluster, request.folder, target),
    )


def _strategy(train: Any) -> Strategy:
    """How the project wants its (last) training cut; FSDP2 when it does not say."""
    section = train[-1] if isinstance(train, list | tuple) else train
    asked = (section or {}).get("parallel") or {"kind": "fsdp2"}
    if asked["kind"] != "deepspeed":
        return asked["kind"]  # type: ignore[no-any-return]
    zero: dict[int, Strategy] = {1: "zero1", 2: "zero2", 3: "zero3"}
    return zero[asked["zero"]]
