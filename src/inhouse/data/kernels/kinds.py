"""What kind of character every code point is, as a table for compiled loops."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

import numpy as np

from inhouse.core.compiled import kernel
from inhouse.data.kernels.kept import table

if TYPE_CHECKING:
    from numpy.typing import NDArray

OTHER, LETTER, DIGIT, PUNCTUATION, SYMBOL, SPACE, WIDE, WIDE_MARK = range(8)
WHITE = frozenset("\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000") | {chr(c) for c in range(0x2000, 0x200B)}
FIRST_LETTERS = {"L": LETTER, "M": LETTER, "P": PUNCTUATION, "S": SYMBOL}
# Scripts written without spaces between words: Han and kana with their marks, and full-width forms.
HAN_KANA = ((0x3041, 0x3097), (0x30A1, 0x30FB), (0x30FC, 0x3100), (0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00))
WIDE_MARKS = ((0x3001, 0x3041), (0x30FB, 0x30FC), (0xFE30, 0xFE50), (0xFF01, 0xFFE7))
SIZE = 0x10000


@table
def kinds() -> NDArray[np.uint8]:
    """The kind of each code point up to U+FFFF.

    LETTER covers combining marks, which belong to their letters. WIDE is a Han character or kana, WIDE_MARK the
    punctuation between these; each of both counts as a word of its own.
    """
    found = np.array([_kind(chr(code)) for code in range(SIZE)], np.uint8)
    found[0x3005:0x3008] = WIDE  # 々〆〇
    return found


def _kind(char: str) -> int:
    if char in WHITE:
        return SPACE
    code = ord(char)
    if any(first <= code < end for first, end in HAN_KANA):
        return WIDE
    category = unicodedata.category(char)
    kind = DIGIT if category == "Nd" else FIRST_LETTERS.get(category[0], OTHER)
    wide = kind in (PUNCTUATION, SYMBOL) and any(first <= code < end for first, end in WIDE_MARKS)
    return WIDE_MARK if wide else kind


@kernel("int64(int64)")
def kind_beyond(code: int) -> int:
    """The kind of a code point above U+FFFF: Han, pictures and other symbols, or letters."""
    if 0x20000 <= code < 0x40000:
        return WIDE
    return SYMBOL if 0x1F000 <= code < 0x20000 else LETTER if code < 0xE0000 else OTHER


@kernel("UniTuple(int64, 2)(Array(uint8, 1, 'C', readonly=True), int64)")
def decode(data: NDArray[np.uint8], at: int) -> tuple[int, int]:
    """The code point at `at`, and its length in bytes. The bytes must be valid UTF-8."""
    first = int(data[at])
    if first < 0x80:
        return first, 1
    second = int(data[at + 1]) & 63
    if first < 0xE0:
        return (first & 31) << 6 | second, 2
    third = int(data[at + 2]) & 63
    if first < 0xF0:
        return (first & 15) << 12 | second << 6 | third, 3
    return (first & 7) << 18 | second << 12 | third << 6 | int(data[at + 3]) & 63, 4
