"""One rank of a training: `torchrun -m inhouse.train.parallel.worker ORDER...`, each ORDER a folder of the stage."""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from inhouse.core.errors import InhouseError, UserError
from inhouse.core.plugins import require
from inhouse.core.run import Events, die_with_parent
from inhouse.core.settings import usable_cores
from inhouse.core.store import disk_errors
from inhouse.train.checkpoint import saving
from inhouse.train.parallel.order import Order, leave, leave_error, read_order
from inhouse.train.parallel.settings import Kind

if TYPE_CHECKING:
    import torch


def main(folders: list[Path]) -> int:
    """Carry out the orders one after another; an error that a user can mend is left in the order's folder."""
    orders = [read_order(folder) for folder in folders]
    if orders[0].parent is not None:
        die_with_parent(orders[0].parent)
    import torch.distributed as dist

    from inhouse.train.parallel.group import open_group

    open_group()
    for order in orders:
        try:
            with disk_errors(order.folder), saving(order.folder):
                carry_out(order)
        except InhouseError as error:
            traceback.print_exc()
            with suppress(OSError):  # a full disk may not hold this either: then the launcher tells of it
                leave_error(order.folder, dist.get_rank(), error)
            # The others wait for this rank inside a library: the launcher ends them when this process has ended.
            sys.stderr.flush()
            os._exit(error.exit_code)
    dist.destroy_process_group()
    return 0


def carry_out(order: Order) -> None:
    """Train with the other ranks; rank 0 leaves the weights and the loop's result in the order's folder."""
    import torch
    import torch.distributed as dist

    from inhouse.train.setup import Place, job_for, prepare
    from inhouse.train.watch import memory_now

    params, parallel, rank = order.params, order.params.parallel, dist.get_rank()
    assert parallel is not None
    if parallel.kind == "deepspeed":
        require("deepspeed", "deepspeed")
        if not torch.cuda.is_available():
            raise UserError("train.deepspeed_gpu")
    events = Events(order.events if rank == 0 else None)
    events.stage = order.stage
    ready = prepare(params, order.inputs, order.seed, events)
    _share_cores()
    model = ready.loaded.model
    job = job_for(ready, params, order.seed, Place(order.scratch, events, order.recipe, order.offline))
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if parallel.kind in ("tp", "pp"):
        from inhouse.train.parallel.cut import train_cut as train
    else:
        from inhouse.train.parallel.shared import train_shared as train
    trained = train(model, params, job)
    ranks: list[dict[str, int]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(ranks, {"rank": rank, **memory_now()})
    trained = replace(trained, ranks=ranks)
    weights = gathered(model, names, parallel.kind)
    if rank == 0:
        leave(order.folder, weights, trained)
        peaks = ", ".join(
            f"{one['rank']}: {(one.get('gpu_bytes') or one['memory_bytes']) / 1e9:.2f} GB" for one in ranks
        )
        events.note("train.ranks_memory", peaks=peaks)
    dist.barrier()


def _share_cores() -> None:
    """The processes of a machine without GPUs share its cores; beside a GPU a few threads are enough."""
    import torch
    import torch.distributed as dist

    beside = torch.cuda.device_count() or dist.get_world_size()
    torch.set_num_threads(max(1, usable_cores() // beside))


def gathered(model: torch.nn.Module, names: set[str], kind: Kind) -> dict[str, torch.Tensor]:
    """The trained weights called `names`, whole; on rank 0 all of them."""
    import torch.distributed as dist

    from inhouse.train.parallel.group import unpartitioned, whole

    found = {name: parameter for name, parameter in model.named_parameters() if name in names}
    if kind == "deepspeed":
        return unpartitioned(found)
    mine = {name: whole(parameter) for name, parameter in found.items()}
    if kind != "pp":
        return mine
    parts: list[dict[str, torch.Tensor]] | None = [{}] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(mine, parts, dst=0)  # every rank has the layers that no other has
    return {name: value for part in parts or [] for name, value in part.items()}


if __name__ == "__main__":
    sys.exit(main([Path(name) for name in sys.argv[1:]]))
