"""The files that start one training on many machines."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from inhouse.core.errors import UserError
from inhouse.train.launch.settings import Cluster, Strategy

HOLE = re.compile(r"@([A-Z_]+)@")
RANK = "inhouse.api.rank"
FILES = {
    "torchrun": "torchrun.sh",
    "slurm": "train.sbatch",
    "kubernetes": "pytorchjob.yaml",
    "ray": "ray_train.py",
    "accelerate": "accelerate.yaml",
}


@dataclass(frozen=True)
class Target:
    """What is trained: the project's name, and where project, workspace and shared storage lie on every machine."""

    name: str
    project: Path
    workspace: Path
    storage: Path
    strategy: Strategy
    overrides: tuple[str, ...] = ()
    chain: int | None = None  # how many trainings, where the project's `train` is a list

    def settings(self, cluster: Cluster) -> tuple[str, ...]:
        """The overrides that make the project train in this many processes."""
        zero = self.strategy.startswith("zero")
        asked = {"kind": "deepspeed" if zero else self.strategy, "processes": str(cluster.processes)}
        asked |= {"zero": self.strategy[-1]} if zero else {}
        sections = ["train"] if self.chain is None else [f"train.{place}" for place in range(self.chain)]
        return (*self.overrides, *(f"{at}.parallel.{key}={value}" for at in sections for key, value in asked.items()))


def launch_files(cluster: Cluster, target: Target) -> dict[str, str]:
    """Names and contents of the files for this scheduler.

    Raises launch.one_process, launch.strategy, launch.outside, launch.image.
    """
    _check(cluster, target)
    name = FILES[cluster.kind]
    template = files("inhouse.train.launch").joinpath("templates", name + ".in").read_text("utf-8")
    return {name: fill(template, _words(cluster, target))}


def next_step(cluster: Cluster, folder: Path, target: Target) -> str:
    """What to type to start the training."""
    file = shlex.quote(str(folder / FILES[cluster.kind]))
    if cluster.kind == "accelerate":
        return f"accelerate launch --config_file {file} -m {RANK} {_arguments(cluster, target)}"
    commands = {"torchrun": "MASTER_ADDR=… bash", "slurm": "sbatch", "kubernetes": "kubectl apply -f", "ray": "python"}
    return f"{commands[cluster.kind]} {file}"


def fill(template: str, words: dict[str, str]) -> str:
    """The template with every @NAME@ replaced; lines that are only a hole without a value are left out."""
    lines = [line for line in template.splitlines() if not (m := HOLE.fullmatch(line.strip())) or words[m[1]]]
    return "\n".join(HOLE.sub(lambda m: words[m[1]], line) for line in lines) + "\n"


def _check(cluster: Cluster, target: Target) -> None:
    if cluster.processes < 2:
        raise UserError("launch.one_process")
    if target.strategy.startswith("zero") and not cluster.gpus:
        raise UserError("launch.strategy", strategy=target.strategy)
    for path in (target.project, target.workspace):
        if not path.is_relative_to(target.storage):
            raise UserError("launch.outside", path=path, storage=target.storage)
    if cluster.kind == "kubernetes" and not (cluster.image and cluster.claim):
        raise UserError("launch.image")


def _arguments(cluster: Cluster, target: Target) -> str:
    return shlex.join([str(target.project), *target.settings(cluster)])


def _words(cluster: Cluster, target: Target) -> dict[str, str]:
    """What stands in the templates' holes. Values of the user are quoted for the language that they stand in."""
    slurm: dict[str, str | None] = {"partition": cluster.partition, "account": cluster.account}
    asked = [f"#SBATCH --{name}={value}" for name, value in slurm.items() if value]
    if cluster.gpus:
        asked.append(f"#SBATCH --gpus-per-node={cluster.gpus}")
    return {
        "NAME": target.name,
        "STRATEGY": target.strategy,
        "NODES": str(cluster.nodes),
        "WORKERS": str(cluster.nodes - 1),
        "PER_NODE": str(cluster.per_node),
        "PROCESSES": str(cluster.processes),
        "GPUS": str(cluster.gpus),
        "USE_GPU": str(bool(cluster.gpus)),
        "USE_CPU": "false" if cluster.gpus else "true",
        "BACKEND": "nccl" if cluster.gpus else "gloo",
        "CPUS": str(cluster.cpus),
        "NODE_CPUS": str(cluster.cpus * cluster.per_node),
        "PORT": str(cluster.rendezvous_port),
        "RESTARTS": str(cluster.restarts),
        "TIME": cluster.time,
        "SBATCH": "\n".join(asked),
        "PYTHON": shlex.quote(cluster.python),
        "ARGUMENTS": _arguments(cluster, target),
        "WORKSPACE": shlex.quote(str(target.workspace)),
        "STORAGE": shlex.quote(str(target.storage)),
        "LIST_ARGUMENTS": _list([str(target.project), *target.settings(cluster)]),
        "TEXT_PROJECT": _text(str(target.project)),
        "TEXT_SETTINGS": _list(target.settings(cluster)),
        "TEXT_WORKSPACE": _text(str(target.workspace)),
        "TEXT_STORAGE": _text(str(target.storage)),
        "TEXT_PYTHON": _text(cluster.python),
        "TEXT_IMAGE": _text(cluster.image or ""),
        "TEXT_CLAIM": _text(cluster.claim or ""),
        "MEMORY": cluster.memory,
        "GPU_RESOURCE": f"nvidia.com/gpu: {cluster.gpus}" if cluster.gpus else "",
        "MORE_PODS": _workers(cluster),
        "FSDP": _fsdp(target.strategy),
        "DISTRIBUTED_TYPE": {"fsdp2": "FSDP"}.get(target.strategy, "MULTI_GPU" if cluster.gpus else "MULTI_CPU"),
    }


def _text(value: Any) -> str:
    """A value as JSON, which is YAML and Python too for texts and lists of texts."""
    return json.dumps(value, ensure_ascii=False)


def _list(values: Sequence[str]) -> str:
    return _text(list(values))


def _workers(cluster: Cluster) -> str:
    """The pods beside the first one, as the same template (a YAML alias)."""
    if cluster.nodes == 1:
        return ""
    return f"    Worker:\n      replicas: {cluster.nodes - 1}\n      restartPolicy: OnFailure\n      template: *pod"


def _fsdp(strategy: Strategy) -> str:
    """What accelerate is told of FSDP2: the same as the trainer is (train/parallel/shared.py)."""
    if strategy != "fsdp2":
        return ""
    settings = {
        "fsdp_version": "2",
        "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "fsdp_reshard_after_forward": "true",
        "fsdp_state_dict_type": "FULL_STATE_DICT",
        "fsdp_offload_params": "false",
        "fsdp_activation_checkpointing": "false",
        "fsdp_cpu_ram_efficient_loading": "false",
    }
    return "fsdp_config:\n" + "\n".join(f"  {name}: {value}" for name, value in settings.items())
