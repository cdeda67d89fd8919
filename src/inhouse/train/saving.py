"""How long a checkpoint takes to write: a part of one is written, read back for its digest, and timed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from inhouse.core.fingerprint import hash_file
from inhouse.core.store import sync_tree
from inhouse.train.memory import timed

if TYPE_CHECKING:
    import torch

# Of weights that are written, and twice as much for AdamW's moments: one second. Less is written quicker byte for byte,
# as the system has pages at hand that were just given back.
PART_BYTES = 128 << 20
MOMENTS = 2  # of AdamW, each as large as the weight


def saving_seconds(model: torch.nn.Module, folder: Path | None = None) -> float:
    """Seconds that one checkpoint takes: weights, moments of what is trained, digests of both, and the disk.

    As `train.checkpoint` and transformers' trainer write it: weights as safetensors, moments by torch. Of adapters
    everything is written, of a whole model a part that stands for the rest.
    """
    kept = saved_weights(model)
    moments = MOMENTS * sum(p.nbytes for p in model.parameters() if p.requires_grad)
    whole: int = sum(weight.nbytes for weight in kept) + moments
    part = list(_part(kept, PART_BYTES))
    written: int = (1 + MOMENTS) * sum(one.nbytes for one in part)
    if not written:
        return 0.0
    with tempfile.TemporaryDirectory(dir=folder) as place:
        _, seconds = timed(lambda: _write(Path(place), part))
    return seconds * whole / written


def saved_weights(model: torch.nn.Module) -> list[torch.Tensor]:
    """The weights that a checkpoint holds: of adapters what is trained, else all, tied ones once."""
    from peft import PeftModel

    alone = isinstance(model, PeftModel)
    return [p.detach() for p in model.parameters() if p.requires_grad or not alone]


def _part(weights: Sequence[torch.Tensor], most: int) -> Iterator[torch.Tensor]:
    """The first weights, the last one cut, of so many bytes together at most."""
    left = most
    for weight in weights:
        count = min(weight.numel(), left // weight.itemsize)
        if count == 0:
            return
        flat = weight.reshape(-1)
        yield flat if count == weight.numel() else flat[:count].clone()  # torch writes all of what a slice is cut from
        left -= count * weight.itemsize


def _write(folder: Path, part: Sequence[torch.Tensor]) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({str(number): weight for number, weight in enumerate(part)}, folder / "weights")
    for moment in range(MOMENTS):
        torch.save(dict(enumerate(part)), folder / f"moment-{moment}")
    for path in sorted(folder.iterdir()):
        hash_file(path)
    sync_tree(folder)
