"""The group of processes that train together: opening it, and what they tell each other."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PATIENCE = timedelta(minutes=30)  # a rank that says nothing for so long is taken for dead


def open_group() -> bool:
    """Join the processes that torchrun started: NCCL where there are GPUs (one per process), else gloo.

    Returns whether there is a group to close again: Ray opens one itself, and closes it.
    """
    import torch
    import torch.distributed as dist

    if dist.is_initialized():
        return False
    if torch.cuda.is_available():
        torch.cuda.set_device(dist.get_node_local_rank(0))
    else:
        # accelerate calls the CPU of rank n `cpu:n`, which torch.load does not know as a place for a checkpoint.
        torch.serialization.register_package(90, lambda _: None, lambda got, at: got if at.startswith("cpu:") else None)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    return True


def device() -> torch.device:
    """Where this rank computes."""
    import torch

    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def tell(value: Any, source: int = 0) -> Any:
    """What rank `source` has, on every rank."""
    import torch.distributed as dist

    told = [value]
    dist.broadcast_object_list(told, src=source)
    return told[0]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, put together where ranks hold parts of it (all ranks must ask), on the CPU."""
    from torch.distributed.tensor import DTensor

    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().cpu().clone()


def unpartitioned(parameters: dict[str, torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    """Copies of weights that DeepSpeed may keep in parts (ZeRO 3), put together. Not run by our makers: needs GPUs."""
    from deepspeed.zero import GatheredParameters  # type: ignore[import-not-found, unused-ignore]

    with GatheredParameters(list(parameters.values())):
        return {name: parameter.detach().cpu().clone() for name, parameter in parameters.items()}


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that this rank holds."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def clip(
    parameters: Iterable[torch.nn.Parameter], longest: float, apart: bool, copy: torch.nn.Parameter | None = None
) -> float:
    """Shorten the gradient of all ranks together to `longest`, as clip_grad_norm_ does; returns its length before.

    `apart`: every rank has parameters of its own, but for `copy`, which another rank counts. Otherwise plain ones are
    the same on all ranks and count once.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor

    trained = [p for p in parameters if p.grad is not None]
    gradients = [p.grad for p in trained]
    summed = torch.zeros(2, dtype=torch.float64, device=device())  # squares: of parts, and of the rest
    for gradient in [p.grad for p in trained if p is not copy]:
        cut = apart or (isinstance(gradient, DTensor) and any(place.is_shard() for place in gradient.placements))
        summed[0 if cut else 1] += local(gradient).double().square().sum()
    dist.all_reduce(parts := summed[0].clone())
    length = float((parts + summed[1]).sqrt())
    scale = min(1.0, longest / (length + 1e-6))
    for gradient in gradients:
        local(gradient).mul_(scale)
    return length
