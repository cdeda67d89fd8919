"""One pass over texts that names those which repairing could change: most texts, and most of the cost, are spared."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from inhouse.core.compiled import kernel
from inhouse.data.kernels.kept import kept
from inhouse.data.kernels.kinds import decode

if TYPE_CHECKING:
    from numpy.typing import NDArray

BYTES, OFFSETS = "Array(uint8, 1, 'C', readonly=True)", "Array(int64, 1, 'C', readonly=True)"
TABLES = "Array(uint8, 1, 'C'), Array(uint8, 1, 'C'), Array(uint64, 2, 'C')"
# What is found in a text: a character that has no place in it, a wrong decoding, letters in parts, full-width ASCII.
STRAY, WRONG, APART, FULL = 1, 2, 4, 8
PLANE = 0x10000
BEYOND_PLANE = re.compile("[\U00010000-\U0010ffff]")
OF_EVERY_SORT = "\U00020000\U0001d7ce\U0001f50e\U000e0001"  # a letter, a digit, a symbol and a control beyond the plane
BEYOND, START = 254, 255  # the classes of all characters above U+FFFF, and of the beginning of a text
# Control and invisible characters, line ends other than \n, noncharacters.
STRAYS = (
    (0x00, 0x08), (0x0B, 0x1F), (0x7F, 0x9F), (0xAD, 0xAD), (0x61C, 0x61C), (0x200B, 0x200F), (0x2028, 0x202E),
    (0x2060, 0x206F), (0xFDD0, 0xFDEF), (0xFEFF, 0xFEFF), (0xFFF9, 0xFFFC), (0xFFFE, 0xFFFF),
)  # fmt: skip
TAGS = (0xE0000, 0xE007F)
WIDTHS = ((0xFF10, 0xFF19), (0xFF21, 0xFF3A), (0xFF41, 0xFF5A))
MAY_BE_APART = ((0x10000, 0x1F000), (0x2F800, 0xE0000))  # above U+FFFF by range: pictures and Han are whole
JAMO = ((0x1161, 0x1175), (0x11A8, 0x11C2))  # vowels and finals that join what stands before them


def tables() -> tuple[Any, Any, Any]:
    """The class of every character up to U+FFFF, what each class is by itself, and what pairs of classes mean.

    Two characters in a row are suspect when the first's row of the last table and the second's have a bit in common:
    one for each alternative of ftfy's pattern of wrong decodings.
    """
    from ftfy.badness import BADNESS_RE

    found = kept(__file__, "damage", BADNESS_RE.pattern, lambda: _tables(BADNESS_RE.pattern))
    return found["classes"], found["alone"], found["pairs"]


def _tables(pattern: str) -> dict[str, NDArray[np.generic]]:
    pairs = np.zeros((2, PLANE + 1), np.uint64)  # the last column is for all characters beyond the plane
    for number, (first, second) in enumerate(_pairs(pattern)):
        for row, members in enumerate((first, second)):
            pairs[row, ... if members is None else [min(ord(c), PLANE) for c in members]] |= np.uint64(1 << number)
    alone = np.zeros(PLANE, np.uint8)
    for flag, ranges in ((STRAY, STRAYS), (FULL, WIDTHS)):
        for low, high in ranges:
            alone[low : high + 1] |= flag
    alone[[code for code in range(PLANE) if _may_be_apart(chr(code))]] |= APART
    for low, high in JAMO:
        alone[low : high + 1] |= APART
    alone[_seconds()] |= APART
    looks = np.stack([*pairs[:, :PLANE], alone.astype(np.uint64)])
    kinds, classes = np.unique(looks, axis=1, return_inverse=True)
    if kinds.shape[1] > BEYOND:
        raise ValueError("more classes than a byte can tell")
    masks = np.zeros((2, 256), np.uint64)
    masks[:, : kinds.shape[1]] = kinds[:2]
    masks[:, BEYOND] = pairs[:, PLANE]
    masks[0, START] = np.bitwise_and.reduce(pairs[0])  # alternatives that look at one character
    flags = np.zeros(256, np.uint8)
    flags[: kinds.shape[1]] = kinds[2]
    return {"classes": classes.ravel().astype(np.uint8), "alone": flags, "pairs": masks}


def _may_be_apart(char: str) -> bool:
    """Whether a text with this character may not be composed, whatever stands around it."""
    return bool(unicodedata.combining(char)) or not unicodedata.is_normalized("NFC", char)


def _seconds() -> list[int]:
    """Characters that composing joins to the one before them."""
    found = set()
    for code in range(0x110000):
        parts = unicodedata.decomposition(chr(code)).split()
        if len(parts) == 2 and not parts[0].startswith("<") and int(parts[1], 16) < PLANE:
            found.add(int(parts[1], 16))
    return sorted(found)


def _pairs(pattern: str) -> Iterator[tuple[frozenset[str] | None, frozenset[str]]]:
    """Two neighbouring characters without which no alternative of the pattern matches; None stands for any.

    Of the neighbours that an alternative names those are taken that are rarest together, ASCII being common.
    """
    plane = "".join(map(chr, (*range(0xD800), *range(0xE000, PLANE))))
    plane += "".join(filter(BEYOND_PLANE.match, pattern)) + OF_EVERY_SORT
    for alternative in _alternatives(pattern):
        members = [
            None if part[-1] == "?" or part == "^" else frozenset(re.findall(part, plane)) for part in alternative
        ]
        together = [(_weight(a) * _weight(b), n) for n, (a, b) in enumerate(pairwise(members)) if a and b]
        if together:
            _, place = min(together)
            yield members[place], members[place + 1]  # type: ignore[misc]
        else:
            yield None, min((found for found in members if found), key=_weight)


def _weight(members: frozenset[str]) -> int:
    return sum(100 if char.isascii() else 1 for char in members)


def _alternatives(pattern: str) -> list[list[str]]:
    """The alternatives of a verbose pattern without groups, each a list of what matches one character."""
    found: list[list[str]] = [[]]
    held, inside, comment = "", False, False
    for char in pattern:
        if comment:
            comment = char != "\n"
        elif inside or held:
            held += char
            inside = inside and char != "]"
            if not inside:
                found[-1].append(held)
                held = ""
        elif char in "[\\":
            held, inside = char, char == "["
        elif char == "|":
            found.append([])
        elif char == "?":
            found[-1][-1] += char
        elif char == "#":
            comment = True
        elif not char.isspace() or char == "\xa0":
            found[-1].append(char)
    return found


@kernel("uint8(int64)")
def beyond(code: int) -> np.uint8:
    """What a character above U+FFFF is by itself."""
    apart = MAY_BE_APART[0][0] <= code < MAY_BE_APART[0][1] or MAY_BE_APART[1][0] <= code < MAY_BE_APART[1][1]
    return np.uint8(APART if apart else STRAY if TAGS[0] <= code <= TAGS[1] else 0)


@kernel(f"uint8[::1]({BYTES}, {OFFSETS}, {TABLES})")
def look(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    classes: NDArray[np.uint8],
    alone: NDArray[np.uint8],
    pairs: NDArray[np.uint64],
) -> NDArray[np.uint8]:
    """What may be in need of repair in each text: STRAY, WRONG, APART and FULL added up."""
    found = np.zeros(len(offsets) - 1, np.uint8)
    plain = np.zeros(256, np.bool_)  # ASCII without a fault; what follows on ASCII and is ASCII too makes no pair
    for code in range(128):
        plain[code] = alone[classes[code]] == 0
    for text in range(len(found)):
        at, end = offsets[text], offsets[text + 1]
        before, seen = np.uint8(START), np.uint8(0)
        while at < end:
            first = at
            code, width = decode(data, at)
            at += width
            kind = classes[code] if code < PLANE else np.uint8(BEYOND)
            seen |= alone[kind] if code < PLANE else beyond(code)
            if pairs[0, before] & pairs[1, kind]:
                seen |= np.uint8(WRONG)
            before = kind
            if width == 1:
                while at < end and plain[data[at]]:
                    at += 1
                if at > first + 1:
                    before = classes[data[at - 1]]
        found[text] = seen
    return found
