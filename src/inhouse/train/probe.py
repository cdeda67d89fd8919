"""A few real steps, measured: how memory and time grow with the tokens of a batch. No weight changes."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inhouse.core.artifact import Frozen
from inhouse.core.run import release_memory
from inhouse.train.memory import Held, Peak, held_by, logit_bytes, on_gpu, timed
from inhouse.train.saving import saving_seconds

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

    from inhouse.train.setup import Prepared
    from inhouse.train.tokens import Sample

SMALL_TOKENS, LARGE_TOKENS = 128, 512  # of the two batches, each read twice: 5 s of one core for 135M, LoRA
LONGEST_GRADIENT = 1.0  # any: shortening takes the same time


class Shape(Frozen):
    """What a batch costs: token positions that are computed, and places whose vocabulary is scored."""

    tokens: int
    predicted: int


class Reading(Frozen):
    """One step as it was measured. Bytes are above what stood before it.

    `seconds` of forward and backward pass are those of a step in memory that the process has already; `first_s` those
    of the same step when all of it must be got from the system, which clears it page by page.
    """

    shape: Shape
    forward_bytes: int
    peak_bytes: int
    seconds: float
    first_s: float = 0.0


class Calibration(Frozen):
    """Two measured steps, and what they foretell of others."""

    small: Reading
    large: Reading
    update_s: float  # of shortening gradients, the optimiser's step, and giving gradients back
    place_bytes: int  # of the scores at one place
    save_s: float = 0.0  # of writing one checkpoint
    state_s: float = 0.0  # of making the optimiser's state, once, in memory that is got from the system

    def extra(self, shape: Shape) -> int:
        """Bytes that a step on such a batch needs above rest.

        Below the larger reading the line through both peaks; above it the steeper of that line and the forward pass's:
        gradients of a model that is trained whole hide in the smaller peak, and make its line too flat.
        """
        small, large = self.small, self.large
        tokens = shape.tokens - large.shape.tokens
        if tokens < 0 and large.shape.tokens > small.shape.tokens:
            slope = (large.peak_bytes - small.peak_bytes) / (large.shape.tokens - small.shape.tokens)
            return max(0, round(large.peak_bytes + slope * tokens))
        more = self.place_bytes * (shape.predicted - large.shape.predicted)
        return max(0, round(large.peak_bytes + self._per_token() * tokens + more))

    def seconds(self, shape: Shape) -> float:
        """Seconds of forward and backward pass over such a batch."""
        span = self.large.shape.tokens - self.small.shape.tokens
        per_token = (self.large.seconds - self.small.seconds) / span if span else 0.0
        fixed = self.large.seconds - per_token * self.large.shape.tokens
        if per_token <= 0 or fixed < 0:  # too short to tell the two apart
            per_token, fixed = self.large.seconds / self.large.shape.tokens, 0.0
        return fixed + per_token * shape.tokens

    def growth_s(self, shape: Shape) -> float:
        """Seconds that getting a run's memory from the system takes, once, where this is its largest batch.

        In short runs a sixth of all; on machines that clear pages slowly more.
        """
        seen = (self.small, self.large) if self.large != self.small else (self.large,)
        bytes_, first = sum(one.peak_bytes for one in seen), sum(max(0.0, one.first_s - one.seconds) for one in seen)
        return first / bytes_ * self.extra(shape) if bytes_ else 0.0

    def _per_token(self) -> float:
        """Bytes a token adds, by the forward pass alone or by the peaks, whichever is more."""
        span = self.large.shape.tokens - self.small.shape.tokens
        kept = [r.forward_bytes - self.place_bytes * r.shape.predicted for r in (self.small, self.large)]
        most = [r.peak_bytes - self.place_bytes * r.shape.predicted for r in (self.small, self.large)]
        if span > 0 and kept[1] > kept[0]:
            return max(kept[1] - kept[0], most[1] - most[0]) / span
        return max(0, kept[1]) / self.large.shape.tokens


@dataclass(frozen=True)
class Probed:
    """What stands still, and what was measured."""

    held: Held
    calibration: Calibration


def calibrate(ready: Prepared, samples: Sequence[Sample], room: int, folder: Path | None = None) -> Probed:
    """Measure a small and a larger batch out of `samples`, the largest batch of the run; weights stay as they are.

    The larger one is left out where it would not fit into `room` bytes. What a checkpoint takes is measured by writing
    a part of one into `folder`, the system's temporary one without.
    """
    import torch
    from transformers import Trainer  # noqa: F401  what it loads is part of the process that is measured

    model = ready.loaded.model
    if on_gpu():
        model.to("cuda")
    trained = [p for p in model.parameters() if p.requires_grad]
    # At a rate of 0 the step is real, and weights stay.
    optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0, fused=ready.loaded.compute != torch.float16)
    one, two = probe_samples(samples, ready.learning.unit)
    width = ready.loaded.compute.itemsize
    from inhouse.train import team
    from inhouse.train.step import reading, reading_of

    with team.apart(), _as_found(model), reading(model, reading_of(model, ready.reading)):
        loss_of(one, ready).backward()  # first calls are slower
        _, first_s = timed(lambda: _update(optimizer))  # and make the optimiser's state
        release_memory()
        # Only now: what libraries load with the first step, and keep, is part of the process.
        held = held_by(model, has_state=True)
        small, update = _step(ready, one, optimizer)
        place = logit_bytes(model.config.get_text_config().vocab_size, max(2, min(4, width)))
        found = Calibration(small=small, large=small, update_s=update, place_bytes=place)
        shape = shape_of(two, ready)
        if shape.tokens > small.shape.tokens and held.resting + found.extra(shape) < room:
            large, update = _step(ready, two, optimizer)
            found = Calibration(small=small, large=large, update_s=update, place_bytes=place)
        # Here, where memory is held as it is in training: a file's pages are then new ones to the system too.
        made = {"save_s": saving_seconds(model, folder), "state_s": max(0.0, first_s - found.update_s)}
        found = found.model_copy(update=made)
        release_memory()
        # Again: of what a step frees, the C library keeps what stands between blocks in use.
        held = max(held, held_by(model, has_state=True), key=lambda one: one.process)
    return Probed(held, found)


def probe_samples(samples: Sequence[Sample], unit: int = 1) -> tuple[list[Sample], list[Sample]]:
    """A small and a larger batch, of the sizes above where there are samples enough; those of middling length first.

    `unit` samples make an example and stay together.
    """
    examples = [samples[at : at + unit] for at in range(0, len(samples), unit)]
    order = sorted(examples, key=_tokens)
    order = order[len(order) // 2 :] + order[: len(order) // 2]
    return _first(order, SMALL_TOKENS), _first(order, LARGE_TOKENS)


def _first(examples: Sequence[Sequence[Sample]], tokens: int) -> list[Sample]:
    """The first examples that have so many tokens together; at least one."""
    before = itertools.accumulate(map(_tokens, examples), initial=0)
    chosen = [example for example, already in zip(examples, before, strict=False) if already < tokens]
    return [sample for example in chosen for sample in example]


def _tokens(samples: Sequence[Sample]) -> int:
    return sum(len(sample.ids) for sample in samples)


def shape_of(samples: Sequence[Sample], ready: Prepared) -> Shape:
    """What a batch of these samples costs."""
    inputs = _inputs(samples, ready)
    packed = inputs["batch"].packed
    rows, places = inputs["input_ids"].shape[0], inputs["labels"].numel()
    return Shape(tokens=inputs["input_ids"].numel(), predicted=places if packed else rows * places)


def loss_of(samples: Sequence[Sample], ready: Prepared) -> torch.Tensor:
    """Mean loss of one batch, as training takes it; the model must be set up to read (`step.reading`)."""
    from inhouse.train.ahead import AHEAD, mean_of, read_ahead
    from inhouse.train.step import reading_of

    model = ready.loaded.model
    device, how = next(model.parameters()).device, (reading_of(model, ready.reading), ready.texts.pad)
    found = _inputs(samples, ready)
    inputs = {name: value.to(device) if name != "batch" else value for name, value in found.items()}
    inputs[AHEAD] = mean_of(read_ahead(model, [samples], ready.learning, how))
    return ready.learning.loss(model, inputs).total / len(found["labels"])


def _inputs(samples: Sequence[Sample], ready: Prepared) -> dict[str, Any]:
    from inhouse.train.batches import collate
    from inhouse.train.step import reading_of

    return collate(samples, ready.texts.pad, reading_of(ready.loaded.model, ready.reading), ready.learning)


def _step(ready: Prepared, samples: Sequence[Sample], optimizer: torch.optim.Optimizer) -> tuple[Reading, float]:
    """One step, taken twice: in memory that is new, then in the same; and the seconds of the second one's update."""
    release_memory()
    with Peak() as peak:
        loss, forward_s = timed(lambda: loss_of(samples, ready))
        forward = peak.above()
        _, backward_s = timed(loss.backward)
        most = peak.above()
    del loss
    timed(lambda: _update(optimizer))
    again, again_s = timed(lambda: loss_of(samples, ready))
    _, back_s = timed(again.backward)
    _, update_s = timed(lambda: _update(optimizer))
    first, seconds = forward_s + backward_s, again_s + back_s
    shape = shape_of(samples, ready)
    found = Reading(shape=shape, forward_bytes=forward, peak_bytes=most, seconds=seconds, first_s=first)
    return found, update_s


def _update(optimizer: torch.optim.Optimizer) -> None:
    """What stands between two steps: gradients are shortened, used, and given back."""
    import torch

    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], LONGEST_GRADIENT)
    optimizer.step()
    optimizer.zero_grad()


@contextmanager
def _as_found(model: PeftModel | PreTrainedModel) -> Iterator[None]:
    """Training mode, and the random generators afterwards as they were: dropout draws from them."""
    import torch

    cards = [torch.cuda.current_device()] if on_gpu() else []
    before = model.training
    gc.freeze()  # what is loaded already is no garbage: looking through all of it took longer than a step
    with torch.random.fork_rng(devices=cards):
        model.train()
        try:
            yield
        finally:
            model.train(before)
            model.zero_grad(set_to_none=True)
            gc.unfreeze()
            release_memory()
