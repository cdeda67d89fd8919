"""Write traditional characters as simplified ones, in place: both take three bytes, so that no offset moves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from inhouse.core.compiled import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

FIRST, LAST = 0x4E00, 0x9FFF
BYTES, OFFSETS = "Array(uint8, 1, 'C', readonly=True)", "Array(int64, 1, 'C', readonly=True)"


@kernel(f"Tuple((uint8[::1], boolean[::1]))({BYTES}, {OFFSETS}, Array(uint16, 1, 'C', readonly=True))")
def fold(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], table: NDArray[np.uint16]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The bytes with each character that `table` (from FIRST on) has another for replaced by that.

    And which texts hold a full-width letter or a full-width @.
    """
    folded = data.copy()
    wide = np.zeros(len(offsets) - 1, np.bool_)
    for text in range(len(wide)):
        at, end = offsets[text], offsets[text + 1]
        while at < end:
            first = data[at]
            if first < 0xE4 or first > 0xEF or at + 2 >= end:  # bytes within a character are lower
                at += 1
                continue
            second, third = data[at + 1], data[at + 2]
            if first <= 0xE9:
                code = np.int64(first & 15) << 12 | np.int64(second & 63) << 6 | np.int64(third & 63)
                if FIRST <= code <= LAST and table[code - FIRST]:
                    other = np.int64(table[code - FIRST])
                    folded[at] = 0xE0 | other >> 12
                    folded[at + 1] = 0x80 | (other >> 6 & 63)
                    folded[at + 2] = 0x80 | (other & 63)
            elif first == 0xEF and ((second == 0xBC and 0xA0 <= third <= 0xBA) or (second == 0xBD and third <= 0x9A)):
                wide[text] = True
            at += 3
    return folded, wide
