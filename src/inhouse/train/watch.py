"""What is told while training runs, and what stops it.

Events (each with `t`, `event` and `stage`, as core.run says), in the order in which they may come:

- `stage.progress`: done, total (optimiser steps), unit `steps`, tokens_per_s
- `train.evaluating`: done, total (batches of the rows held back); at most four times a second
- `train.step`, at every log: step, steps, loss (mean since the log before), learning_rate, grad_norm (before clipping),
  tokens_per_s (since the log before, evaluation left out), memory_bytes (peak of the process), gpu_bytes (peak, only
  with a GPU), eta_s (seconds to the end at the pace so far)
- `train.evaluated`: step, loss and accuracy (per learned token of the rows held back), best (whether the lowest so
  far), seconds
- `train.saved`: step, path, seconds: a checkpoint that counts
- `train.stall`: step, seconds without a sign of life, where, stacks (a file with the stacks of all threads)
- `train.ended`: step, steps, stopped_early, best_step and best_loss (null without evaluation)

A run that ends with an error emits no `train.ended`; the job's result says what happened.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from inhouse.core.messages import text as say
from inhouse.core.params import OnlyHow, Params
from inhouse.core.run import PROGRESS_EVERY_S, Events, peak_memory
from inhouse.train.checkpoint import Recipe, prune, saving, settle
from inhouse.train.divergence import Divergence, diverged, loss_rose
from inhouse.train.stall import Pulse, stall_watch
from inhouse.train.track import BOARD, Tracker, tracking

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback

Curve = list[dict[str, float]]


class WatchParams(Params):
    """What is looked at while training runs, what is kept, and what ends it early."""

    logging_steps: int = Field(5, ge=1, description="steps between points of the loss curve")
    save_steps: Annotated[int | None, OnlyHow()] = Field(
        None, ge=1, description="steps between checkpoints; default: ten in a run"
    )
    save_total_limit: Annotated[int, OnlyHow()] = Field(
        2, ge=1, description="checkpoints kept while training; the best and the newest always are"
    )
    eval_steps: int | None = Field(
        None, ge=1, description="steps between measurements on rows held back; the best checkpoint is then what is kept"
    )
    eval_share: float | None = Field(
        None, gt=0, le=0.5, description="share of the training rows held back; default: the dataset's valid part"
    )
    early_stopping_patience: int | None = Field(
        None, ge=1, description="measurements without improvement after which training ends"
    )
    early_stopping_threshold: float = Field(0.0, ge=0, description="a smaller fall of the loss is no improvement")
    divergence_factor: Annotated[float, OnlyHow()] = Field(
        3.0, gt=1, description="training stops when the loss is this many times its best smoothed value"
    )
    divergence_patience: Annotated[int, OnlyHow()] = Field(
        3, ge=1, description="points of the loss curve in a row that must be so high"
    )
    stall_seconds: Annotated[float, OnlyHow()] = Field(
        300, gt=0, description="without a sign of life for so long, and for 20 usual steps, all stacks are written down"
    )
    report_to: Annotated[tuple[Tracker, ...], OnlyHow()] = Field(
        (), description="tensorboard: files beside the model; mlflow: the server that MLFLOW_TRACKING_URI names"
    )

    @model_validator(mode="after")
    def _early_stopping_has_measurements(self) -> WatchParams:
        if self.eval_steps is None and (self.early_stopping_patience or self.eval_share):
            raise ValueError(say("problem.needs_eval_steps"))
        return self


@dataclass(frozen=True)
class Watched:
    """A run of the loop: where its checkpoints go, the step it goes on from, and the tokens each step reads."""

    events: Events
    folder: Path
    recipe: Recipe
    tokens: Sequence[int]
    resumed: int = 0
    offline: bool = False
    epochs: float = 1.0  # of the whole run


@contextmanager
def watching(trainer: Trainer, params: WatchParams, run: Watched) -> Iterator[None]:
    """Watch what `trainer` does inside the block: events, checkpoints, early stopping, trackers, stalls.

    Raises train.diverged and train.loss_rose out of the trainer, and Cancelled when the user stops the job.
    """
    from transformers import EarlyStoppingCallback

    if params.early_stopping_patience is not None:
        trainer.add_callback(
            EarlyStoppingCallback(params.early_stopping_patience, params.early_stopping_threshold or 0.0)
        )
    with (
        tracking(params.report_to, run.folder.parent / BOARD, run) as trackers,
        stall_watch(run.events, params.stall_seconds) as pulse,
        saving(run.folder),
    ):
        for callback in (*trackers, watcher(params, run, pulse)):
            trainer.add_callback(callback)
        yield


def watcher(params: WatchParams, run: Watched, pulse: Pulse) -> TrainerCallback:
    """The callback that tells the events how training goes, judges the loss, and settles checkpoints."""
    from transformers import TrainerCallback

    made: TrainerCallback = type("Watcher", (Watch, TrainerCallback), {})(params, run, pulse)
    return made


class Watch:
    """What happens at each of the trainer's events: only the first process tells and settles."""

    def __init__(self, params: WatchParams, run: Watched, pulse: Pulse) -> None:
        self.params, self.run, self.pulse = params, run, pulse
        self.pace = Pace(run.tokens)
        self.loss = Divergence(params.divergence_factor, params.divergence_patience)
        self.evaluated = 0
        self.skipped = 0  # steps in a row that the scaler of fp16 left out
        self.told = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.pace.begin(state.global_step)
        for log in curve(state.log_history):
            self.loss.add(int(log["step"]), log["loss"])
        best = self.run.folder / f"checkpoint-{state.best_global_step}"
        if state.best_global_step and best.exists():
            state.best_model_checkpoint = str(best)  # the folder may have been moved since
        if state.is_world_process_zero and state.global_step:
            prune(self.run.folder, state.global_step, (self.params.save_total_limit, state.best_global_step))
        self.pulse.alive()

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.pulse.alive()
        self.run.events.check()

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        self.pulse.stepped(state.global_step)
        self.skipped = self.skipped + 1 if _was_skipped(optimizer) else 0
        # A log just before each save: no checkpoint is written that was not looked at, and the means of the loss
        # curve do not depend on where a run was interrupted.
        control.should_log = control.should_log or control.should_save or control.should_evaluate
        self.evaluated = 0
        rate = self.pace.step(state.global_step)
        if state.is_world_process_zero:
            self.run.events.progress(state.global_step, state.max_steps, "steps", tokens_per_s=rate)
        self.run.events.check()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        self.pulse.alive()
        if not logs or "grad_norm" not in logs:
            return
        step, facts = state.global_step, {key: float(logs[key]) for key in ("loss", "learning_rate", "grad_norm")}
        if state.is_world_process_zero:
            told = self.pace.log(step, state.max_steps) | memory_now()
            self.run.events.emit("train.step", step=step, steps=state.max_steps, **_sayable(facts), **told)
        self._judge(step, facts)

    def _judge(self, step: int, facts: dict[str, float]) -> None:
        scaling = 0 < self.skipped <= MOST_SKIPPED
        if not isfinite(facts["loss"]) or not (isfinite(facts["grad_norm"]) or scaling):
            raise diverged(step, facts["learning_rate"], self.run.folder, self.loss.unproven)
        if self.loss.add(step, facts["loss"]):
            raise loss_rose(self.loss, facts, self.run.folder)

    def on_prediction_step(self, args: Any, state: Any, control: Any, eval_dataloader: Any, **_: Any) -> None:
        self.pulse.alive()
        self.run.events.check()
        self.evaluated += 1
        if state.is_world_process_zero and time.monotonic() - self.told >= PROGRESS_EVERY_S:
            self.told = time.monotonic()
            self.run.events.emit("train.evaluating", done=self.evaluated, total=len(eval_dataloader))

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        self.pulse.alive()
        self.pace.paused(metrics["eval_runtime"])
        best = metrics["eval_loss"] < (inf if state.best_metric is None else state.best_metric)
        control.should_save = control.should_save or best  # what is best must be there to be kept
        if state.is_world_process_zero:
            facts = {"seconds": metrics["eval_runtime"], "best": best, "step": state.global_step}
            measured = {key: metrics[f"eval_{key}"] for key in MEASURED if f"eval_{key}" in metrics}
            self.run.events.emit("train.evaluated", **facts, **_sayable(measured))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.pulse.alive()
        began = time.monotonic()
        _wait_for_others()
        if state.is_world_process_zero:
            keep = (self.params.save_total_limit, state.best_global_step)
            settle(self.run.folder, self.run.recipe, state.global_step, keep)
            path = str(self.run.folder / f"checkpoint-{state.global_step}")
            seconds = round(time.monotonic() - began, 3)
            self.run.events.emit("train.saved", step=state.global_step, path=path, seconds=seconds)
        self.pulse.alive()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            _tell_end(self.run.events, state)


