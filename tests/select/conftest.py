"""Fixtures of the select room's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def write_gguf() -> Callable[..., Path]:
    """A function that writes a small GGUF llama with the given metadata (`__` stands for a dot)."""

    def write(path: Path, **numbers: int) -> Path:
        """A GGUF llama with one tensor of 64 ordinary weights and one of 64 expert weights."""
        import gguf
        import numpy as np

        writer = gguf.GGUFWriter(path, "llama")
        writer.add_name("../evil name\n")
        for key, value in numbers.items():
            writer.add_uint32(key.replace("__", "."), value)
        writer.add_tensor("blk.0.attn_q.weight", np.ones((2, 32), dtype=np.float32))
        writer.add_tensor("blk.0.ffn_up_exps.weight", np.ones((2, 32), dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write
