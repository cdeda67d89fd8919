"""Our settings in the words of transformers' trainer."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inhouse.train.params import Precision, TrainParams

if TYPE_CHECKING:
    from transformers import TrainingArguments


def optimizer_of(precision: Precision) -> str:
    """The trainer's name for AdamW: in one pass, but not where gradients are scaled: it skips steps without a word."""
    return "adamw_torch" if precision == "fp16" else "adamw_torch_fused"


def arguments(params: TrainParams, folder: Path, steps: int, seed: int) -> TrainingArguments:
    """Our settings in the trainer's words. One item of the dataset is one batch, planned beforehand."""
    import torch
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=params.gradient_accumulation_steps,
        max_steps=steps,
        learning_rate=params.learning_rate,
        lr_scheduler_type=params.lr_scheduler_type,
        warmup_steps=params.warmup_steps(steps),
        weight_decay=params.weight_decay,
        max_grad_norm=params.max_grad_norm,
        logging_steps=params.logging_steps,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=save_steps(params, steps),
        save_total_limit=None,  # ours to remove: the trainer would remove the old one before the new one counts
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",  # what is asked for is added by train.watch, so that it can be closed
        disable_tqdm=True,
        seed=seed,
        optim=optimizer_of(params.precision),
        gradient_checkpointing=params.gradient_checkpointing is True,
        gradient_checkpointing_kwargs={"use_reentrant": False},  # the other kind wants gradients of the inputs
        fp16=params.precision == "fp16",
        **_evaluation(params),
    )


def _evaluation(params: TrainParams) -> dict[str, Any]:
    """Measure on the rows held back every `eval_steps`, and end with the weights whose loss was the lowest."""
    if params.eval_steps is None:
        return {}
    return {
        "eval_strategy": "steps",
        "eval_steps": params.eval_steps,
        "per_device_eval_batch_size": 1,
        "metric_for_best_model": "loss",
        "greater_is_better": False,
        "load_best_model_at_end": True,
        # How long nothing has improved belongs to the run: a resumed one must stop where it would have stopped.
        "restore_callback_states_from_checkpoint": True,
    }


def checkpoints(params: TrainParams, steps: int) -> int:
    """How many checkpoints a run of so many steps writes: the last step always is followed by one."""
    return ceil(steps / save_steps(params, steps))


def save_steps(params: TrainParams, steps: int) -> int:
    """Ten checkpoints in a run, or as asked; with evaluation a multiple of eval_steps, as the trainer demands."""
    wanted = params.save_steps or max(10, ceil(steps / 10))
    every = params.eval_steps or 1
    return ceil(wanted / every) * every
