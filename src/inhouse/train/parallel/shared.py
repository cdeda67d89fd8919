"""Data parallel through transformers' trainer: DDP, and FSDP2 with its weights in parts, both by accelerate."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inhouse.train.arguments import arguments
from inhouse.train.batching import as_it_is
from inhouse.train.checkpoint import find_complete, step_of, stopped_early
from inhouse.train.launch.deepspeed import deepspeed_settings
from inhouse.train.loop import Job, Trained, build_trainer, plan_steps
from inhouse.train.parallel.group import tell
from inhouse.train.parallel.ranks import share_out
from inhouse.train.params import TrainParams
from inhouse.train.watch import Watched, curve, evaluations, watching

if TYPE_CHECKING:
    import torch
    from transformers import Trainer, TrainingArguments

    from inhouse.train.parallel.settings import DeepSpeed, Torch


def train_shared(model: torch.nn.Module, params: TrainParams, job: Job) -> Trained:
    """Train as `loop.train` does, the rows of each step dealt out to the ranks; rank 0 alone tells and settles."""
    import torch
    import torch.distributed as dist
    from transformers import logging

    assert params.parallel is not None
    logging.set_verbosity_error()
    rank, ranks, size = dist.get_rank(), dist.get_world_size(), params.gradient_accumulation_steps
    plan = plan_steps(params, job)
    folder = job.scratch / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    resume: Path | None = tell(find_complete(folder, job.recipe, job.events) if rank == 0 else None)
    if stopped_early(resume):
        plan = plan[: step_of(resume) * size]
    shares = share_out(plan, size, ranks, job.learning.unit)
    steps = len(shares.items) // (shares.turns * ranks)
    items = [[job.samples[i] for i in item] for item in shares.items]
    args = _arguments(arguments(params, folder, steps, job.seed), shares.turns, params.parallel)
    trainer = build_trainer(model, args, items, job)
    _add_up(trainer, params, ranks)
    tokens = [
        sum(len(job.samples[i].ids) for batch in plan[at : at + size] for i in batch)
        for at in range(0, len(plan), size)
    ]
    epochs = sum(map(len, plan)) / len(job.samples)
    watched = Watched(job.events, folder, job.recipe, tokens, step_of(resume), job.offline, epochs)
    torch.manual_seed(job.seed + rank)  # dropout; a checkpoint restores each rank's generator itself
    with watching(trainer, params if rank == 0 else params.model_copy(update={"report_to": ()}), watched):
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    state = trainer.state
    return Trained(
        losses=curve(state.log_history),
        steps=state.global_step,
        epochs=sum(len(batch) for batch in plan[: state.global_step * size]) / len(job.samples),
        tokens=sum(tokens[: state.global_step]),
        resumed_from=step_of(resume),
        evaluations=evaluations(state.log_history),
        best_step=state.best_global_step or None,
    )


def _arguments(args: TrainingArguments, turns: int, parallel: Torch | DeepSpeed) -> TrainingArguments:
    """The loop's arguments, and how the ranks go together."""
    more: dict[str, Any] = {}
    if parallel.kind == "fsdp2":
        more = {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": "FULL_STATE_DICT"}}
    elif parallel.kind == "deepspeed":
        bf16 = not args.fp16
        more = {"deepspeed": deepspeed_settings(parallel.zero, parallel.offload, bf16), "bf16": bf16}
    return replace(
        args,
        gradient_accumulation_steps=turns,
        ddp_find_unused_parameters=False,
        average_tokens_across_devices=True,
        **more,
    )


def _add_up(trainer: Trainer, params: TrainParams, ranks: int) -> None:
    """Let gradients be summed over the ranks, and every rank compute as often as the others, whatever its memory.

    The loss is divided by what all ranks learn in the step; DDP and FSDP2 then average the gradients. A rank that cut
    its batch because memory ran out would speak to the others more often than they listen: it ends instead.
    """
    from transformers import Trainer

    mean = trainer.compute_loss

    def summed(model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        if return_outputs:
            return mean(model, inputs, return_outputs, num_items_in_batch)
        return mean(model, inputs, num_items_in_batch=num_items_in_batch) * ranks

    def step(model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        return as_it_is(lambda _: Trainer.training_step(trainer, model, inputs, num_items_in_batch), params)

    trainer.compute_loss, trainer.training_step = summed, step
