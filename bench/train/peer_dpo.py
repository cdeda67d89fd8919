"""TRL's DPOTrainer on the pairs, as it comes and as fast as its settings make it; the adapter switched off is its
reference.

as-it-comes: fp32 weights under bf16 autocast, gradient checkpointing on. best: the bf16 checkpoint, no checkpointing,
the reference's log-probabilities of each batch computed in the step, as by default. A unit is a pair.
"""

from __future__ import annotations

import tempfile

from side import ALPHA, LONGEST, RANK, RATE, SEED, Clock, callback, read, settings

VARIANTS = ("as-it-comes", "best")


def main() -> None:
    asked = settings(VARIANTS)
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    torch.set_num_threads(asked.threads)
    best = asked.variant == "best"
    name = "bf16" if best else "fp32"
    pairs = read(asked.folder / "pairs.jsonl")
    wanted = asked.steps * asked.size
    rows = [{key: pair[key] for key in ("prompt", "chosen", "rejected")} for pair in pairs]
    clock = Clock(asked, [asked.size] * asked.steps)
    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            output_dir=folder,
            per_device_train_batch_size=asked.size,
            max_steps=asked.steps,
            learning_rate=RATE / 10,  # a pair pulls harder than an answer
            lr_scheduler_type="constant",
            seed=SEED,
            max_length=LONGEST,
            train_sampling_strategy="sequential",
            save_strategy="no",
            report_to="none",
            logging_steps=1,
            disable_tqdm=True,
            use_cpu=True,
            **({"gradient_checkpointing": False} if best else {}),
        )
        trainer = DPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(asked.model(name)),
            processing_class=AutoTokenizer.from_pretrained(asked.model(name)),
            args=config,
            train_dataset=Dataset.from_list((rows * (wanted // len(rows) + 1))[:wanted]),
            peft_config=LoraConfig(
                task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear"
            ),
            callbacks=[callback(clock)],
        )
        trainer.train()
        weights = {str(p.dtype) for p in trainer.model.parameters() if p.requires_grad}
        clock.write("dpo", adapters=sorted(weights), checkpointing=config.gradient_checkpointing, bf16=config.bf16)


if __name__ == "__main__":
    main()
