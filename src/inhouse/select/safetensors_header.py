"""Read the header of a safetensors file without trusting it: names, types and shapes, no weights.

Format: github.com/huggingface/safetensors, README "Format": u64 length N, N bytes of JSON, then the data.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from inhouse.core.errors import UserError

LONGEST_HEADER = 100_000_000  # the bound of the reference implementation
BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
         "I32": 4, "U32": 4, "F32": 4, "C64": 8, "F64": 8, "I64": 8, "U64": 8}  # fmt: skip
HALF_BYTE = {"F4"}


@dataclass(frozen=True)
class Tensor:
    """One tensor: its name, type and shape."""

    name: str
    type: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many weights it holds."""
        return prod(self.shape)


def read_header(path: Path) -> list[Tensor]:
    """The tensors of a safetensors file; raise select.safetensors with the reason when it cannot be right."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        _require(len(start) == 8, path, "it is shorter than its length field")
        (length,) = struct.unpack("<Q", start)
        _require(length <= LONGEST_HEADER, path, f"its header claims {length} bytes")
        _require(8 + length <= size, path, f"its header claims {length} bytes of a file of {size}")
        raw = file.read(length)
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise UserError("select.safetensors", path=path, reason="its header is not a JSON object")
    return [_tensor(path, n, entry, size - 8 - length) for n, entry in header.items() if n != "__metadata__"]


def _tensor(path: Path, name: str, entry: Any, data_bytes: int) -> Tensor:
    good = isinstance(entry, dict) and {"dtype", "shape", "data_offsets"} <= set(entry)
    _require(good, path, f"tensor {name!r} is not described")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    _require(_is_whole(shape) and len(shape) <= 16, path, f"tensor {name!r} has no proper shape")
    _require(_is_whole(offsets) and len(offsets) == 2, path, f"tensor {name!r} has no proper place")
    _require(kind in BYTES or kind in HALF_BYTE, path, f"tensor {name!r} has the unknown type {str(kind)[:20]}")
    begin, end = offsets
    _require(begin <= end <= data_bytes, path, f"tensor {name!r} ends beyond the file: it is cut off")
    expected = prod(shape) // 2 if kind in HALF_BYTE else prod(shape) * BYTES[kind]
    _require(end - begin == expected, path, f"tensor {name!r} has {end - begin} bytes for the shape {shape}")
    return Tensor(name, kind, tuple(shape))


def _is_whole(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**62 for n in value)


def _require(holds: bool, path: Path, reason: str) -> None:
    if not holds:
        raise UserError("select.safetensors", path=path, reason=reason)
