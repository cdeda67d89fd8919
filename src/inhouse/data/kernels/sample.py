"""Stretches of many texts, evenly spread over each, as one buffer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from inhouse.core.compiled import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

BYTES, OFFSETS = "Array(uint8, 1, 'C', readonly=True)", "Array(int64, 1, 'C', readonly=True)"
LONGEST = 4  # bytes of a character
BLOCK = 64  # bytes that are counted at once


@kernel(f"int64({BYTES}, int64, int64)")
def count_characters(data: NDArray[np.uint8], at: int, end: int) -> int:
    """Characters that begin in data[at:end]."""
    count = 0
    for place in range(at, end):
        count += data[place] & 0xC0 != 0x80
    return count


@kernel(f"int64({BYTES}, int64, int64, int64)")
def skip_characters(data: NDArray[np.uint8], at: int, end: int, count: int) -> int:
    """The place so many characters behind `at`."""
    while count >= BLOCK and at + BLOCK <= end:
        count -= count_characters(data, at, at + BLOCK)
        at += BLOCK
    while at < end and (count > 0 or data[at] & 0xC0 == 0x80):
        count -= data[at] & 0xC0 != 0x80
        at += 1
    return at


@kernel(f"int64[::1]({BYTES}, {OFFSETS}, int64, int64, Array(uint8, 1, 'C'))")
def copy_stretches(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], stretches: int, chars: int, out: NDArray[np.uint8]
) -> NDArray[np.int64]:
    """Write the sample of every text into `out`, one behind the other; their offsets (n + 1)."""
    starts = np.zeros(len(offsets), np.int64)
    place = 0
    for text in range(len(offsets) - 1):
        at, end = offsets[text], offsets[text + 1]
        count, passed = count_characters(data, at, end), 0
        parts, size = (stretches, chars) if count > stretches * chars else (1, count)
        for number in range(parts):
            if number:
                first = (count - size) * number // (parts - 1)
                at = skip_characters(data, at, end, first - passed)
                passed = first
                out[place] = 32
                place += 1
            stop = skip_characters(data, at, end, size)
            out[place : place + stop - at] = data[at:stop]
            place += stop - at
            at, passed = stop, passed + size
        starts[text + 1] = place
    return starts


def sample(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], stretches: int, chars: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """So many stretches of so many characters of each text, a space between them; short texts whole.

    The first is at a text's beginning, the last at its end, the others lie evenly between.
    """
    most = np.minimum(np.diff(offsets) + stretches, stretches * (chars * LONGEST + 1))
    out = np.empty(int(most.sum()), np.uint8)
    starts = copy_stretches(data, offsets, stretches, chars, out)
    return out[: starts[-1]], starts
