"""What transformers' Trainer is told to do otherwise, through the methods that it says to override."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer

from inhouse.train.apart import IGNORED
from inhouse.train.batches import Reading
from inhouse.train.batching import backing_off
from inhouse.train.divergence import diverged
from inhouse.train.held_out import measure
from inhouse.train.params import TrainParams
from inhouse.train.spans import Sample
from inhouse.train.step import reading

if TYPE_CHECKING:
    from inhouse.train.loop import Job


class AnswerTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that reads batches as `how` says and learns the job's objective."""

    job: Job
    how: Reading
    sizes: TrainParams  # how many examples are read together; fewer once memory has run out
    held: list[Sequence[Sample]]  # batches of the step so far

    def train(self, *settings: Any, **more: Any) -> Any:
        """The whole run, with the model set up to read batches."""
        self.held = []
        whole = not (self.args.fsdp or self.args.deepspeed)  # else weights lie in parts that cannot be joined
        with reading(self.model, self.how, fuse=whole):
            return super().train(*settings, **more)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Gradients of one batch; where memory runs out, those of the whole step anew, in smaller parts."""
        self.held.append(inputs["batch"].own)
        step = super().training_step

        def once(size: TrainParams) -> torch.Tensor:
            todo = self.held[-1:]
            if size is not self.sizes:
                model.zero_grad()
                todo = self.held
            found: list[torch.Tensor] = []
            for batch in todo:
                found = [step(model, self.data_collator([part]), num_items_in_batch) for part in self._cut(batch, size)]
            return sum(found[1:], found[0])

        loss, self.sizes = backing_off(once, self.sizes, self.job.events)
        return self._penalised(model, loss) if self.accelerator.sync_gradients else loss

    def _penalised(self, model: Any, loss: torch.Tensor) -> torch.Tensor:
        """Once in a step, behind its last batch: the terms that join the loss."""
        self.held = []
        for penalty in self.job.penalties:
            term = penalty(model)
            self.accelerator.backward(term)
            loss = loss + term.detach()
        return loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean loss of what the objective counts in the whole step."""
        total, correct = self.job.learning.loss(model, inputs)
        count = (inputs["labels"] != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        loss = total / count if inputs["batch"].own else total * 0
        if not isfinite(float(loss.detach())):
            raise diverged(self.state.global_step + 1, self._get_learning_rate(), Path(self.args.output_dir))
        return (loss, {"correct": correct}) if return_outputs else loss

    def prediction_step(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
        """Summed figures of a batch held back, for `compute_metrics`."""
        return measure(self, model, inputs)

    def _cut(self, samples: Sequence[Sample], sizes: TrainParams) -> list[Sequence[Sample]]:
        """A batch in parts of so many examples; an empty one is one part."""
        size = sizes.per_device_train_batch_size * self.job.learning.unit
        return [samples[at : at + size] for at in range(0, max(1, len(samples)), size)]
