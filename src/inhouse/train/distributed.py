"""Training in several processes: started here, or by a launch file on many machines.

The stage writes an order (train/parallel/order.py), torchrun's launcher starts one worker per rank on it
(train/parallel/worker.py), and rank 0 leaves the trained weights, which the stage puts into its own model for the
checks after training.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inhouse.core.errors import UserError
from inhouse.core.protocols import Context
from inhouse.core.store import full_disk
from inhouse.train.checkpoint import Recipe
from inhouse.train.parallel.order import error_of, outcome_of, put_weights, read_order, write_order
from inhouse.train.parallel.settings import Kind
from inhouse.train.params import TrainParams

if TYPE_CHECKING:
    import torch

TOKENWISE = ("sft", "pretrain")  # objectives whose loss is that of each learned token


def train_in_ranks(params: TrainParams, context: Context, recipe: Recipe) -> Path:
    """Train as `params.parallel` says; returns the folder that `take` reads.

    Starts the processes here, unless this one is rank 0 of those that a launch file has started.
    Raises what the first failing process raised, and train.parallel_method, train.world_size.
    """
    from inhouse.train.parallel.line import announce, is_launched

    assert params.parallel is not None
    check(params)
    if not is_launched():
        folder = write_order(params, context, recipe, os.getpid())
        start_ranks([folder], params.parallel.processes)
        return folder
    from inhouse.train.parallel.worker import carry_out

    folder = write_order(params, context, recipe, None)
    announce(folder, params.parallel.processes)
    carry_out(read_order(folder))
    return folder


def take(model: torch.nn.Module, folder: Path) -> dict[str, Any]:
    """Give `model` the weights that the ranks trained; returns the fields of the loop's result."""
    put_weights(model, folder)
    return outcome_of(folder)


def check(params: TrainParams) -> None:
    """Refuse what several processes cannot do together (train.parallel_method, train.parallel_alone)."""
    assert params.parallel is not None
    check_kind(params, params.parallel.kind)


def check_kind(params: TrainParams, kind: Kind) -> None:
    """The same for a kind that was chosen elsewhere, as for a launch file."""
    alone = {"train.privacy": params.privacy is not None, "train.penalties": bool(params.penalties)}
    if what := next((name for name, asked in alone.items() if asked), None):
        raise UserError("train.parallel_alone", what=what)
    refused: dict[str, bool] = {}
    if kind in ("tp", "pp"):
        refused["train.eval_steps"] = params.eval_steps is not None
        refused["train.report_to"] = bool(params.report_to)
        refused["train.precision: fp16"] = params.precision == "fp16"
    if kind == "tp":
        refused["train.method: qlora"] = params.method.use == "qlora"  # type: ignore[attr-defined]
    if kind == "pp":
        refused["train.changes"] = bool(params.changes)
        use: str = params.objective.use  # type: ignore[attr-defined]
        refused[f"train.objective: {use}"] = use not in TOKENWISE
    if what := next((name for name, asked in refused.items() if asked), None):
        raise UserError("train.parallel_method", kind=kind, what=what)


def start_ranks(folders: list[Path], processes: int) -> None:
    """Run the orders in `folders`, one after another, in `processes` workers on this machine; return when all ended.

    Raises what the first failing worker raised, or train.worker_failed with the place of its output.
    """
    from uuid import uuid4

    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logs = folders[0] / "logs"
    logs.mkdir(exist_ok=True)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,  # an error would come again; what was killed goes on from its checkpoint at the next run
        logs_specs=DefaultLogsSpecs(log_dir=str(logs), redirects=Std.ALL),
    )
    command = ("-u", "-m", "inhouse.train.parallel.worker", *map(str, folders))
    try:
        elastic_launch(config, sys.executable)(*command)
    except ChildFailedError as error:
        told = next(filter(None, map(error_of, folders)), None)
        raise told or full_disk(logs) or UserError("train.worker_failed", log=logs) from error
