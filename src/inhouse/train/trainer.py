"""What transformers' Trainer is told to do otherwise, through the methods that it says to override."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer

from inhouse.train import team
from inhouse.train.ahead import AHEAD, mean_of, read_ahead
from inhouse.train.apart import IGNORED
from inhouse.train.batches import Reading
from inhouse.train.batching import as_it_is, backing_off, told_of_evaluation
from inhouse.train.divergence import diverged
from inhouse.train.held_out import measure
from inhouse.train.params import TrainParams
from inhouse.train.spans import Sample
from inhouse.train.step import reading
from inhouse.train.watch import Watch

if TYPE_CHECKING:
    from inhouse.train.loop import Job


class AnswerTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that reads batches as `how` says and learns the job's objective."""

    job: Job
    how: Reading
    sizes: TrainParams  # how many examples are read together; fewer once memory has run out
    eval_sizes: TrainParams  # the same of rows held back
    held: list[Sequence[Sample]]  # batches of the step so far
    ahead: torch.Tensor | None = None  # what the objective has read ahead of the step

    def train(self, *settings: Any, **more: Any) -> Any:
        """The whole run, with the model set up to read batches."""
        self.held = []
        whole = not (self.args.fsdp or self.args.deepspeed)  # else weights lie in parts that cannot be joined
        with team.apart(), reading(self.model, self.how, fuse=whole):
            return super().train(*settings, **more)

    def get_batch_samples(self, *settings: Any) -> Any:
        """The batches of the next step; what the objective reads ahead of it is read here."""
        found = super().get_batch_samples(*settings)
        self.ahead = self._read_ahead([inputs["batch"].own for inputs in found[0]])
        return found

    def evaluation_loop(self, dataloader: Any, *settings: Any, **more: Any) -> Any:
        """As the library's; what the objective reads ahead is one figure of all rows held back.

        Loading batches draws from torch's generator: training goes on with it as it was.
        """
        parts, ranks = list(dataloader.dataset), self.args.world_size
        parts += [()] * (-len(parts) % ranks)
        with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_available() else []):
            self.ahead = self._read_ahead(parts[self.args.process_index :: ranks])
            return super().evaluation_loop(dataloader, *settings, **more)

    def _read_ahead(self, parts: Sequence[Sequence[Sample]]) -> torch.Tensor | None:
        """The mean over all ranks of what the objective reads ahead of a step with these batches."""

        def once(size: TrainParams) -> torch.Tensor | None:
            cut = [part for batch in parts for part in self._cut(batch, size)]
            return read_ahead(self.model_wrapped, cut, self.job.learning, (self.how, self.job.pad))

        if self.args.world_size > 1:
            found = as_it_is(once, self.sizes)
        else:
            found, self.sizes = backing_off(once, self.sizes, self.job.events)
        return mean_of(None if found is None else self.accelerator.reduce(found, "sum"))

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
        total, correct = self.job.learning.loss(model, inputs | {AHEAD: self.ahead})
        count = (inputs["labels"] != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        loss = total / count if inputs["batch"].own else total * 0
        if not isfinite(float(loss.detach())):
            rise = next((one.loss.unproven for one in self.callback_handler.callbacks if isinstance(one, Watch)), None)
            raise diverged(self.state.global_step + 1, self._get_learning_rate(), Path(self.args.output_dir), rise)
        return (loss, {"correct": correct}) if return_outputs else loss

    def prediction_step(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
        """Summed figures of a batch held back, for `compute_metrics`; in smaller parts once memory has run out."""
        own = inputs["batch"].own

        def once(size: TrainParams) -> torch.Tensor:
            parts = self._cut(own, size)
            whole = [inputs] if len(parts) == 1 else [self._prepare_inputs(self.data_collator([one])) for one in parts]
            return torch.stack([measure(self, model, part) for part in whole]).sum(0)

        if self.args.world_size > 1:
            found = as_it_is(once, self.eval_sizes)
        else:
            found, self.eval_sizes = backing_off(once, self.eval_sizes, self.job.events, told_of_evaluation)
        return found[0, 0] / found[0, 1], found, found

    def _cut(self, samples: Sequence[Sample], sizes: TrainParams) -> list[Sequence[Sample]]:
        """A batch in parts of so many examples; an empty one is one part."""
        size = sizes.per_device_train_batch_size * self.job.learning.unit
        return [samples[at : at + size] for at in range(0, max(1, len(samples)), size)]
