"""Plan before the run: memory and time on this machine, the batch that fits, and a refusal that says what would."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from inhouse.core.artifact import Frozen
from inhouse.core.errors import UserError
from inhouse.core.messages import text
from inhouse.core.plugins import operator_of
from inhouse.core.protocols import Input
from inhouse.core.run import Events
from inhouse.train.arguments import checkpoints
from inhouse.train.batching import resized, sizes_of
from inhouse.train.lint import Remark, remarks
from inhouse.train.memory import Machine, Split, machine
from inhouse.train.params import TrainParams
from inhouse.train.privacy import Budget, private_settings, run_budget
from inhouse.train.probe import Calibration, Probed, Shape, calibrate, shape_of

if TYPE_CHECKING:
    from inhouse.train.setup import Prepared
    from inhouse.train.tokens import Sample

SAFE = 0.95  # of what is available: other programs breathe too
LOOKED_AT = 64  # batches whose exact cost is looked at, beside the longest ones; the others cost as these on average
LONGEST = 4
# Measured: 1.2 to 1.45 times the time. Kept are the inputs of each layer, and one layer's activations at a time.
CHECKPOINTING_TIME = 1.33
TRAINED_BYTES = 16  # of a weight that is trained in float32: itself, its gradient, AdamW's two moments
PROCESS_BYTES = 600 << 20  # torch, transformers, PEFT and compiled loops without a model
STEP_LENGTH = 64  # of the max_length that is proposed


class Plan(Frozen):
    """What a training run will take on this machine. Bytes and seconds are foretold from `calibration`'s real steps."""

    method: str
    precision: str
    parameters: int
    trainable: int
    trainable_share: float
    samples: int = Field(description="examples: conversations, or pairs of a better and a worse one")
    too_long: int
    tokens: int = Field(description="token positions computed in the whole run, shared beginnings once")
    steps: int
    batch_size: int = Field(description="conversations read together")
    parts: int = Field(description="batches per optimiser step")
    gradient_checkpointing: bool
    split: Split
    saving: int = Field(description="bytes of the checks after training, which hold a second copy of the model")
    machine: Machine
    calibration: Calibration
    step_s: float
    checkpoints: int = Field(description="how many are written, the one at the end included")
    checkpoint_s: float = Field(description="of one of them")
    run_s: float = Field(
        description="steps, checkpoints, and getting memory from the system; not the checks afterwards"
    )
    tokens_per_s: float
    privacy: Budget | None = Field(None, description="noise and bound of a private run")
    remarks: tuple[Remark, ...] = ()

    @property
    def peak(self) -> int:
        """Bytes at the fullest moment, checks afterwards included."""
        return max(self.split.peak, self.saving)


def refuse_base(base: Input, params: TrainParams) -> None:
    """Raise train.base_does_not_fit where the weights alone are too much: told before they are loaded."""
    from inhouse.engines.transformers import facts_of
    from inhouse.train.setup import compute_dtype, save_dtype

    facts, here = facts_of(base), machine()
    compute, save = compute_dtype(params.precision), save_dtype(base, params)
    role = operator_of("method", params.method).function("BASE")
    kept = save.itemsize + (compute.itemsize if compute != save else 0)
    each = {"trained": TRAINED_BYTES, "rounded": compute.itemsize}.get(role, kept)
    needed = (facts.parameters or 0) * each + PROCESS_BYTES
    if needed > here.available:
        raise UserError(
            "train.base_does_not_fit", name=facts.name, needed=gigabytes(needed), available=gigabytes(here.available)
        )


@dataclass(frozen=True)
class Cost:
    """What the batches of a run cost at one size."""

    largest: Shape
    tokens: int
    seconds: float  # of all steps
    steps: int


def plan_training(ready: Prepared, params: TrainParams, seed: int, folder: Path | None = None) -> Plan:
    """Measure two real steps, and foretell the run. Raises train.does_not_fit, with what would fit.

    A part of a checkpoint is written into `folder`, where one is named, to see how long that takes.

    The batch is cut where the settings allow it (auto_find_batch_size), and activations are computed twice
    (gradient_checkpointing: auto) where nothing else fits.
    """
    params = private_settings(params)
    samples = ready.texts.samples
    private = None if params.privacy is None else run_budget(params, len(samples.kept), samples.origins)
    here = machine()
    room = int(here.available * SAFE)
    steps = steps_of(ready, params, seed)
    largest = max(steps, key=lambda step: sum(len(sample.ids) for sample in step))
    probed = calibrate(ready, largest[: params.per_device_train_batch_size * ready.learning.unit], room, folder)
    forecast = Forecast(ready, probed, steps)
    chosen = choose(forecast, params, room)
    if chosen is None:
        raise refusal(forecast, params, here)
    return _plan(forecast, *chosen, here).model_copy(update={"privacy": private})


