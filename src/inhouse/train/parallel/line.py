"""Ranks that a launch file started, on many machines: rank 0 runs the project, the others wait for what to train.

All see one file system: an order is the path of its folder.
"""

from __future__ import annotations

from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

from inhouse.core.errors import UserError

PATIENCE = timedelta(days=7)  # rank 0 may build the data first


@cache
def line() -> Any:
    """The group that orders travel on: apart from training's own, and patient. All ranks call this once, together."""
    import torch.distributed as dist

    return dist.new_group(backend="gloo", timeout=PATIENCE)


def is_launched() -> bool:
    """Whether a launch file started this process together with others."""
    import torch.distributed as dist

    return bool(dist.is_available() and dist.is_initialized())


def announce(folder: Path | None, processes: int) -> None:
    """Rank 0 tells the others to carry out the order in `folder`; None: all is done.

    Raises train.world_size when the launch file started another number of processes than the project asks for.
    """
    import torch.distributed as dist

    if folder is not None and processes != dist.get_world_size():
        raise UserError("train.world_size", processes=processes, started=dist.get_world_size())
    dist.broadcast_object_list([folder and str(folder)], src=0, group=line())


def follow() -> None:
    """Carry out what rank 0 announces, until it says that all is done."""
    import torch.distributed as dist

    from inhouse.train.parallel.order import read_order
    from inhouse.train.parallel.worker import carry_out

    while True:
        told: list[str | None] = [None]
        dist.broadcast_object_list(told, src=0, group=line())
        if told[0] is None:
            return
        carry_out(read_order(Path(told[0])))
