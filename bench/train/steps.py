"""The steps of a fast training step, each measured on and off: one plain loop, and what is computed in it.

Each variant adds one thing to the one before it. fp32-padded and bf16-padded: as by hand (bf16: fp32 adapters under
autocast). labels: the output matrix only where a token is learned. packed: no padding, attention for each sample by
itself. fused: LoRA in one function. shared: what samples begin with is read once. Beside the ladder: masked is packed
with a dense mask of blocks instead, checkpointed is shared with activations computed twice.
"""

from __future__ import annotations

from contextlib import ExitStack, nullcontext

from flops import Counter, causal_pairs, share_of_peak
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
    half = asked.variant != "fp32-padded"
    needed = []
    with ExitStack() as stack:
        if asked.variant in ("fused", "shared", "checkpointed"):
            from inhouse.train.fused import fused_lora

            stack.enter_context(fused_lora(model))
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
    clock.write("steps", **share_of_peak(clock, needed))


def load(asked: Settings):
    """The model with fresh fp32 adapters, and the attention that the variant takes."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    name = "fp32" if asked.variant == "fp32-padded" else "bf16"
    attention = "sdpa"
    if asked.variant not in (*PADDED, "masked"):
        from inhouse.train.attention import NAME, register

        register()
        attention = NAME
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[name]
    model = AutoModelForCausalLM.from_pretrained(asked.model(name), dtype=dtype, attn_implementation=attention)
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
    return packed(model, batch, asked.variant, counter)


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


def packed(model, batch: list[dict], variant: str, counter: Counter) -> tuple:
    """One row without padding, laid out by the product."""
    import torch

    from inhouse.train.attention import use_layout
    from inhouse.train.segments import layout, pack
    from inhouse.train.tokens import Sample

    samples = [Sample(tuple(row["input_ids"]), tuple(label >= 0 for label in row["labels"])) for row in batch]
    row = pack(samples, variant in ("shared", "checkpointed"))
    if variant != "masked":  # transformers makes the mask of blocks itself, from positions that start again
        use_layout(layout(row, torch.device("cpu")))
    hidden = model.base_model.model.model(
        input_ids=torch.tensor([row.ids]), position_ids=torch.tensor([row.positions]), use_cache=False
    ).last_hidden_state
    loss = cross_entropy(model, hidden[0, list(row.places)], torch.tensor(row.targets))
    return loss, counter.packed(row)


def cross_entropy(model, hidden, targets):
    """Mean over the learned tokens: hidden (N, D), targets (N)."""
    import torch

    logits = model.base_model.model.lm_head(hidden)
    return torch.nn.functional.cross_entropy(logits.float(), targets)


if __name__ == "__main__":
    main()