MEASURED = ("loss", "accuracy")
# With fp16 the scale of the loss is halved after each step whose gradient overflows, and that step is left out, the
# first steps as a rule. torch begins at 65,536: after 20 in a row it is below 0.1: the gradient is too large.
MOST_SKIPPED = 20


def _was_skipped(optimizer: Any) -> bool:
    """Whether the scaler of fp16 left the last step out, so that no weight has changed."""
    from accelerate.optimizer import AcceleratedOptimizer

    return isinstance(optimizer, AcceleratedOptimizer) and bool(optimizer.step_was_skipped)


def curve(log_history: Sequence[Mapping[str, Any]]) -> Curve:
    """The points of the loss curve out of the trainer's log: step, loss, learning_rate, grad_norm.

    A point at a step that was left out because its gradient overflowed (fp16) has no grad_norm.
    """
    wanted = ("step", "loss", "learning_rate", "grad_norm")
    points = [{key: float(log[key]) for key in wanted} for log in log_history if "grad_norm" in log]
    return [{key: value for key, value in one.items() if key != "grad_norm" or isfinite(value)} for one in points]


def evaluations(log_history: Sequence[Mapping[str, Any]]) -> Curve:
    """What was measured while training: step, loss and accuracy on the rows held back."""
    return [
        {"step": float(log["step"])} | {key: float(log[f"eval_{key}"]) for key in MEASURED if f"eval_{key}" in log}
        for log in log_history
        if "eval_loss" in log
    ]