def steps_of(ready: Prepared, params: TrainParams, seed: int) -> list[list[Sample]]:
    """The samples of every optimiser step of the run."""
    from inhouse.train.loop import plan_steps
    from inhouse.train.setup import Place, job_for

    whole = params.model_copy(
        update={"per_device_train_batch_size": params.step_size, "gradient_accumulation_steps": 1}
    )
    samples = ready.texts.samples.kept
    job = job_for(ready, params, seed, Place(Path(), Events()))
    return [[samples[place] for place in step] for step in plan_steps(whole, job)]


@dataclass(frozen=True)
class Forecast:
    """What was measured, and the steps that it is applied to."""

    ready: Prepared
    probed: Probed
    steps: Sequence[Sequence[Sample]]

    def split(self, shape: Shape, checkpointing: bool) -> Split:
        """The peak of a run whose largest batch has this shape."""
        calibration = self.probed.calibration
        extra = calibration.extra(shape)
        logits = calibration.place_bytes * shape.predicted
        if checkpointing:
            extra = min(extra, logits + self._kept(shape, max(0, extra - logits)))
        return self.probed.held.split(extra, logits)

    def _kept(self, shape: Shape, activations: int) -> int:
        config = self.ready.loaded.model.config.get_text_config()
        layers, width = int(config.num_hidden_layers), int(config.hidden_size)
        width *= int(self.ready.loaded.compute.itemsize)
        return layers * width * shape.tokens + activations // layers

    def shape(self, samples: Sequence[Sample]) -> Shape:
        """What a batch of these samples costs."""
        return shape_of(samples, self.ready)

    def largest(self, size: int) -> Shape:
        """The costliest batch of the run at this size; only those with the most tokens are looked at closely."""
        batches = sorted(self.batches(size), key=lambda b: sum(len(s.ids) for s in b), reverse=True)
        shapes = [self.shape(batch) for batch in batches[:LONGEST]]
        return max(shapes, key=lambda shape: shape.tokens)

    def batches(self, size: int) -> Iterator[Sequence[Sample]]:
        """The steps in batches of at most `size` examples; an example may be several samples."""
        return cut(self.steps, size * self.ready.learning.unit)

    def saving(self) -> int:
        """Bytes while the result is checked: the model and a copy of it, in the type that is saved."""
        loaded = self.ready.loaded
        return self.probed.held.process + 2 * loaded.total * int(loaded.save.itemsize)


def cut(steps: Sequence[Sequence[Sample]], size: int) -> Iterator[Sequence[Sample]]:
    """Steps in batches of at most `size` samples."""
    return (step[at : at + size] for step in steps for at in range(0, len(step), size))


def choose(forecast: Forecast, params: TrainParams, room: int) -> tuple[TrainParams, Split] | None:
    """The settings that fit into `room` bytes, as near to those that are set as may be; None where none do."""
    sizes = sizes_of(params) if params.auto_find_batch_size else [params.per_device_train_batch_size]
    ways = {"auto": (False, True)}.get(str(params.gradient_checkpointing), (params.gradient_checkpointing is True,))
    if forecast.saving() > room:
        return None
    for checkpointing in ways:
        for size in sizes:
            split = forecast.split(forecast.largest(size), checkpointing)
            if split.peak <= room:
                return resized(params, size).model_copy(update={"gradient_checkpointing": checkpointing}), split
    return None


