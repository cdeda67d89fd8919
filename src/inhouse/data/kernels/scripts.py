"""Count letters, and characters that only simplified or only traditional Chinese has."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from inhouse.core.compiled import kernel
from inhouse.data.kernels.kept import table
from inhouse.data.kernels.kinds import decode

if TYPE_CHECKING:
    from numpy.typing import NDArray

FIRST, LAST = 0x4E00, 0x9FFF  # the main block of Han characters; all are three bytes long
BEYOND = 0x33480  # from here on no character is a letter (Unicode 17)
# Hiragana, katakana, Han and Hangul: each says as much as three letters.
SYLLABLES = ((0x3040, 0x30FF), (0x3400, 0x9FFF), (0xAC00, 0xD7A3), (0xF900, 0xFAFF))
BYTES, OFFSETS = "Array(uint8, 1, 'C', readonly=True)", "Array(int64, 1, 'C', readonly=True)"


@table
def weights() -> NDArray[np.int64]:
    """What each character counts as letters: 1 for letters of alphabets, 3 for syllables."""
    found = np.zeros(BEYOND, np.int64)
    for code in range(BEYOND):
        char = chr(code)
        found[code] = char.isalnum() and not char.isdecimal()
    for first, last in SYLLABLES:
        found[first : last + 1] += 2
    return found


@kernel(f"int64[::1]({BYTES}, {OFFSETS}, int64[::1], int64)")
def count_letters(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], table: NDArray[np.int64], enough: int
) -> NDArray[np.int64]:
    """The letters of each text by the table of `weights`; counting ends when there are enough."""
    letters = np.zeros(len(offsets) - 1, np.int64)
    for text in range(len(letters)):
        at, end = offsets[text], offsets[text + 1]
        while at < end and letters[text] < enough:
            code, size = decode(data, at)
            if code < BEYOND:
                letters[text] += table[code]
            at += size
    return letters


@table
def sides() -> NDArray[np.int64]:
    """For each Han character 1 if only GB 2312 (simplified) can write it, -1 if only Big5 (traditional) can, else 0."""
    found = np.zeros(LAST + 1 - FIRST, np.int64)
    for code in range(FIRST, LAST + 1):
        simplified, traditional = (bool(chr(code).encode(encoding, "ignore")) for encoding in ("gb2312", "big5"))
        found[code - FIRST] = simplified - traditional
    return found


@kernel(f"int64[::1]({BYTES}, {OFFSETS}, int64[::1])")
def lean(data: NDArray[np.uint8], offsets: NDArray[np.int64], table: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many more simplified than traditional characters each text has."""
    more = np.zeros(len(offsets) - 1, np.int64)
    for text in range(len(more)):
        at, end = offsets[text], offsets[text + 1]
        while at < end:
            if data[at] < 0xE4 or data[at] > 0xE9:  # bytes within a character are lower
                at += 1
                continue
            code = np.int64(data[at] & 15) << 12 | np.int64(data[at + 1] & 63) << 6 | np.int64(data[at + 2] & 63)
            if FIRST <= code <= LAST:
                more[text] += table[code - FIRST]
            at += 3
    return more
