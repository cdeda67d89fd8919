"""The steps of a fast training step, each measured on and off: one plain loop, and what is computed in it.

Each variant adds one thing to the one before it. fp32-padded and bf16-padded: as by hand (bf16: fp32 adapters under
autocast). labels: the output matrix only where a token is learned. packed: no padding, attention for each sample by
itself. fused: LoRA in one function. shared: what samples begin with is read once. Beside the ladder: masked is packed
with a dense mask of blocks instead, checkpointed is shared with activations computed twice.
"""

from __future__ import annotations

from contextlib import ExitStack, nullcontext

from flops import Counter, Peak, causal_pairs
from plain import padded
from side import ALPHA, IGNORED, RANK, RATE, SEED, Clock, Settings, settings, token_rows, useful

LADDER = ("fp32-padded", "bf16-padded", "labels", "packed", "fused", "shared")
VARIANTS = (*LADDER, "masked", "checkpointed")
PADDED = ("fp32-padded", "bf16-padded", "labels")


def main() -> None:
    asked = settings(VARIANTS)
    import torch

    torch.set_num_threads(asked.threads)
    rows = token_rows(asked)
    clock = Clock(asked, useful(rows, asked))
    model = load(asked)
    counter = Counter(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    peak, half = Peak(clock), asked.variant != "fp32-padded"
    needed = []
    with ExitStack() as stack:
        if asked.variant not in (*PADDED, "masked"):
            from inhouse.train.step import reading

            stack.enter_context(reading(model, how(asked), fuse=asked.variant != "packed"))
        for number in range(asked.steps):
            batch = rows[number * asked.size : (number + 1) * asked.size]
            with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
                loss, flop = forward(model, batch, asked, counter)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            clock.losses[number + 1] = float(loss.detach())
            needed.append(flop)
            clock.step(number + 1)
    clock.write("steps", **peak.share(needed))


def load(asked: Settings):
    """The model with fresh fp32 adapters, and the attention that the variant takes."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    name = "fp32" if asked.variant == "fp32-padded" else "bf16"
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[name]
    model = AutoModelForCausalLM.from_pretrained(asked.model(name), dtype=dtype)
    torch.manual_seed(SEED)
    config = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules="all-linear")
    model = get_peft_model(model, config).train()
    if asked.variant == "checkpointed":
        model.enable_input_require_grads()
        model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def forward(model, batch: list[dict], asked: Settings, counter: Counter) -> tuple:
    """The loss of a batch, and the FLOP that its step needs."""
    if asked.variant in ("fp32-padded", "bf16-padded"):
        return plainly(model, batch, counter)
    if asked.variant == "labels":
        return at_labels(model, batch, counter)
    return packed(model, batch, asked, counter)


def plainly(model, batch: list[dict], counter: Counter) -> tuple:
    """Padded rows, logits everywhere."""
    inputs = padded(batch, model.config.pad_token_id)
    tokens = inputs["input_ids"].numel()
    lengths = [len(row["input_ids"]) for row in batch]
    return model(**inputs).loss, counter.step(tokens, tokens, causal_pairs(lengths))


def at_labels(model, batch: list[dict], counter: Counter) -> tuple:
    """Padded rows, logits at the positions that predict a learned token."""
    inputs = padded(batch, model.config.pad_token_id)
    targets = inputs.pop("labels").roll(-1, dims=1)
    hidden = model.base_model.model.model(**inputs, use_cache=False).last_hidden_state
    wanted = targets != IGNORED
    loss = cross_entropy(model, hidden[wanted], targets[wanted])
    lengths = [len(row["input_ids"]) for row in batch]
    return loss, counter.step(inputs["input_ids"].numel(), int(wanted.sum()), causal_pairs(lengths))


def packed(model, batch: list[dict], asked: Settings, counter: Counter) -> tuple:
    """One row without padding, laid out and read by the product."""
    from inhouse.train.batches import collate
    from inhouse.train.learning import Learning
    from inhouse.train.spans import Sample
    from inhouse.train.step import read

    samples = [Sample(tuple(row["input_ids"]), tuple(label >= 0 for label in row["labels"])) for row in batch]
    inputs = collate(samples, model.config.pad_token_id, how(asked), Learning())
    row = inputs["batch"].packed
    if asked.variant == "masked":
        return masked(model, row), counter.packed(row)
    return read(model, inputs).losses().mean(), counter.packed(row)


def masked(model, row):
    """The same row, with the mask of blocks that transformers makes of positions that start again."""
    import torch

    hidden = model.base_model.model.model(
        input_ids=torch.tensor([row.ids]), position_ids=torch.tensor([row.positions]), use_cache=False
    ).last_hidden_state
    return cross_entropy(model, hidden[0, list(row.places)], torch.tensor(row.targets))


def how(asked: Settings):
    """Whether the product reads shared beginnings once."""
    from inhouse.train.batches import Reading

    return Reading(packs=True, shares=asked.variant in ("shared", "checkpointed"))


def cross_entropy(model, hidden, targets):
    """Mean over the learned tokens: hidden (N, D), targets (N)."""
    import torch

    logits = model.base_model.model.lm_head(hidden)
    return torch.nn.functional.cross_entropy(logits.float(), targets)


if __name__ == "__main__":
    main()
