"""Lines of many texts as hashes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from inhouse.core.compiled import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

BYTES = "Array(uint8, 1, 'C', readonly=True)"
OFFSETS = "Array(int64, 1, 'C', readonly=True)"
SEED, PRIME = np.int64(0x27D4EB2F165667C5), np.int64(0x100000001B3)  # the hash wraps around 64 bits


@kernel(f"int64({BYTES})")
def count_lines(data: NDArray[np.uint8]) -> int:
    """Line ends in the bytes."""
    count = 0
    for byte in data:
        count += byte == 10
    return count


@kernel(f"int64[:, ::1]({BYTES}, {OFFSETS}, int64)")
def line_keys(data: NDArray[np.uint8], offsets: NDArray[np.int64], least: int) -> NDArray[np.int64]:
    """Text, key, characters and place of each line with at least so many characters; blanks at its ends do not count.

    The key hashes the line's bytes from the first to the last that is not a space or tab. The place is that of the
    line's first byte in `data`.
    """
    found = np.empty((count_lines(data) + len(offsets), 4), np.int64)
    count = 0
    for text in range(len(offsets) - 1):
        key, solid_key = SEED, SEED
        chars = solid_chars = 0
        start = offsets[text]
        for at in range(offsets[text], offsets[text + 1] + 1):
            byte = 10 if at == offsets[text + 1] else np.int64(data[at])
            if byte == 10:
                if solid_chars >= least:
                    found[count] = np.array((text, solid_key ^ (solid_key >> 31), solid_chars, start))
                    count += 1
                key, solid_key = SEED, SEED
                chars = solid_chars = 0
                start = at + 1
                continue
            blank = byte == 32 or byte == 9 or byte == 13
            if blank and solid_chars == 0:
                continue
            key = (key ^ byte) * PRIME
            chars += (byte & 0xC0) != 0x80
            if not blank:
                solid_key, solid_chars = key, chars
    return found[:count]
