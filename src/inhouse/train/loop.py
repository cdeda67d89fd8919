"""The training loop: transformers.Trainer, our batches, events, checkpoints and stops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inhouse.core.errors import UserError
from inhouse.core.run import Events
from inhouse.train.arguments import arguments
from inhouse.train.batches import collate, plan_batches
from inhouse.train.checkpoint import find_complete
from inhouse.train.params import TrainParams
from inhouse.train.step import answer_loss, shares_prefix
from inhouse.train.tokens import Sample
from inhouse.train.watch import watcher

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import Trainer, TrainingArguments


@dataclass(frozen=True)
class Trained:
    """What a run of the loop did. `losses` holds one mapping per log: step, loss, learning_rate, grad_norm."""

    losses: list[dict[str, float]]
    steps: int
    epochs: float
    tokens: int
    resumed_from: int


@dataclass(frozen=True)
class Job:
    """What the loop works on."""

    samples: Sequence[Sample]
    pad: int
    seed: int
    scratch: Path
    events: Events


def train(model: PeftModel, params: TrainParams, job: Job) -> Trained:
    """Train the adapters in place, from the newest complete checkpoint when there is one.

    The weights at the end do not depend on interruptions. Raises train.diverged when a loss is not finite.
    """
    import torch
    from transformers import logging

    logging.set_verbosity_error()
    plan = plan_steps(params, job)
    steps = ceil(len(plan) / params.gradient_accumulation_steps)
    batches = [[job.samples[i] for i in batch] for batch in plan]
    folder = job.scratch / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    resume = find_complete(folder)
    trainer = build_trainer(model, arguments(params, folder, steps, job.seed), batches, job)
    watch = watcher(job.events, params, folder, sum(len(s.ids) for b in batches for s in b) / max(1, steps))
    trainer.add_callback(watch)
    torch.manual_seed(job.seed)  # dropout; a checkpoint restores the generator's state itself
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    wanted = ("step", "loss", "learning_rate", "grad_norm")
    losses = [{k: float(log[k]) for k in wanted} for log in trainer.state.log_history if "grad_norm" in log]
    tokens = sum(len(sample.ids) for batch in batches for sample in batch)
    epochs = sum(len(batch) for batch in batches) / len(job.samples)
    return Trained(losses, trainer.state.global_step, epochs, tokens, int(resume.name.split("-")[1]) if resume else 0)


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
                raise UserError("train.diverged", step=self.state.global_step + 1, learning_rate=args.learning_rate)
            return (loss, None) if return_outputs else loss

    def join(items: list[list[Sample]]) -> dict[str, torch.Tensor]:
        return collate(items[0], job.pad, shares)

    trainer = AnswerTrainer(model=model, args=args, train_dataset=batches, data_collator=join)
    trainer.model_accepts_loss_kwargs = True  # so that the trainer counts the learned tokens of a whole step
    trainer.remove_callback(PrinterCallback)
    return trainer