def _tell_end(events: Events, state: Any) -> None:
    early = state.global_step < state.max_steps
    best, loss = state.best_global_step, state.best_metric
    facts = {"step": state.global_step, "steps": state.max_steps, "stopped_early": early}
    events.emit("train.ended", **facts, best_step=best or None, best_loss=loss)
    if early:
        events.note("train.stopped_early", step=state.global_step, steps=state.max_steps)
    if best and best < state.global_step:
        events.note("train.best_kept", best=best, step=state.global_step, loss=round(loss, 4))


def _sayable(facts: Mapping[str, float]) -> dict[str, float | None]:
    """Figures as JSON can hold them: what is not finite becomes null."""
    return {key: value if isfinite(value) else None for key, value in facts.items()}


def memory_now() -> dict[str, int]:
    """Peak memory of this process so far, and of its GPU where it has one, in bytes."""
    import torch

    gpu = {"gpu_bytes": torch.cuda.max_memory_allocated()} if torch.cuda.is_available() else {}
    return {"memory_bytes": peak_memory(), **gpu}


def _wait_for_others() -> None:
    """With several processes: all have written their part of the checkpoint before it is marked."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


class Pace:
    """How fast steps go by in this process, and how long the rest will take."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = tokens
        self.begin(0)

    def begin(self, step: int) -> None:
        """Count from here: what was done before a resume does not count."""
        self.first = self.logged = step
        self.began = self.looked = time.monotonic()
        self.idle = 0.0

    def paused(self, seconds: float) -> None:
        """Time since the last log that was not spent on training."""
        self.idle += seconds

    def step(self, step: int) -> float:
        """Tokens per second since the last log."""
        spent = max(1e-9, time.monotonic() - self.looked - self.idle)
        return round(sum(self.tokens[self.logged : step]) / spent, 1)

    def log(self, step: int, steps: int) -> dict[str, float]:
        """tokens_per_s since the log before, and eta_s at the pace since the beginning, evaluations included."""
        rate = self.step(step)
        now = time.monotonic()
        left = (steps - step) * (now - self.began) / max(1, step - self.first)
        self.looked, self.idle, self.logged = now, 0.0, step
        return {"tokens_per_s": rate, "eta_s": round(left, 1)}
