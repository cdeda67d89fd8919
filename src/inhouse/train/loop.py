"""The training loop: transformers.Trainer, our batches, events, checkpoints and stops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from inhouse.core.run import Events
from inhouse.train.arguments import arguments
from inhouse.train.batches import Reading, collate, plan_batches
from inhouse.train.batching import read_by
from inhouse.train.checkpoint import Recipe, find_complete, step_of, stopped_early
from inhouse.train.held_out import pooled
from inhouse.train.learning import Learning
from inhouse.train.params import TrainParams
from inhouse.train.step import reading_of
from inhouse.train.tokens import Sample
from inhouse.train.watch import Watched, curve, evaluations, watching

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import Trainer, TrainingArguments


EVAL_ROWS = 8  # conversations read together while measuring
Penalty = Callable[["torch.nn.Module"], "torch.Tensor"]  # a term that joins the loss of every step


@dataclass(frozen=True)
class Trained:
    """What a run of the loop did. `losses` holds one mapping per log: step, loss, learning_rate, grad_norm.

    `evaluations`: step, loss, accuracy of each measurement; `best_step`: whose weights the model has, None: the last.
    `ranks`: of several processes rank, memory_bytes and gpu_bytes of each at its fullest moment.
    """

    losses: list[dict[str, float]]
    steps: int
    epochs: float
    tokens: int
    resumed_from: int
    evaluations: list[dict[str, float]] = field(default_factory=list)
    best_step: int | None = None
    ranks: list[dict[str, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Job:
    """What the loop works on."""

    samples: Sequence[Sample]
    pad: int
    seed: int
    scratch: Path
    events: Events
    valid: Sequence[Sample] = ()  # measured on while training, never learned
    recipe: Recipe = field(default_factory=dict)
    offline: bool = False
    learning: Learning = field(default_factory=Learning)
    reading: Reading = field(default_factory=Reading)  # as far as the model is able
    penalties: Sequence[Penalty] = ()
    sizes: TrainParams | None = None  # how many examples are read together, where the plan cut the batches


def train(model: PeftModel, params: TrainParams, job: Job) -> Trained:
    """Train the adapters in place, from the newest complete checkpoint when there is one.

    The weights at the end do not depend on interruptions. Raises train.diverged when a loss is not finite.
    """
    import torch
    from transformers import logging

    logging.set_verbosity_error()
    plan = plan_steps(params, job)
    size = params.gradient_accumulation_steps
    folder = job.scratch / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    resume = find_complete(folder, job.recipe, job.events)
    if stopped_early(resume):
        plan = plan[: step_of(resume) * size]  # early stopping had ended it: nothing is left to do
    steps = ceil(len(plan) / size)
    batches = [[job.samples[i] for i in batch] for batch in plan]
    trainer = build_trainer(model, arguments(params, folder, steps, job.seed), batches, job)
    tokens = [
        sum(len(s.ids) for batch in batches[at : at + size] for s in batch) for at in range(0, len(batches), size)
    ]
    torch.manual_seed(job.seed)  # dropout; a checkpoint restores the generator's state itself
    epochs = sum(map(len, batches)) / len(job.samples)
    watched = Watched(job.events, folder, job.recipe, tokens, step_of(resume), job.offline, epochs)
    with watching(trainer, params, watched):
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    state = trainer.state
    done = batches[: state.global_step * size]
    return Trained(
        losses=curve(state.log_history),
        steps=state.global_step,
        epochs=sum(len(batch) for batch in done) / len(job.samples),
        tokens=sum(len(sample.ids) for batch in done for sample in batch),
        resumed_from=step_of(resume),
        evaluations=evaluations(state.log_history),
        best_step=state.best_global_step or None,
    )


def plan_steps(params: TrainParams, job: Job) -> list[list[int]]:
    """The batches of the whole run: `num_train_epochs`, or as many epochs as `max_steps` needs.

    Every `gradient_accumulation_steps` of them are a step; the last step of an epoch may have fewer samples, and then
    empty batches. So what a step learns from does not depend on how many parts it is read in.
    """
    size, parts, unit = params.per_device_train_batch_size, params.gradient_accumulation_steps, job.learning.unit
    examples = job.samples[::unit]
    epochs = params.num_train_epochs
    if params.max_steps is not None:
        epochs = ceil(params.max_steps / ceil(len(examples) / (size * parts)))
    steps = plan_batches(examples, size * parts, epochs, job.seed)[: params.max_steps]
    whole = [[example * unit + place for example in step for place in range(unit)] for step in steps]
    return [step[at * size * unit : (at + 1) * size * unit] for step in whole for at in range(parts)]


def build_trainer(model: PeftModel, args: TrainingArguments, batches: list[list[Sample]], job: Job) -> Trainer:
    """A Trainer whose batches are read as the model is able to, and whose loss is the objective's."""
    from transformers import PrinterCallback

    from inhouse.train.trainer import AnswerTrainer

    how, unit = reading_of(model, job.reading), job.learning.unit
    valid = [job.valid[at : at + EVAL_ROWS * unit] for at in range(0, len(job.valid), EVAL_ROWS * unit)]
    trainer = AnswerTrainer(
        model=model,
        args=args,
        train_dataset=batches,
        eval_dataset=valid,
        data_collator=lambda items: collate(items[0], job.pad, how, job.learning),
        compute_metrics=pooled,
    )
    trainer.job, trainer.how = job, how
    trainer.sizes = job.sizes or TrainParams(per_device_train_batch_size=max(1, *map(len, batches)) // unit)
    trainer.eval_sizes = read_by(trainer.sizes, EVAL_ROWS)
    trainer.model_accepts_loss_kwargs = True  # so that the trainer counts the learned tokens of a whole step
    trainer.remove_callback(PrinterCallback)
    return trainer
