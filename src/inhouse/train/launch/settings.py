"""What a launch file is made from: how many machines, what they share, and what the scheduler asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from inhouse.core.params import Params

Scheduler = Literal["torchrun", "slurm", "kubernetes", "ray", "accelerate"]
Strategy = Literal["ddp", "fsdp2", "tp", "pp", "zero1", "zero2", "zero3"]


class Cluster(Params):
    """The machines of one training."""

    kind: Scheduler = Field("torchrun", description="what starts the processes on the machines")
    nodes: int = Field(2, ge=1, le=4096, description="machines")
    gpus: int = Field(8, ge=0, le=64, description="GPUs of each machine, one process for each; 0: one process without")
    strategy: Strategy | None = Field(
        None, description="how the work is cut; absent: train.parallel of the project, else fsdp2"
    )
    storage: Path | None = Field(
        None, description="folder that all machines see, with project and workspace below it; absent: the project's"
    )
    python: str = Field("python3", min_length=1, description="interpreter that has inhouse on every machine")
    cpus: int = Field(8, ge=1, le=1024, description="CPU cores for each process")
    rendezvous_port: int = Field(
        29500, ge=1024, le=65535, description="port of the first machine on which the processes meet"
    )
    restarts: int = Field(3, ge=0, le=100, description="how often a training that fails is taken up again")
    image: str | None = Field(
        None, pattern=r"^[\w./:@-]+$", max_length=512, description="kubernetes: container image that has inhouse in it"
    )
    claim: str | None = Field(
        None,
        pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$",
        max_length=253,
        description="kubernetes: PersistentVolumeClaim of the shared storage",
    )
    memory: str = Field("64Gi", pattern=r"^\d+(Ki|Mi|Gi|Ti)$", description="kubernetes: memory of each machine")
    partition: str | None = Field(None, pattern=r"^[\w.,-]+$", description="slurm: partition")
    account: str | None = Field(None, pattern=r"^[\w.-]+$", description="slurm: account")
    time: str = Field("24:00:00", pattern=r"^(\d+-)?\d+:\d\d:\d\d$", description="slurm: time limit, [days-]HH:MM:SS")

    @property
    def per_node(self) -> int:
        """Processes of each machine."""
        return max(1, self.gpus)

    @property
    def processes(self) -> int:
        """Processes in all."""
        return self.nodes * self.per_node
