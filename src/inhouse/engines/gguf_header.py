"""Read the header of a GGUF file without trusting it: nothing is allocated on a declared size, nothing is loaded.

Format: github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little-endian. Every loader downstream
(llama.cpp, transformers) is native code that a crafted file may crash, so this check comes first.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from inhouse.core.errors import UserError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
# Bounds: larger than anything published, small enough that the worst file is read or refused within a second.
MOST_TENSORS = 20_000
MOST_KEYS = 10_000
LONGEST_KEY = 65_535  # of the specification
LONGEST_STRING = 16 * 2**20
LONGEST_TENSOR_NAME = 1024  # ggml itself takes 64
MOST_DIMENSIONS = 4
ARRAY_SHOWN = 64
MOST_ITEMS = 2_000_000  # texts of all arrays together; the largest vocabularies and their merges have 800,000
LARGEST_HEADER = 128 * 2**20
PIECE = 2**20

# GGUFValueType -> struct format; 8 is a string, 9 an array.
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
# type number -> (name, weights per block, bytes per block): GGML_QUANT_SIZES of gguf 0.19.0, gguf/constants.py.
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}

Scalar = int | float | bool | str
Declared = tuple[str, tuple[int, ...], int, int]  # a tensor's name, shape, type number, offset in the data


@dataclass(frozen=True)
class ArrayValue:
    """An array of the header: its length, its first items, and where in the file the first one stands (`items`)."""

    length: int
    shown: tuple[Scalar, ...]
    at: int = field(default=0, compare=False)
    kind: int = field(default=STRING, compare=False)  # the value type of its items


Value = Scalar | ArrayValue


@dataclass(frozen=True)
class Tensor:
    """One tensor: dimensions as ggml orders them (innermost first), its place in the file and its size in bytes."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    bytes: int

    @property
    def elements(self) -> int:
        """How many weights it holds."""
        return prod(self.shape)


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says of itself. `data_offset` is where the first tensor's bytes may begin.

    `tensors_offset` is where the metadata ends and the list of tensors begins.
    """

    version: int
    metadata: dict[str, Value]
    tensors: tuple[Tensor, ...]
    data_offset: int
    bytes: int
    tensors_offset: int = 0

    def text(self, key: str) -> str | None:
        """A text of the metadata, None when it is absent or no text."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else None

    def number(self, key: str) -> int | None:
        """A whole number of the metadata; of an array (a value per layer) the largest shown; None when absent."""
        value = self.metadata.get(key)
        if isinstance(value, ArrayValue):
            numbers = [v for v in value.shown if isinstance(v, int)]
            return max(numbers) if numbers else None
        return value if isinstance(value, int) and not isinstance(value, bool) else None


def read_header(path: Path) -> GgufHeader:
    """Read and check the header of a GGUF file; no weights are read.

    Raises gguf.missing, gguf.not_gguf, gguf.version, gguf.damaged (with the reason).
    """
    try:
        with path.open("rb") as file:
            return _Reader(file, path, os.fstat(file.fileno()).st_size).header()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError("gguf.missing", path=path) from error


def items(path: Path, header: GgufHeader, key: str) -> list[Any]:
    """Every item of an array of the metadata, in order; empty where the file has no such array.

    `header` is that of the same file: `read_header` has found the array to lie whole inside it.
    Raises gguf.damaged for a text that is not UTF-8.
    """
    value = header.metadata.get(key)
    if not isinstance(value, ArrayValue):
        return []
    with path.open("rb") as file:
        file.seek(value.at)
        if value.kind != STRING:
            form = f"<{value.length}{SCALARS[value.kind][1]}"
            return list(struct.unpack(form, file.read(struct.calcsize(form))))
        held = file.read(header.tensors_offset - value.at)
    length_of, at, found = struct.Struct("<Q").unpack_from, 0, []
    try:
        for _ in range(value.length):
            end = at + 8 + int(length_of(held, at)[0])
            found.append(held[at + 8 : end].decode("utf-8"))
            at = end
    except UnicodeDecodeError as error:
        raise UserError("gguf.damaged", path=path, at=value.at + at, reason="a text is not UTF-8") from error
    return found


def pass_strings(piece: bytes, most: int) -> tuple[int, int]:
    """How many texts, `most` at most, lie whole at the beginning of a piece of a file, and in how many bytes."""
    length_of = struct.Struct("<Q").unpack_from
    at, last = 0, len(piece) - 8
    for passed in range(most):
        if at > last:
            return passed, at
        end = at + 8 + int(length_of(piece, at)[0])
        if end > len(piece):
            return passed, at
        at = end
    return most, at


