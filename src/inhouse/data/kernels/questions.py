"""Questions as a split compares them: composed, folded to small letters, words separated by one space."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from inhouse.core.compiled import kernel
from inhouse.data.kernels.damage import APART, MAY_BE_APART, PLANE, tables
from inhouse.data.kernels.kept import table
from inhouse.data.kernels.kinds import decode

if TYPE_CHECKING:
    from numpy.typing import NDArray

BYTES, OFFSETS = "Array(uint8, 1, 'C', readonly=True)", "Array(int64, 1, 'C', readonly=True)"
OUT, FOLDS = "Array(uint8, 1, 'C')", "Array(uint16, 1, 'C')"
HARD = 0  # of a character that does not become one character that is no longer, or may have to be composed
BLANK = 32


@table
def folds() -> NDArray[np.uint16]:
    """What each character up to U+FFFF is folded to: BLANK for white space, HARD where it takes more than a table."""
    classes, alone, _ = tables()
    found = np.zeros(PLANE, np.uint16)
    for code in range(1, PLANE):
        char = chr(code)
        if char.isspace():
            found[code] = BLANK
        elif not 0xD800 <= code < 0xE000 and not alone[classes[code]] & APART:
            folded = char.casefold()
            fits = len(folded) == 1 and len(folded.encode()) <= len(char.encode())
            found[code] = ord(folded) if fits else HARD
    return found


@kernel(f"int64({OUT}, int64, int64)")
def write_character(out: NDArray[np.uint8], place: int, code: int) -> int:
    """Write a character up to U+FFFF as UTF-8; the place behind it."""
    if code < 0x80:
        out[place] = code
        return place + 1
    if code < 0x800:
        out[place], out[place + 1] = 0xC0 | code >> 6, 0x80 | code & 63
        return place + 2
    out[place], out[place + 1], out[place + 2] = 0xE0 | code >> 12, 0x80 | code >> 6 & 63, 0x80 | code & 63
    return place + 3


@kernel(f"int64[::1]({BYTES}, {OFFSETS}, {FOLDS}, {OUT})")
def fold_texts(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], folded: NDArray[np.uint16], out: NDArray[np.uint8]
) -> NDArray[np.int64]:
    """Write the folded texts into `out` (as long as `data`), each at its old offset.

    Returns their lengths, -1 for texts with a hard character.
    """
    lengths = np.zeros(len(offsets) - 1, np.int64)
    for text in range(len(lengths)):
        at, end = offsets[text], offsets[text + 1]
        start = place = at
        while at < end:
            code, width = decode(data, at)
            if code >= PLANE:
                if code < MAY_BE_APART[0][1] or code >= MAY_BE_APART[1][0]:
                    break
                out[place : place + 4] = data[at : at + 4]
                place, at = place + 4, at + 4
                continue
            plain = np.int64(folded[code])
            if plain == HARD:
                break
            at += width
            if plain == BLANK:
                if place > start and out[place - 1] != BLANK:
                    out[place] = BLANK
                    place += 1
            else:
                place = write_character(out, place, plain)  # type: ignore[arg-type]
        if place > start and out[place - 1] == BLANK:
            place -= 1
        lengths[text] = place - start if at >= end else -1
    return lengths
