"""Floating-point operations: what this machine can do of them in bf16, and what a training step needs."""

from __future__ import annotations

import time
from collections.abc import Iterable

SIDE = 2048  # of the square matrices that the peak is measured with
ROUNDS = 3


class Peak:
    """The fastest bf16 product of two 2048 x 2048 matrices, in FLOP per CPU-second, looked for between the steps.

    A shared machine is a third faster or slower from one minute to the next, so a step is compared with the better of
    the peaks before and behind it. The clock does not count this.
    """

    def __init__(self, clock) -> None:
        self.clock = clock
        self.pair: list = []
        self.found: list[float] = []  # behind each step
        clock.between = self.look

    def look(self) -> None:
        """Measure once more; called behind every step."""
        import torch

        if not self.pair:
            self.pair = [torch.randn(SIDE, SIDE).to(torch.bfloat16) for _ in range(2)]
            torch.mm(*self.pair)  # makes oneDNN choose its kernel
        took = []
        for _ in range(ROUNDS):
            started = time.process_time()
            torch.mm(*self.pair)
            took.append(time.process_time() - started)
        self.found.append(2 * SIDE**3 / min(took))

    def share(self, needed: list[int]) -> dict[str, float]:
        """How much of the peak the steps reached; `needed` is the FLOP of each step."""
        clock = self.clock
        steps = range(clock.asked.warm, clock.asked.steps)  # of step n, from 0, the marks n and n + 1
        could = sum((clock.marks[n + 1][0] - clock.marks[n][0]) * max(self.found[n - 1], self.found[n]) for n in steps)
        peak = sum(self.found) / len(self.found)
        share = sum(needed[n] for n in steps) / could
        return {
            "peak_flop_per_cpu_s": peak, "flop_per_step": sum(needed) / len(needed), "share_of_peak": round(share, 4),
        }  # fmt: skip


class Counter:
    """Counts what steps of LoRA need on a model: 4 per frozen weight and token, 6 per weight of an adapter.

    A frozen linear layer takes 2 per weight and token forward, and 2 for the gradient of its input; its own gradient is
    not needed. The output matrix counts at the positions that were computed. Attention takes 2 x 2 x heads x size for
    each pair of a token and one that it may see, and twice that backward. Padding counts as tokens: it is computed.
    """

    def __init__(self, model) -> None:
        from torch.nn import Linear

        config = model.config
        self.head = config.vocab_size * config.hidden_size
        self.adapters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        frozen = [m for name, m in model.named_modules() if isinstance(m, Linear) and "lora_" not in name]
        self.weights = sum(m.weight.numel() for m in frozen if m.out_features != config.vocab_size)
        self.pair = 3 * 4 * config.num_hidden_layers * config.num_attention_heads * config.head_dim

    def step(self, tokens: int, predicted: int, pairs: int) -> int:
        """FLOP of one step: tokens computed, positions with logits, pairs of tokens that see each other."""
        return tokens * (4 * self.weights + 6 * self.adapters) + predicted * 4 * self.head + pairs * self.pair

    def packed(self, row) -> int:
        """FLOP of one step over a row that the product packed (inhouse.train.segments.Packed)."""
        pairs = sum(causal_pairs(group.lengths, group.before) for group in row.groups)
        return self.step(len(row.ids), len(row.places), pairs)


def causal_pairs(lengths: Iterable[int], before: int = 0) -> int:
    """Pairs of a token and one that it sees: each row sees itself up to the token, and `before` tokens in front."""
    return sum(length * before + length * (length + 1) // 2 for length in lengths)
