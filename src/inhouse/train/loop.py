"""The training loop: transformers.Trainer, our batches, events, checkpoints and stops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inhouse.core.run import Events
from inhouse.train.arguments import arguments
from inhouse.train.batches import collate, plan_batches
from inhouse.train.checkpoint import Recipe, find_complete, step_of, stopped_early
from inhouse.train.divergence import diverged
from inhouse.train.held_out import measure, pooled
from inhouse.train.params import TrainParams
from inhouse.train.step import answer_loss, shares_prefix
from inhouse.train.tokens import Sample
from inhouse.train.watch import Watched, curve, evaluations, watching

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import Trainer, TrainingArguments


EVAL_ROWS = 8  # conversations read together while measuring


@dataclass(frozen=True)
class Trained:
    """What a run of the loop did. `losses` holds one mapping per log: step, loss, learning_rate, grad_norm.

    `evaluations`: step, loss, accuracy of each measurement; `best_step`: whose weights the model has, None: the last.
    """

    losses: list[dict[str, float]]
    steps: int
    epochs: float
    tokens: int
    resumed_from: int
    evaluations: list[dict[str, float]] = field(default_factory=list)
    best_step: int | None = None


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
    with watching(trainer, params, Watched(job.events, folder, job.recipe, tokens, step_of(resume), job.offline)):
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
    """The batches of the whole run: `num_train_epochs`, or as many epochs as `max_steps` needs."""
    size = params.per_device_train_batch_size
    if params.max_steps is None:
        return plan_batches(job.samples, size, params.num_train_epochs, job.seed)
    needed = params.max_steps * params.gradient_accumulation_steps
    an_epoch = len(plan_batches(job.samples, size, 1, job.seed))
    return plan_batches(job.samples, size, ceil(needed / an_epoch), job.seed)[:needed]


def build_trainer(model: PeftModel, args: TrainingArguments, batches: list[list[Sample]], job: Job) -> Trainer:
    """A Trainer whose loss reads the shared prefix once and multiplies the output matrix at answers only."""
    from transformers import PrinterCallback, Trainer

    shares = shares_prefix(model)

    class AnswerTrainer(Trainer):  # type: ignore[misc]
        """`compute_loss` is what the library says to override."""

        def compute_loss(
            self,
            model: torch.nn.Module,
            inputs: dict[str, torch.Tensor],
            return_outputs: bool = False,
            num_items_in_batch: torch.Tensor | int | None = None,
        ) -> Any:
            """Mean loss per learned token of the whole step."""
            loss = answer_loss(model, inputs, num_items_in_batch)
            if not isfinite(float(loss.detach())):
                raise diverged(self.state.global_step + 1, self._get_learning_rate(), Path(self.args.output_dir))
            return (loss, None) if return_outputs else loss

        def prediction_step(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
            """Summed figures of a batch held back, for `compute_metrics`."""
            return measure(self, model, inputs)

    def join(items: list[list[Sample]]) -> dict[str, torch.Tensor]:
        return collate(items[0], job.pad, shares)

    valid = [job.valid[at : at + EVAL_ROWS] for at in range(0, len(job.valid), EVAL_ROWS)]
    trainer = AnswerTrainer(
        model=model, args=args, train_dataset=batches, eval_dataset=valid, data_collator=join, compute_metrics=pooled
    )
    trainer.model_accepts_loss_kwargs = True  # so that the trainer counts the learned tokens of a whole step
    trainer.remove_callback(PrinterCallback)
    return trainer
