"""Short trainings that leave nothing behind: for finding a rate, and for trials."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from inhouse.core.run import Events
from inhouse.train.params import TrainParams

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, Trainer, TrainerCallback

    from inhouse.train.loop import Job
    from inhouse.train.setup import Prepared


@contextmanager
def brief_trainer(
    model: PeftModel | PreTrainedModel, params: TrainParams, job: Job, callbacks: Sequence[TrainerCallback]
) -> Iterator[Trainer]:
    """The trainer of the real loop over `params.max_steps` steps, without checkpoints and logs of its own."""
    import torch
    from transformers import logging

    from inhouse.train.arguments import arguments
    from inhouse.train.loop import build_trainer, plan_steps

    logging.set_verbosity_error()
    plan = plan_steps(params, job)
    steps = params.max_steps or len(plan)
    batches = [[job.samples[place] for place in batch] for batch in plan]
    with tempfile.TemporaryDirectory() as folder:
        args = replace(
            arguments(params, Path(folder), steps, job.seed), save_strategy="no", load_best_model_at_end=False
        )
        trainer = build_trainer(model, args, batches, job)
        for callback in callbacks:
            trainer.add_callback(callback)
        torch.manual_seed(job.seed)
        yield trainer


def brief_job(ready: Prepared, params: TrainParams, seed: int) -> Job:
    """What the loop works on, without a place to write to or anybody to tell."""
    from inhouse.train.setup import Place, job_for

    return job_for(ready, params, seed, Place(Path(), Events()))


@contextmanager
def weights_kept(model: torch.nn.Module) -> Iterator[None]:
    """Give the trained weights their values back afterwards."""
    import torch

    trained = [(p, p.detach().clone()) for p in model.parameters() if p.requires_grad]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, before in trained:
                parameter.copy_(before)
        model.zero_grad(set_to_none=True)
