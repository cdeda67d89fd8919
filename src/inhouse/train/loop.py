"""The training loop: transformers.Trainer, our batches, events, checkpoints and stops."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inhouse.core.errors import UserError
from inhouse.core.run import Events, peak_memory
from inhouse.train.batches import Sample, collate, plan_batches
from inhouse.train.checkpoint import find_complete, settle
from inhouse.train.params import TrainParams

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
    watch = _watcher(job, params, folder, sum(len(s.ids) for b in batches for s in b) / max(1, steps))
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


def shares_prefix(model: PeftModel) -> bool:
    """Whether prompts' shared beginning can be read once: the model keeps keys and values, not a running state."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ("full_attention",))
    return kinds <= {"full_attention", "sliding_attention"}


def answer_loss(
    model: torch.nn.Module, inputs: dict[str, torch.Tensor], count: torch.Tensor | int | None
) -> torch.Tensor:
    """Cross entropy over learned tokens, divided by `count` of them (default: those of this batch).

    Reading the shared prefix once is exact: its gradient is the sum over the samples that follow it.
    """
    import torch
    from transformers.cache_utils import DynamicCache

    from inhouse.engines.torch_cache import one_place

    prefix, ids, mask, labels = (inputs[k] for k in ("prefix", "input_ids", "attention_mask", "shift_labels"))
    held, rows = prefix.shape[1], ids.shape[0]
    cache = None
    # The base is bf16 already; autocast keeps PEFT's float32 adapters from turning activations into float32
    # (10 of SmolLM2's layers, no dropout: 179 MB of activations, not 207). The adapters themselves stay float32.
    halved = next(model.parameters()).dtype == torch.bfloat16
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=halved):
        if held:
            read = DynamicCache()
            model(input_ids=prefix, past_key_values=read, use_cache=True, logits_to_keep=one_place(prefix))
            cache = DynamicCache([(k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1)) for k, v, *_ in read])
        out = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0)[:, held:],
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=inputs["places"],
        )
    loss = torch.nn.functional.cross_entropy(out.logits.float().flatten(0, 1), labels.flatten(), reduction="sum")
    return loss / (count if count is not None else (labels >= 0).sum())


def _watcher(job: Job, params: TrainParams, folder: Path, tokens_per_step: float) -> Any:
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):  # type: ignore[misc]
        """Tell the events how training goes, stop when the user asks, and settle checkpoints."""

        started, first = 0.0, 0

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.started, self.first = time.monotonic(), state.global_step

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            rate = (state.global_step - self.first) * tokens_per_step / max(1e-9, time.monotonic() - self.started)
            job.events.progress(state.global_step, state.max_steps, "steps", tokens_per_s=round(rate, 1))

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
            if logs and "grad_norm" in logs:
                if not isfinite(float(logs["grad_norm"])):
                    raise UserError("train.diverged", step=state.global_step, learning_rate=params.learning_rate)
                facts = {key: float(logs[key]) for key in ("loss", "learning_rate", "grad_norm")}
                job.events.emit("train.step", step=state.global_step, memory_bytes=peak_memory(), **facts)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            settle(folder, state.global_step, params.save_total_limit)

    return Watcher()
