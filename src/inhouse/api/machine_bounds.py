"""What this machine can do at most: bytes read from memory a second, multiplications a second, tokens a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from pydantic import Field

from inhouse.core.artifact import Frozen
from inhouse.core.model import ModelFacts
from inhouse.core.plugins import require
from inhouse.core.settings import usable_cores

READ_BYTES = 2**28  # beyond every cache
GEMM = 1024
REPEAT = 5
KV_BYTES = 2  # keys and values are kept in 16 bits


class Bounds(Frozen):
    """What was measured of this machine, with all cores that may be used."""

    threads: int
    read_bytes_per_s: float = Field(description="from memory, in one direction")
    fp32_flops_per_s: float = Field(description="multiplying fp32 matrices of 1,024; int8 kernels can do more")


class Decode(Frozen):
    """The most tokens a second that a model can give here, and the share of it that was reached."""

    most_tokens_per_s: float
    bound_by: Literal["memory", "compute"]
    share: float

    @classmethod
    def of(cls, facts: ModelFacts, bounds: Bounds, clients: int, length: float, reached: float) -> Decode | None:
        """For so many sequences of `length` tokens in one batch; None where the header does not tell the sizes.

        Every step reads all weights once and every sequence's keys and values, and multiplies 2 x parameters for each.
        """
        if not (facts.bytes and facts.layers and facts.heads and facts.hidden and facts.parameters):
            return None
        kv_heads = facts.kv_heads or facts.heads
        kept = 2 * KV_BYTES * facts.layers * kv_heads * (facts.hidden // facts.heads) * length
        memory = bounds.read_bytes_per_s / (facts.bytes / clients + kept)
        compute = bounds.fp32_flops_per_s / (2 * (facts.active_parameters or facts.parameters))
        most = min(memory, compute)
        bound_by: Literal["memory", "compute"] = "memory" if memory <= compute else "compute"
        return cls(most_tokens_per_s=most, bound_by=bound_by, share=reached / most)

    @staticmethod
    def formula() -> str:
        """How it is reckoned."""
        return "min(read B/s / (weights B / clients + KV B per token x tokens), fp32 FLOP/s / (2 x parameters))"


def measure_bounds() -> Bounds:
    """Measure memory and arithmetic, about a second each. The best of some tries: others may use the machine."""
    require("eval", "numpy")
    threads = usable_cores()
    return Bounds(threads=threads, read_bytes_per_s=_read_speed(threads), fp32_flops_per_s=_gemm_speed())


def _read_speed(threads: int) -> float:
    import numpy as np

    parts = [np.ones(READ_BYTES // 4 // threads, dtype=np.float32) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        # A maximum reads every number once and writes none; numpy lets go of the interpreter meanwhile.
        seconds = _best(lambda: list(pool.map(np.max, parts)))
    return sum(part.nbytes for part in parts) / seconds


def _gemm_speed() -> float:
    import numpy as np

    a = np.ones((GEMM, GEMM), dtype=np.float32)
    return 2 * GEMM**3 / _best(lambda: a @ a)


def _best(work: Callable[[], object]) -> float:
    found = []
    for _ in range(REPEAT):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return min(found)
