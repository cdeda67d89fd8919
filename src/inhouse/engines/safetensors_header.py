"""Read the header of a safetensors file without trusting it: names, types and shapes, no weights.

Format: github.com/huggingface/safetensors, README "Format": u64 length N, N bytes of JSON, then the data.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from inhouse.core.errors import UserError

# The reference implementation takes 100 MB, which costs it seconds. The longest published are below 10 MB: a file
# with 100,000 tensors, one for each expert of each layer, fits.
LONGEST_HEADER = 25_000_000
BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
         "I32": 4, "U32": 4, "F32": 4, "C64": 8, "F64": 8, "I64": 8, "U64": 8}  # fmt: skip
HALF_BYTE = {"F4"}
LONGEST_NAME = 1024


@dataclass(frozen=True)
class Tensor:
    """One tensor: its name, type and shape, and the bytes it takes, counted from the end of the header."""

    name: str
    type: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def elements(self) -> int:
        """How many weights it holds."""
        return prod(self.shape)


def read_header(path: Path) -> list[Tensor]:
    """The tensors of a safetensors file; raise select.safetensors with the reason when it cannot be right.

    As the reference implementation demands, the tensors' bytes follow each other without a gap and end with the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        _require(len(start) == 8, path, "it is shorter than its length field")
        (length,) = struct.unpack("<Q", start)
        _require(length <= LONGEST_HEADER, path, f"its header claims {length} bytes")
        _require(8 + length <= size, path, f"its header claims {length} bytes of a file of {size}")
        header = _parse(path, file.read(length))
    told = header.get("__metadata__", {})
    texts = isinstance(told, dict) and all(isinstance(value, str) for value in told.values())
    _require(texts, path, "its __metadata__ does not hold texts")
    tensors = [_tensor(path, n, entry, size - 8 - length) for n, entry in header.items() if n != "__metadata__"]
    _check_places(path, tensors, size - 8 - length)
    return tensors


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    twice: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice.append("")
        return found

    try:
        header = json.loads(raw, object_pairs_hook=once)
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise UserError("select.safetensors", path=path, reason="its header is not a JSON object")
    _require(not twice, path, "a name in its header appears twice")
    return header


def _check_places(path: Path, tensors: list[Tensor], data_bytes: int) -> None:
    placed = sorted(tensors, key=lambda t: (t.begin, t.end))
    for left, right in pairwise(placed):
        _require(left.end <= right.begin, path, f"{left.name!r} and {right.name!r} overlap")
        _require(left.end == right.begin, path, f"there is a gap before {right.name!r}")
    first, last = (placed[0].begin, placed[-1].end) if placed else (0, 0)
    _require(first == 0, path, "there is a gap before its first tensor")
    _require(last == data_bytes, path, f"its tensors end at byte {last} of {data_bytes}")


def _tensor(path: Path, name: str, entry: Any, data_bytes: int) -> Tensor:
    _require(len(name) <= LONGEST_NAME, path, f"a name in its header has {len(name)} characters")
    good = isinstance(entry, dict) and {"dtype", "shape", "data_offsets"} <= set(entry)
    _require(good, path, f"tensor {name!r} is not described")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    _require(_is_whole(shape) and len(shape) <= 16, path, f"tensor {name!r} has no proper shape")
    _require(_is_whole(offsets) and len(offsets) == 2, path, f"tensor {name!r} has no proper place")
    known = isinstance(kind, str) and (kind in BYTES or kind in HALF_BYTE)
    _require(known, path, f"tensor {name!r} has the unknown type {str(kind)[:20]!r}")
    begin, end = offsets
    _require(prod(shape) < 2**62, path, f"tensor {name!r} has an impossible shape")
    _require(begin <= end <= data_bytes, path, f"tensor {name!r} ends beyond the file: it is cut off")
    doubled = prod(shape) if kind in HALF_BYTE else 2 * prod(shape) * BYTES[kind]
    _require(2 * (end - begin) == doubled, path, f"tensor {name!r} has {end - begin} bytes for the shape {shape}")
    return Tensor(name, kind, tuple(shape), begin, end)


def _is_whole(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**62 for n in value)


def _require(holds: bool, path: Path, reason: str) -> None:
    if not holds:
        raise UserError("select.safetensors", path=path, reason=reason)
