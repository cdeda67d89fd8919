"""LLaMA-Factory's `train` command on the same rows, as it comes and as fast as its settings make it.

as-it-comes: the settings of its examples/train_lora (bf16: true, lora_target: all), gradient checkpointing on (its
default). best: without checkpointing. packed: best with neat_packing, in rows of 1024 tokens, one row per step; it
packs before it trains, so the order of the rows is its own. Adapters are fp32 in all of them (pure_bf16 would halve
them).
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from side import ALPHA, LONGEST, RANK, RATE, SEED, Clock, Settings, callback, read, settings, token_rows, useful

VARIANTS = ("as-it-comes", "best", "packed")


def main() -> None:
    asked = settings(VARIANTS)
    import torch
    from llamafactory.train.tuner import run_exp
    from transformers import TrainerCallback

    torch.set_num_threads(asked.threads)
    rows = token_rows(asked)
    clock = Clock(asked, useful(rows, asked))
    found: dict[str, object] = {}

    class Looked(TrainerCallback):
        def on_train_begin(self, args, state, control, model=None, train_dataloader=None, **_):
            found["adapters"] = sorted({str(p.dtype) for p in model.parameters() if p.requires_grad})
            found["weights"] = sorted({str(p.dtype) for p in model.parameters() if not p.requires_grad})
            found["checkpointing"] = model.is_gradient_checkpointing
            if asked.variant == "packed":
                packs = [sum(1 for mark in row["attention_mask"] if mark) for row in train_dataloader.dataset]
                clock.units = (packs * (asked.steps // len(packs) + 1))[: asked.steps]

    with tempfile.TemporaryDirectory() as folder:
        given = packed if asked.variant == "packed" else tokenised
        words = {**common(asked, Path(folder)), **given(asked, Path(folder), rows)}
        run_exp(words, callbacks=[callback(clock), Looked()])
    clock.write("llamafactory", **found)


def common(asked: Settings, folder: Path) -> dict:
    """What all variants ask for."""
    return {
        "model_name_or_path": asked.model("bf16"),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_target": "all",
        "lora_rank": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "template": "smollm2",
        "bf16": True,
        "use_cpu": True,
        "disable_shuffling": True,
        "disable_gradient_checkpointing": asked.variant != "as-it-comes",
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "max_steps": asked.steps,
        "max_grad_norm": 1.0,
        "seed": SEED,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "output_dir": str(folder / "out"),
        "dataloader_num_workers": 0,
    }


def tokenised(asked: Settings, folder: Path, rows: list[dict]) -> dict:
    """The rows as tokens, in batches in their order."""
    from datasets import Dataset, DatasetDict

    whole = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]
    DatasetDict({"train": Dataset.from_list(whole)}).save_to_disk(str(folder / "tokens"))
    return {
        "tokenized_path": str(folder / "tokens"),
        "dataset": "rows",
        "cutoff_len": LONGEST,
        "per_device_train_batch_size": asked.size,
    }


def packed(asked: Settings, folder: Path, rows: list[dict]) -> dict:
    """The rows as conversations, which it packs itself."""
    conversations = [{"messages": row["messages"]} for row in read(asked.folder / "rows.jsonl")]
    (folder / "rows.json").write_text(json.dumps(conversations), encoding="utf-8")
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    shape = {"file_name": "rows.json", "formatting": "sharegpt", "columns": {"messages": "messages"}}
    info = {"rows": {**shape, "tags": {**tags, "system_tag": "system"}}}
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    return {
        "dataset": "rows",
        "dataset_dir": str(folder),
        "cutoff_len": LONGEST,
        "neat_packing": True,
        "overwrite_cache": True,
        "per_device_train_batch_size": 1,
    }


if __name__ == "__main__":
    main()
