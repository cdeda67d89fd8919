"""Floating-point operations: what this machine can do of them in bf16, and what a training step needs."""

from __future__ import annotations

import time
from collections.abc import Iterable

SIDE = 2048  # of the square matrices that the peak is measured with
ROUNDS = 7


def matrix_peak() -> dict[str, float]:
    """The fastest bf16 product of two 2048 x 2048 matrices, in FLOP per CPU-second and per second."""
    import torch

    one, other = (torch.randn(SIDE, SIDE).to(torch.bfloat16) for _ in range(2))
    count = 2 * SIDE**3
    cpu, wall = [], []
    for _ in range(ROUNDS + 1):  # the first one makes oneDNN choose its kernel
        started = (time.process_time(), time.perf_counter())
        torch.mm(one, other)
        cpu.append(time.process_time() - started[0])
        wall.append(time.perf_counter() - started[1])
    return {"peak_flop_per_cpu_s": count / min(cpu[1:]), "peak_flop_per_s": count / min(wall[1:])}


def share_of_peak(clock, needed: list[int]) -> dict[str, float]:
    """How much of the peak the steps of a clock reached; `needed` is the FLOP of each step."""
    peak = matrix_peak()
    first, last = clock.asked.warm, clock.asked.steps
    took = clock.marks[last][0] - clock.marks[first][0]
    share = sum(needed[first:last]) / took / peak["peak_flop_per_cpu_s"]
    return {**peak, "flop_per_step": sum(needed) / len(needed), "share_of_peak": round(share, 4)}


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
