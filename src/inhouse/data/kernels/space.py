"""White space of many texts in one pass over their bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from inhouse.core.compiled import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Bytes that neither are white space nor can begin it: C2, E1, E2 and E3 begin U+00A0, U+1680, U+2000-205F and U+3000.
PLAIN = np.array([byte > 32 and byte not in (0xC2, 0xE1, 0xE2, 0xE3) for byte in range(256)])
ASK = 2
# 1 of bytes that are no white space, 0 of those that are, ASK of those that can begin a wide one.
SEEN = np.array(
    [ASK if b in (0xC2, 0xE1, 0xE2, 0xE3) else b not in (9, 10, 11, 12, 13, 32) for b in range(256)], np.uint8
)
VISIBLE, LINE_END, SPACE, TAB, WIDE = 0, 1, 2, 3, 4  # what stands at a place; WIDE is U+3000
BYTES = "Array(uint8, 1, 'C', readonly=True)"
OFFSETS = "Array(int64, 1, 'C', readonly=True)"
OUT = "Array(uint8, 1, 'C')"


@kernel(f"UniTuple(int64, 2)({BYTES}, int64, int64)")
def space_at(data: NDArray[np.uint8], at: int, end: int) -> tuple[int, int]:
    """What kind of white space stands at `at`, and its length in bytes.

    Line ends: CR LF, LF, CR, VT, FF, U+0085, U+2028, U+2029. Spaces: U+0020 and every Zs but U+3000.
    """
    first = np.int64(data[at])
    if first <= 32:
        if first == 32 or first == 9:
            return (SPACE if first == 32 else TAB), 1
        if first == 13 and at + 1 < end and data[at + 1] == 10:
            return LINE_END, 2
        return (LINE_END if 10 <= first <= 13 else VISIBLE), 1
    if first == 0xC2:
        return (LINE_END if data[at + 1] == 0x85 else SPACE if data[at + 1] == 0xA0 else VISIBLE), 2
    if first < 0xE1 or first > 0xE3:
        return VISIBLE, 1
    code = ((first & 15) << 12) | (np.int64(data[at + 1] & 63) << 6) | np.int64(data[at + 2] & 63)
    if code == 0x3000:
        return WIDE, 3
    if code == 0x2028 or code == 0x2029:
        return LINE_END, 3
    space = 0x2000 <= code <= 0x200A or code == 0x202F or code == 0x205F or code == 0x1680
    return (SPACE if space else VISIBLE), 3


@kernel(f"int64({BYTES}, int64, int64)", inline="always")
def easy_run(data: NDArray[np.uint8], at: int, end: int) -> int:
    """The place behind white space that may stay: a space, or one or two LF and an indentation; else `at`.

    The place behind a character that only begins like white space, too. Nearly all bytes that are not PLAIN are of
    these kinds, and seeing them here first doubles the speed of the whole.
    """
    behind = at + 1
    if data[at] > 32:
        kind, width = space_at(data, at, end)
        return at + width if kind == VISIBLE else at
    if data[at] == 10:
        if behind < end and data[behind] == 10:
            behind += 1
        while behind < end and data[behind] == 32:
            behind += 1
    elif data[at] != 32:
        return at
    return behind if behind < end and PLAIN[data[behind]] else at


@kernel(f"UniTuple(int64, 5)({BYTES}, int64, int64)")
def run_at(data: NDArray[np.uint8], begin: int, end: int) -> tuple[int, int, int, int, int]:
    """The white space that begins at `begin`: where it ends, its line ends, and the places behind the last of them
    and behind the spaces in front; last whether it is written in LF, U+0020, tab and U+3000 with all LF in front.
    """
    at = indent = lead = begin
    ends, plain = 0, 1
    while at < end:
        kind, width = space_at(data, at, end)
        if kind == VISIBLE:
            break
        if kind == LINE_END:
            if data[at] != 10 or at - begin != ends:
                plain = 0
            ends += 1
            indent = at + width
        elif kind != WIDE:
            if width > 1:
                plain = 0
            if lead == at:
                lead = at + width
        at += width
    return at, ends, indent, lead, plain


@kernel(f"int64({BYTES}, int64, int64, {OUT}, int64)")
def write_blanks(data: NDArray[np.uint8], at: int, end: int, out: NDArray[np.uint8], place: int) -> int:
    """Write the spaces of data[at:end] as U+0020, tab or U+3000; returns the place behind them."""
    while at < end:
        kind, width = space_at(data, at, end)
        if kind == WIDE:
            out[place], out[place + 1], out[place + 2] = 0xE3, 0x80, 0x80
            place += 3
        else:
            out[place] = 9 if kind == TAB else 32
            place += 1
        at += width
    return place


@kernel(f"int64({BYTES}, int64, int64, {OUT}, int64)")
def write_run(data: NDArray[np.uint8], at: int, end: int, out: NDArray[np.uint8], place: int) -> int:
    """Write white space that stands behind a visible character and before another; returns the place behind it."""
    _, ends, indent, lead, _ = run_at(data, at, end)
    if ends:
        for _ in range(min(ends, 2)):
            out[place] = 10
            place += 1
        return write_blanks(data, indent, end, out, place)
    if lead > at:
        kind, width = space_at(data, at, end)
        out[place] = 9 if kind == TAB and at + width == lead else 32
        place += 1
    return write_blanks(data, lead, end, out, place)


@kernel(f"UniTuple(int64, 2)({BYTES}, int64, int64, {OUT})")
def tidy_text(data: NDArray[np.uint8], start: int, end: int, out: NDArray[np.uint8]) -> tuple[int, int]:
    """Write data[start:end] with tidy white space into `out` at `start`: its new length, and whether it changed.

    A text that is tidy already is not written at all.
    """
    at = copied = place = start
    while at < end:
        if PLAIN[data[at]]:
            at += 1
            continue
        behind = easy_run(data, at, end) if at > start else at
        if behind > at:
            at = behind
            continue
        behind, ends, indent, lead, plain = run_at(data, at, end)
        if behind == at:
            at += 1
            continue
        keeps = plain and ends <= 2 and (lead - at <= 1 or at == start) and (at > start or not ends) and behind < end
        if not keeps:
            size = at - copied
            out[place : place + size] = data[copied:at]
            place += size
            if behind < end and at > start:
                place = write_run(data, at, behind, out, place)
            elif behind < end:
                place = write_blanks(data, indent, behind, out, place)
            copied = behind
        at = behind
    if copied == start:
        return end - start, 0
    size = end - copied
    out[place : place + size] = data[copied:end]
    return place + size - start, 1


@kernel(f"Tuple((int64[::1], int64[::1]))({BYTES}, {OFFSETS}, {OUT})")
def tidy_texts(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], out: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Write the texts with tidy white space into `out` (as long as `data`), each at its old offset.

    Returns the new length of every text in bytes, and 1 where anything changed; the others are not written.
    """
    lengths = np.zeros(len(offsets) - 1, np.int64)
    changed = np.zeros(len(offsets) - 1, np.int64)
    for text in range(len(lengths)):
        lengths[text], changed[text] = tidy_text(data, offsets[text], offsets[text + 1], out)
    return lengths, changed


@kernel(f"int64[::1]({BYTES}, {OFFSETS})")
def count_words(data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Words of each text: runs of visible characters."""
    counts = np.zeros(len(offsets) - 1, np.int64)
    for text in range(len(counts)):
        at, end = offsets[text], offsets[text + 1]
        words, inside = 0, np.uint8(0)
        while at < end:
            visible, width = SEEN[data[at]], 1
            if visible == ASK:
                kind, width = space_at(data, at, end)
                visible = np.uint8(kind == VISIBLE)
            words += visible & ~inside  # without a branch, which every word's end would mispredict
            inside = visible
            at += width
        counts[text] = words
    return counts
