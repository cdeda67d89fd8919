"""One training of a comparison, measured in a process of its own: memory, speed, and quality on rows held back."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from inhouse.core.artifact import Frozen
from inhouse.core.errors import UserError
from inhouse.core.protocols import Input
from inhouse.core.run import Events, peak_memory, release_memory, reset_peak_memory
from inhouse.train.brief import brief_job, brief_trainer
from inhouse.train.memory import Split, machine, on_gpu
from inhouse.train.params import TrainParams
from inhouse.train.planning import refuse_base, steps_of
from inhouse.train.probe import calibrate
from inhouse.train.row_quality import RowFound, row_qualities
from inhouse.train.setup import Place, Prepared, prepare
from inhouse.train.virtual import virtual_ids

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from inhouse.train.settle import Settled

LEAST_STEPS = 4
LOOKED_AT = 24  # examples read at each measurement on the way; the end is measured on all of them
VERSUS_BASE = ("dpo", "kto")  # right is what has moved from the base: of the base itself nothing can be said
WARM = 1  # steps that speed leaves out: first calls are slower

Ended = Literal["done", "out_of_time", "diverged"]


class Arm(Frozen):
    """One training to measure. Its dataset holds the very rows to learn and, as `valid`, those to measure on."""

    name: str
    params: dict[str, Any] = Field(description="TrainParams as JSON")
    seed: int
    steps: int | None = Field(None, ge=0, description="optimiser steps; 0: the base as it is; absent: see fit_s")
    fit_s: float | None = Field(None, description="as many steps as go into so many seconds, by two measured ones")
    most_s: float | None = Field(None, description="seconds of training after which it is cut off")
    looks: int = Field(0, ge=0, description="measurements on the way, beside the one before the first step")
    quality: bool = Field(True, description="measure every row held back at the end")

    @property
    def settings(self) -> TrainParams:
        """The settings of this training alone: one process, no checkpoints, rows of its own to measure on."""
        found = TrainParams.model_validate(self.params)
        alone: dict[str, Any] = {"parallel": None, "forgetting": None, "report_to": ()}
        watch = {"eval_steps": 1, "eval_share": None, "early_stopping_patience": None}
        return found.model_copy(update=alone | watch)


class Look(Frozen):
    """The mean loss on some of the rows held back, after so many steps and seconds of training."""

    step: int
    train_s: float
    loss: float


class Measured(Frozen):
    """What a training took here, and each row that was held back."""

    ended: Ended
    trainable: int
    total: int
    precision: str
    steps: int
    planned: int
    examples: int = Field(description="examples that were read, repeats counted")
    tokens: int = Field(description="useful tokens that were read: no padding, no virtual tokens")
    train_s: float = Field(description="wall seconds of training; measurements left out")
    tokens_per_s: float | None = Field(description="useful tokens per wall second; the first step left out")
    tokens_per_cpu_s: float | None
    split: Split | None = Field(description="bytes at the fullest moment of training; None for the base as it is")
    looks: tuple[Look, ...]
    rows: tuple[RowFound, ...] = Field(description="none where training diverged")


def measure_arm(arm: Arm, inputs: Mapping[str, Input], events: Events) -> Measured:
    """Train as `arm` says, in this process, and measure. Nothing is kept of the weights.

    Raises what preparing and settling a training raises, such as train.does_not_fit.
    """
    params = arm.settings
    refuse_base(inputs["base"], params)
    from inhouse.train import trainer  # noqa: F401  what it loads is part of the process that is measured

    ready = prepare(params, inputs, arm.seed, events)
    if on_gpu():
        ready.loaded.model.to("cuda")
    planned = _length(ready, params, arm)
    meter = Meter(arm, events, len(virtual_ids(ready.loaded.model)))
    settled = _train(ready, params, planned, meter) if planned else None
    rows = row_qualities(ready, params, inputs["dataset"], events) if arm.quality else []
    if settled is None and params.objective.model_dump()["use"] in VERSUS_BASE:
        rows = [row.model_copy(update={"right": None}) for row in rows]
    diverged = meter.state == "diverged" or not all(isfinite(row.loss) for row in rows)
    return Measured(
        ended="diverged" if diverged else meter.state,
        trainable=ready.loaded.trainable,
        total=ready.loaded.total,
        precision=str(ready.loaded.compute).removeprefix("torch."),
        steps=len(meter.tokens),
        planned=planned,
        examples=meter.examples,
        tokens=sum(meter.tokens),
        train_s=round(meter.spent, 3),
        tokens_per_s=_rate(meter.tokens, meter.seconds),
        tokens_per_cpu_s=_rate(meter.tokens, meter.cpu_seconds),
        split=_split(settled, meter) if settled else None,
        looks=tuple(look for look in meter.looks if isfinite(look.loss)),
        rows=() if diverged else tuple(rows),
    )


def _length(ready: Prepared, params: TrainParams, arm: Arm) -> int:
    """How many steps: as asked, never more than the whole run has; else what goes into `fit_s`."""
    if arm.steps == 0:
        return 0
    steps = steps_of(ready, params, arm.seed)
    if arm.steps is not None or arm.fit_s is None:
        return min(arm.steps or len(steps), len(steps))
    calibration = calibrate(ready, steps[0], machine().available).calibration
    tokens = sum(len(sample.ids) for step in steps for sample in step) / len(steps)
    pace = calibration.large.seconds / calibration.large.shape.tokens * tokens + calibration.update_s
    return min(len(steps), max(LEAST_STEPS, int(arm.fit_s / pace)))


def _train(ready: Prepared, params: TrainParams, planned: int, meter: Meter) -> Settled:
    from inhouse.train.settle import settle

    params = params.model_copy(update={"max_steps": planned, "eval_steps": planned})
    release_memory()  # what loading left behind is no part of training
    with tempfile.TemporaryDirectory() as folder:
        settled = settle(ready, params, meter.arm.seed, Place(Path(folder), Events()))
    job = brief_job(ready, settled.params, meter.arm.seed)
    job = replace(job, valid=job.valid[: LOOKED_AT * job.learning.unit])
    with brief_trainer(ready.loaded.model, settled.params, job, [meter.callback()]) as trainer:
        trainer.args.eval_on_start = meter.arm.looks > 0
        parts = settled.params.gradient_accumulation_steps
        batches: Sequence[Sequence[Any]] = trainer.train_dataset
        meter.plan = [[s for part in batches[at : at + parts] for s in part] for at in range(0, len(batches), parts)]
        try:
            trainer.train()
        except UserError as error:
            if error.code != "train.diverged":
                raise
            meter.state = "diverged"
    release_memory()
    return settled


def _split(settled: Settled, meter: Meter) -> Split:
    return settled.held.split(max(0, meter.peak - settled.held.resting), settled.logits)


def _rate(tokens: Sequence[int], seconds: Sequence[float]) -> float | None:
    """Tokens per second; the first step is left out where there are others."""
    first = WARM if len(tokens) > WARM + 1 else 0
    spent = sum(seconds[first:])
    return round(sum(tokens[first:]) / spent, 2) if spent > 0 else None


@dataclass
class Meter:
    """Clock and memory of a training; both stand still while rows held back are measured."""

    arm: Arm
    events: Events
    virtual: int
    state: Ended = "done"
    plan: list[list[Any]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    examples: int = 0
    peak: int = 0
    wall: float = 0.0
    cpu: float = 0.0

    @property
    def spent(self) -> float:
        """Wall seconds of training so far."""
        return sum(self.seconds)

    def start(self) -> None:
        """Go on counting from here."""
        import torch

        if on_gpu():
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        else:
            reset_peak_memory()
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def step(self) -> None:
        """One more step is done."""
        import torch

        if on_gpu():
            torch.cuda.synchronize()
        now, cpu = time.perf_counter(), time.process_time()
        self.seconds.append(now - self.wall)
        self.cpu_seconds.append(cpu - self.cpu)
        self.wall, self.cpu = now, cpu
        self.peak = max(self.peak, int(torch.cuda.max_memory_allocated()) if on_gpu() else peak_memory())
        samples = self.plan[len(self.tokens)]
        self.tokens.append(sum(len(sample.ids) - self.virtual for sample in samples))
        self.examples += len(samples)

    def look(self, step: int, loss: float) -> None:
        """Note a measurement."""
        self.looks.append(Look(step=step, train_s=round(self.spent, 3), loss=loss))
        self.start()

    def over(self) -> bool:
        """Whether the time of this training is spent."""
        return self.arm.most_s is not None and self.spent >= self.arm.most_s

    def callback(self) -> TrainerCallback:
        """What hands the trainer's events to this meter."""
        return _callback(self)


def _callback(meter: Meter) -> TrainerCallback:
    from transformers import TrainerCallback

    class Hand(TrainerCallback):  # type: ignore[misc]
        """Count each step, ask for measurements at even distances, and end when the time is over."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            meter.start()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            meter.step()
            done, whole = state.global_step, state.max_steps
            meter.events.progress(done, whole, "steps", step=meter.arm.name)
            if meter.over() and done < whole:
                meter.state, control.should_training_stop = "out_of_time", True
            control.should_evaluate = meter.arm.looks > 0 and (
                control.should_training_stop or done == whole or done % max(1, ceil(whole / meter.arm.looks)) == 0
            )

        def on_evaluate(
            self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **_: Any
        ) -> None:
            meter.look(state.global_step, float((metrics or {}).get("eval_loss", float("nan"))))

    return Hand()


def reached(looks: Sequence[Look], loss: float) -> float | None:
    """Seconds of training until the loss was as low as `loss`, straight lines between measurements; None: never."""
    before: Look | None = None
    for look in looks:
        if look.loss <= loss:
            if before is None or before.loss <= look.loss:
                return look.train_s
            share = (before.loss - loss) / (before.loss - look.loss)
            return before.train_s + share * (look.train_s - before.train_s)
        before = look
    return None
