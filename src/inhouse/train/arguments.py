"""Our settings in the words of transformers' trainer."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from inhouse.train.params import TrainParams

if TYPE_CHECKING:
    from transformers import TrainingArguments


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
        warmup_steps=ceil(steps * params.warmup_ratio),
        weight_decay=params.weight_decay,
        max_grad_norm=params.max_grad_norm,
        logging_steps=params.logging_steps,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=params.save_steps or max(10, ceil(steps / 10)),
        save_total_limit=None,  # ours to remove: the trainer would remove the old one before the new one counts
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=True,
        seed=seed,
        optim="adamw_torch",
        fp16=params.precision == "fp16",
    )
