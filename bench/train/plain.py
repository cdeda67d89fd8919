"""A plain PEFT loop: padded batches, labels of -100 before the answer, AdamW. What a user writes by hand."""

from __future__ import annotations

from contextlib import nullcontext

from side import ALPHA, IGNORED, RANK, RATE, SEED, Clock, settings, token_rows, useful

VARIANTS = ("bf16", "bf16-autocast", "fp32")


def main() -> None:
    asked = settings(VARIANTS)
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(asked.threads)
    name = asked.variant.partition("-")[0]
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[name]
    model = AutoModelForCausalLM.from_pretrained(asked.model(name), dtype=dtype)
    torch.manual_seed(SEED)
    config = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear")
    model = get_peft_model(model, config)
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    rows = token_rows(asked)
    clock = Clock(asked, useful(rows, asked))
    pad = model.config.pad_token_id
    for number in range(asked.steps):
        batch = rows[number * asked.size : (number + 1) * asked.size]
        with torch.autocast("cpu", torch.bfloat16) if "autocast" in asked.variant else nullcontext():
            loss = model(**padded(batch, pad)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.losses[number + 1] = float(loss.detach())
        clock.step(number + 1)
    clock.write("plain")


def padded(batch: list[dict], pad: int) -> dict:
    """Ids, mask and labels (rows, width), padded on the right."""
    import torch

    width = max(len(row["input_ids"]) for row in batch)
    short = [width - len(row["input_ids"]) for row in batch]
    rows = list(zip(batch, short, strict=True))
    return {
        "input_ids": torch.tensor([row["input_ids"] + [pad] * more for row, more in rows]),
        "attention_mask": torch.tensor([[1] * len(row["input_ids"]) + [0] * more for row, more in rows]),
        "labels": torch.tensor([row["labels"] + [IGNORED] * more for row, more in rows]),
    }


if __name__ == "__main__":
    main()
