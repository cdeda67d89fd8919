"""TRL's SFTTrainer, as it comes and as fast as its settings make it.

as-it-comes: weights in the checkpoint's fp32 under bf16 autocast, gradient checkpointing on (its defaults). half: the
bf16 checkpoint, everything else its default. open: without checkpointing. best: bf16 checkpoint, no checkpointing.
flat: best with padding_free (one row per batch, attention by a mask of blocks). packed: best with packing.
"""

from __future__ import annotations

import tempfile

from side import ALPHA, LONGEST, RANK, RATE, SEED, Clock, callback, settings, token_rows, useful

VARIANTS = ("as-it-comes", "half", "open", "best", "flat", "packed")


def main() -> None:
    asked = settings(VARIANTS)
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(asked.threads)
    fast = asked.variant in ("best", "flat", "packed")
    name = "bf16" if fast or asked.variant == "half" else "fp32"
    rows = token_rows(asked)
    clock = Clock(asked, useful(rows, asked))
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            per_device_train_batch_size=1 if asked.variant == "packed" else asked.size,
            max_steps=asked.steps,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            seed=SEED,
            max_length=None if asked.variant == "flat" else LONGEST,
            train_sampling_strategy="sequential",
            save_strategy="no",
            report_to="none",
            logging_steps=1,
            disable_tqdm=True,
            use_cpu=True,
            **({"gradient_checkpointing": False} if fast or asked.variant == "open" else {}),
            **({"padding_free": True} if asked.variant == "flat" else {}),
            **({"packing": True} if asked.variant == "packed" else {}),
        )
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(asked.model(name)),
            processing_class=AutoTokenizer.from_pretrained(asked.model(name)),
            args=config,
            train_dataset=Dataset.from_list(rows),
            peft_config=LoraConfig(
                task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear"
            ),
            callbacks=[callback(clock)],
        )
        if asked.variant == "packed":
            seen: list[int] = []

            class Counted(TrainerCallback):
                def on_log(self, args, state, control, logs=None, **_):
                    if logs and "num_tokens" in logs:
                        seen.append(int(logs["num_tokens"]))

            trainer.add_callback(Counted())
        trainer.train()
        if asked.variant == "packed":
            clock.units = [now - before for before, now in zip([0, *seen], seen, strict=False)]
        weights = {str(p.dtype) for p in trainer.model.parameters() if p.requires_grad}
        clock.write("trl", adapters=sorted(weights), checkpointing=config.gradient_checkpointing, bf16=config.bf16)


if __name__ == "__main__":
    main()