class _Reader:
    """A position in the file; every step checks what is left before it reads."""

    def __init__(self, file: BinaryIO, path: Path, size: int) -> None:
        self.file = file
        self.path = path
        self.size = size
        self.at = 0
        self.items_left = MOST_ITEMS

    def header(self) -> GgufHeader:
        if self.size < 4 or self.take(4) != MAGIC:
            raise UserError("gguf.not_gguf", path=self.path)
        version = self.number("<I")
        if version not in VERSIONS:
            raise UserError("gguf.version", path=self.path, version=version)
        tensors, keys = self.number("<Q"), self.number("<Q")
        self.require(tensors <= MOST_TENSORS, f"it claims {tensors} tensors")
        self.require(keys <= MOST_KEYS, f"it claims {keys} metadata keys")
        metadata = self.metadata(keys)
        begin = self.at
        found = [self.tensor() for _ in range(tensors)]
        return replace(self.placed(version, metadata, found), tensors_offset=begin)

    def metadata(self, count: int) -> dict[str, Value]:
        found: dict[str, Value] = {}
        for _ in range(count):
            key = self.string(LONGEST_KEY)
            self.require(key not in found, f"the key {key[:64]!r} appears twice")
            found[key] = self.value(self.number("<I"))
        return found

    def value(self, kind: int) -> Value:
        if kind == ARRAY:
            return self.array()
        if kind == STRING:
            return self.string(LONGEST_STRING)
        self.require(kind in SCALARS, f"value type {kind} does not exist")
        return self.scalar(SCALARS[kind])

    def array(self) -> ArrayValue:
        kind, length = self.number("<I"), self.number("<Q")
        if kind == STRING:
            return self.strings(length)
        self.require(kind in SCALARS, f"an array of value type {kind} is not allowed")
        width = struct.calcsize(SCALARS[kind])
        self.require(length <= (self.size - self.at) // width, f"an array claims {length} items")
        first, at = min(length, ARRAY_SHOWN), self.at
        shown = struct.unpack(f"<{first}{SCALARS[kind][1]}", self.take(first * width))
        self.skip((length - first) * width)
        return ArrayValue(length, shown, at, kind)

    def strings(self, length: int) -> ArrayValue:
        self.items_left -= length
        fits = length <= (self.size - self.at) // 8 and self.items_left >= 0
        self.require(fits, f"an array claims {length} texts")
        at = self.at
        shown = tuple(self.string(LONGEST_STRING) for _ in range(min(length, ARRAY_SHOWN)))
        self.skip_strings(length - len(shown))
        return ArrayValue(length, shown, at)

    def skip_strings(self, left: int) -> None:
        """Pass over texts in large pieces: one read for each would take seconds for the vocabularies that exist."""
        while left:
            piece = self.file.read(min(PIECE, self.size - self.at))
            passed, whole = pass_strings(piece, left)
            if passed == 0:  # longer than a piece, or cut off
                self.file.seek(self.at)
                self.skip(self.number("<Q"))
                left -= 1
                continue
            self.skip(whole)
            left -= passed

    def tensor(self) -> Declared:
        name = self.string(LONGEST_TENSOR_NAME)
        count = self.number("<I")
        self.require(1 <= count <= MOST_DIMENSIONS, f"tensor {name!r} has {count} dimensions")
        shape = tuple(self.number("<Q") for _ in range(count))
        # Products are exact in Python; a native loader's 64-bit product would wrap around, so bound it here.
        fits = all(shape) and prod(shape) < 2**62
        self.require(fits, f"tensor {name!r} has the impossible shape {shape}")
        return name, shape, self.number("<I"), self.number("<Q")

    def placed(self, version: int, metadata: dict[str, Value], found: list[Declared]) -> GgufHeader:
        """Compute where each tensor lies, and check that it lies inside the file, aligned and apart from the rest."""
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        good = isinstance(alignment, int) and 8 <= alignment <= 2**20 and alignment & (alignment - 1) == 0
        self.require(good, f"its alignment is {str(alignment)[:32]!r}")
        step = int(str(alignment))
        start = -(-self.at // step) * step
        tensors = tuple(self.place(start, step, each) for each in found)
        self.require(len({t.name for t in tensors}) == len(tensors), "two tensors have the same name")
        ordered = sorted(tensors, key=lambda t: t.offset)
        for left, right in pairwise(ordered):
            self.require(left.offset + left.bytes <= right.offset, f"{left.name!r} and {right.name!r} overlap")
        return GgufHeader(version, metadata, tensors, start, self.size)

    def place(self, start: int, step: int, declared: Declared) -> Tensor:
        name, shape, kind, offset = declared
        self.require(kind in TYPES, f"tensor {name!r} has the unknown type {kind}")
        type_name, block, block_bytes = TYPES[kind]
        self.require(shape[0] % block == 0, f"tensor {name!r}: rows of {shape[0]} do not fit {type_name}")
        size = prod(shape) // block * block_bytes
        self.require(offset % step == 0, f"tensor {name!r} is not aligned")
        inside = start + offset + size <= self.size
        self.require(inside, f"tensor {name!r} ends at byte {start + offset + size} of {self.size}: it is cut off")
        return Tensor(name, shape, type_name, start + offset, size)

    def string(self, longest: int) -> str:
        length = self.number("<Q")
        self.require(length <= longest, f"a text claims {length} bytes")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            self.require(False, "a text is not UTF-8")
            raise

    def scalar(self, form: str) -> int | float | bool:
        value: int | float | bool = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return value

    def number(self, form: str) -> int:
        return int(self.scalar(form))

    def take(self, count: int) -> bytes:
        self.advance(count)
        return self.file.read(count)

    def skip(self, count: int) -> None:
        self.advance(count)
        self.file.seek(self.at)

    def advance(self, count: int) -> None:
        self.require(count <= self.size - self.at, "the header is cut off")
        self.require(self.at + count <= LARGEST_HEADER, "the header is too large")
        self.at += count

    def require(self, holds: bool, reason: str) -> None:
        if not holds:
            raise UserError("gguf.damaged", path=self.path, at=self.at, reason=reason)
