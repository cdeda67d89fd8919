"""Tell simplified from traditional Chinese by characters that only one of them has."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numba
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

FIRST, LAST = 0x4E00, 0x9FFF  # the main block of Han characters; all are three bytes long
SIGNATURE = "int64[::1](Array(uint8, 1, 'C', readonly=True), Array(int64, 1, 'C', readonly=True), int64[::1])"


@cache
def sides() -> NDArray[np.int64]:
    """For each Han character 1 if only GB 2312 (simplified) can write it, -1 if only Big5 (traditional) can, else 0."""
    table = np.zeros(LAST + 1 - FIRST, np.int64)
    for code in range(FIRST, LAST + 1):
        simplified, traditional = (bool(chr(code).encode(encoding, "ignore")) for encoding in ("gb2312", "big5"))
        table[code - FIRST] = simplified - traditional
    return table


@numba.njit(SIGNATURE, cache=True, nogil=True)
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
