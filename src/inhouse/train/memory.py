"""Memory of a training run: what holds it, how much of it this machine has, and the peak of a piece of work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import Field

from inhouse.core.artifact import Frozen
from inhouse.core.run import peak_memory, reset_peak_memory

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
SAMPLED_EVERY_S = 0.002
CLOCK = time.perf_counter  # a benchmark on a busy machine counts CPU seconds instead
RESET_WITHIN = 64 << 20  # a peak this far above the present use, right after a reset, was not reset
LOGIT_COPIES = 2  # of the scores while the loss is taken: themselves and their gradient (train.losses keeps no other)


class Split(Frozen):
    """Bytes of a training run at its fullest moment, by what holds them; the parts add up to `peak`.

    Of a model that is trained whole, gradients take the place of activations while these are given back: what is
    then held twice over is counted with the gradients.
    """

    process: int = Field(description="the program itself: libraries, rows, tokens")
    weights: int = Field(description="the model in the type it computes in")
    gradients: int
    optimizer: int = Field(description="AdamW's two moments")
    activations: int = Field(description="what the backward pass needs of the forward pass")
    logits: int = Field(description="scores of the vocabulary where something is learned, with their loss")
    peak: int


class Machine(Frozen):
    """What training may use here. `available` is how far this process may grow, its present size included."""

    device: str
    memory: int
    available: int
    cores: int


class Held(Frozen):
    """Bytes that stand before the first batch and do not depend on it."""

    process: int
    weights: int
    gradients: int
    optimizer: int

    @property
    def resting(self) -> int:
        """Bytes between two steps: gradients are given back."""
        return self.process + self.weights + self.optimizer

    def split(self, extra: int, logits: int) -> Split:
        """The parts of a peak that lies `extra` bytes above rest; `logits` of them are the scores of the vocabulary."""
        gradients = min(self.gradients, extra)
        logits = min(logits, extra - gradients)
        parts = self.model_dump() | {"gradients": gradients, "logits": logits}
        return Split(**parts, activations=extra - gradients - logits, peak=self.resting + extra)


def held_by(model: torch.nn.Module, has_state: bool = False) -> Held:
    """Exact sums over the tensors of a loaded model and of AdamW's state; the process is what else it uses now.

    `has_state`: AdamW has taken a step already.
    """
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    weights = tensor_bytes([*model.parameters(), *model.buffers()])
    known = weights + (2 * trained if has_state else 0)
    other = 0 if on_gpu() else max(0, resident_bytes() - known)
    return Held(process=other, weights=weights, gradients=trained, optimizer=2 * trained)


def tensor_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of tensors; those that share their memory count once."""
    stores = [tensor.untyped_storage() for tensor in tensors]
    return sum({(store.device, store.data_ptr()): store.nbytes() for store in stores}.values())


def logit_bytes(vocabulary: int, width: int) -> int:
    """Bytes of the scores at one place while their loss is taken, in a model that computes with `width` bytes."""
    return vocabulary * width * LOGIT_COPIES


def measured_split(held: Held, logits: int) -> Split:
    """The split of a run that was: exact sums of tensors, and what else its peak held as activations and logits.

    `logits` are the bytes of the largest batch's scores. The peak is the process's since it was reset, or the card's.
    """
    import torch

    peak = int(torch.cuda.max_memory_allocated()) if on_gpu() else peak_memory()
    return held.split(max(0, peak - held.resting), logits)


def on_gpu() -> bool:
    """Whether training runs on a graphics card here."""
    import torch

    return bool(torch.cuda.is_available())


def machine() -> Machine:
    """The memory that this process may use: of the card, else of the machine or of its container."""
    import psutil
    import torch

    from inhouse.core.settings import usable_cores

    if on_gpu():
        free, total = torch.cuda.mem_get_info()
        mine = torch.cuda.memory_reserved()
        return Machine(device="cuda", memory=total, available=free + mine, cores=usable_cores())
    found = psutil.virtual_memory()
    total, free = found.total, found.available
    limit, used = _container()
    if limit is not None and limit < total:
        total, free = limit, min(free, max(0, limit - used))
    return Machine(device="cpu", memory=total, available=min(total, free + resident_bytes()), cores=usable_cores())


def _container(folder: Path = Path("/sys/fs/cgroup")) -> tuple[int | None, int]:
    """Limit and present use of this container (cgroup v2); None without a limit."""
    try:
        limit = (folder / "memory.max").read_text(encoding="ascii").strip()
        used = int((folder / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None, 0
    return (int(limit), used) if limit.isdigit() else (None, 0)


def resident_bytes() -> int:
    """Memory of this process in RAM."""
    import psutil

    size: int = psutil.Process().memory_info().rss
    return size


class Peak:
    """Follows how far memory rises above what it was: `with Peak() as peak: …; peak.above()`.

    On Linux and on a card the system's own high-water mark; elsewhere a thread looks every 2 ms.
    """

    def __enter__(self) -> Peak:
        import torch

        self._card = on_gpu()
        self._most, self._ended = 0, threading.Event()
        self._watched = False
        if self._card:
            torch.cuda.reset_peak_memory_stats()
            self.before = int(torch.cuda.memory_allocated())
            return self
        self.before = resident_bytes()
        reset_peak_memory()
        if peak_memory() > self.before + RESET_WITHIN:
            self._watched = True
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def above(self) -> int:
        """Bytes of the highest moment so far above the beginning."""
        import torch

        if self._card:
            most = int(torch.cuda.max_memory_allocated())
        elif self._watched:
            most = max(self._most, resident_bytes())
        else:
            most = peak_memory()
        return max(0, most - self.before)

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLED_EVERY_S):
            self._most = max(self._most, resident_bytes())


def timed(work: Callable[[], T]) -> tuple[T, float]:
    """What `work` gives, and the seconds it took; a card's queue is waited for."""
    import torch

    started = CLOCK()
    result = work()
    if on_gpu():
        torch.cuda.synchronize()
    return result, CLOCK() - started
