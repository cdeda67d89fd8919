"""Settings of a training in several processes: the `parallel` key of the train section."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from inhouse.core.params import Params
from inhouse.train.launch.deepspeed import Offload, Zero

Kind = Literal["ddp", "fsdp2", "tp", "pp", "deepspeed"]
PROCESSES = "processes in all, one per GPU; on a CPU they share its cores"


class Torch(Params):
    """Several processes for one training. The rows of an optimiser step stay those that one process would take."""

    kind: Literal["ddp", "fsdp2", "tp", "pp"] = Field(
        description="ddp: each process holds the model and takes a part of every batch; fsdp2: it holds a part of each "
        "weight too; tp: the weights' matrices are cut; pp: the layers are cut"
    )
    processes: int = Field(2, ge=2, le=262_144, description=PROCESSES)


class DeepSpeed(Params):
    """ZeRO by DeepSpeed, for GPUs. Its settings are checked; training with it has not been run by our makers."""

    kind: Literal["deepspeed"]
    processes: int = Field(2, ge=2, le=262_144, description=PROCESSES)
    zero: Zero = Field(2, description="kept in parts: 1 the optimiser's state; 2 and gradients; 3 and weights")
    offload: Offload = Field("none", description="kept in the CPU's memory: the optimiser's state; all: weights too")


Parallel = Annotated[Torch | DeepSpeed, Field(discriminator="kind")]
PARALLEL: TypeAdapter[Torch | DeepSpeed] = TypeAdapter(Parallel)