def cost(forecast: Forecast, params: TrainParams) -> Cost:
    """Tokens and seconds of the whole run: exact for some batches, which stand for the others."""
    size, calibration = params.per_device_train_batch_size, forecast.probed.calibration
    batches = list(forecast.batches(size))
    every = max(1, len(batches) // LOOKED_AT)
    looked = [forecast.shape(batch) for batch in batches[::every]]
    slower = CHECKPOINTING_TIME if params.gradient_checkpointing is True else 1.0
    tokens = sum(shape.tokens for shape in looked) * len(batches) / len(looked)
    seconds = sum(calibration.seconds(shape) for shape in looked) * len(batches) / len(looked) * slower
    largest = forecast.largest(size)
    once = calibration.state_s + calibration.growth_s(largest)
    total = seconds + calibration.update_s * len(forecast.steps) + once
    return Cost(largest, round(tokens), total, len(forecast.steps))


def _plan(forecast: Forecast, params: TrainParams, split: Split, here: Machine) -> Plan:
    loaded, texts = forecast.ready.loaded, forecast.ready.texts
    found, calibration = cost(forecast, params), forecast.probed.calibration
    written = checkpoints(params, found.steps)
    return Plan(
        method=params.method.use,  # type: ignore[attr-defined]
        precision=str(loaded.compute).removeprefix("torch."),
        parameters=loaded.total,
        trainable=loaded.trainable,
        trainable_share=loaded.trainable / loaded.total,
        samples=len(texts.samples.kept) // forecast.ready.learning.unit,
        too_long=texts.samples.too_long,
        tokens=found.tokens,
        steps=found.steps,
        batch_size=params.per_device_train_batch_size,
        parts=params.gradient_accumulation_steps,
        gradient_checkpointing=params.gradient_checkpointing is True,
        split=split,
        saving=forecast.saving(),
        machine=here,
        calibration=calibration,
        step_s=found.seconds / found.steps,
        checkpoints=written,
        checkpoint_s=calibration.save_s,
        run_s=found.seconds + written * calibration.save_s,
        tokens_per_s=found.tokens / max(found.seconds, 1e-9),
        remarks=tuple(remarks(params, found.steps)),
    )


def refusal(forecast: Forecast, params: TrainParams, here: Machine) -> UserError:
    """The error that says how much is missing and what would fit."""
    room = int(here.available * SAFE)
    split = forecast.split(forecast.largest(params.per_device_train_batch_size), params.gradient_checkpointing is True)
    options = list(options_that_fit(forecast, params, room))
    return UserError(
        "train.does_not_fit",
        needed=gigabytes(max(split.peak, forecast.saving())),
        available=gigabytes(here.available),
        parts=", ".join(f"{name} {gigabytes(getattr(split, name))}" for name in Split.model_fields if name != "peak"),
        options="; ".join(options) or text("train.fits.nothing"),
    )


def options_that_fit(forecast: Forecast, params: TrainParams, room: int) -> Iterator[str]:
    """Changes of one setting each under which the run fits, as a person types them, with the peak they come to."""
    if forecast.saving() > room:
        return
    for size in sizes_of(params)[1:]:
        if (split := forecast.split(forecast.largest(size), False)).peak <= room:
            parts = ceil(params.step_size / size)
            yield text("train.fits.batch", size=size, parts=parts, peak=gigabytes(split.peak))
            break
    whole = forecast.largest(params.per_device_train_batch_size)
    if params.gradient_checkpointing is False and (split := forecast.split(whole, True)).peak <= room:
        yield text("train.fits.checkpointing", peak=gigabytes(split.peak))
    yield from _shorter(forecast, params, room)
    yield from _other_methods(forecast, whole, room)


def _shorter(forecast: Forecast, params: TrainParams, room: int) -> Iterator[str]:
    """The longest max_length under which the batch as it is set fits, when any rows are left."""
    lengths = sorted(len(sample.ids) for sample in forecast.ready.texts.samples.kept)
    for length in range(lengths[-1] // STEP_LENGTH * STEP_LENGTH, STEP_LENGTH - 1, -STEP_LENGTH):
        kept = [[sample for sample in step if len(sample.ids) <= length] for step in forecast.steps]
        left = Forecast(forecast.ready, forecast.probed, [step for step in kept if step])
        if not left.steps:
            return
        split = left.split(left.largest(params.per_device_train_batch_size), params.gradient_checkpointing is True)
        if split.peak <= room:
            dropped = sum(found > length for found in lengths)
            yield text("train.fits.length", length=length, dropped=dropped, peak=gigabytes(split.peak))
            return


def _other_methods(forecast: Forecast, whole: Shape, room: int) -> Iterator[str]:
    """LoRA in place of full tuning, and 4-bit weights in place of wide ones."""
    held, loaded = forecast.probed.held, forecast.ready.loaded
    extra = forecast.split(whole, False).peak - held.resting
    if loaded.trainable > loaded.total / 2:
        resting = held.process + held.weights
        if resting + extra <= room:
            yield text("train.fits.lora", peak=gigabytes(resting + extra))
        return
    rounded = held.process + loaded.total * 6 // 10 + held.optimizer  # 4 bits, scales, and an output layer left wide
    if held.weights > loaded.total and rounded + extra <= room:
        yield text("train.fits.qlora", peak=gigabytes(rounded + extra))


def gigabytes(count: int) -> str:
    """Bytes for a person."""
    return f"{count / 1e9:.2f} GB"
