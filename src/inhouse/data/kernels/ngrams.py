"""Hashes of word n-grams, the few of them that evaluation rows hold, and who else holds them.

A gram is 13 words or 30 Chinese characters, and in proportion where a text mixes them, so that a passage gives the same
grams whatever stands around it. Punctuation, white space and case do not count.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import int64, uint8, uint64, void

from inhouse.core.compiled import kernel
from inhouse.data.kernels.minhash import (
    BYTES,
    F64S,
    I64S,
    NEXT_BITS,
    POINT,
    READ_U32S,
    READ_U64S,
    RULE,
    TEXTS,
    U32S,
    U64S,
    WIDE,
    WIDE_RANGES,
    code_point,
    fold,
    folded_point,
    longest,
    powers,
    tuple_of,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

GRAMS = tuple_of((U64S, I64S))  # of all documents, and where those of each begin
TABLE = tuple_of((READ_U64S, READ_U32S))
HITS = tuple_of((READ_U32S, I64S))
POSTINGS = tuple_of((I64S, U32S, uint8[::1]))
BETWEEN, NOTHING = np.uint32(0), np.uint32(1)  # ends a word; is as if it were not there
# Scripts written without spaces: Thai and Lao, Tibetan and Burmese, Khmer.
SPACELESS_RANGES = ((0x0E00, 0x0EFF), (0x0F00, 0x109F), (0x1780, 0x17FF), *WIDE_RANGES)
MOST_HITS = 4096  # of one row: 16 KiB, more than any question has
MOST_OWNERS = 64
WHOLE = np.uint64(0x5851F42D4C957F2D)  # keeps a whole short text apart from a gram of a long one


@cache
def lettering() -> NDArray[np.uint32]:
    """What each code point below 65536 is in a word: its folded letter, BETWEEN or NOTHING; WIDE stands for itself."""
    table = np.zeros(1 << 16, np.uint32)
    for code in range(1 << 16):
        folded = fold(chr(code))
        if folded is None:
            table[code] = NOTHING if unicodedata.category(chr(code)) == "Cf" else BETWEEN
        elif unicodedata.category(folded)[0] in "LNM":
            table[code] = ord(folded)
    for first, last in SPACELESS_RANGES:
        part = table[first : last + 1]
        part[part > NOTHING] |= WIDE
    return table


@kernel(uint64(uint64))
def mixed(value: Any) -> Any:
    """The number with every bit depending on every other (the finaliser of SplitMix64); never 0."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return max(value ^ (value >> np.uint64(31)), np.uint64(1))


@kernel(int64(BYTES, int64, int64, U32S, U64S))
def tokens(data: Any, start: int, end: int, table: Any, out: Any) -> Any:
    """Write a hash of every word and of every character of a spaceless script to `out` (last bit 1); how many."""
    count, at = 0, start
    word, inside = np.uint64(0), False
    while at < end:
        packed = code_point(data, at)
        at = packed >> NEXT_BITS
        letter = folded_point(packed & POINT, table)
        if letter == NOTHING:
            continue
        if letter != BETWEEN and letter < WIDE:
            word = word * np.uint64(0x9E3779B97F4A7C15) + np.uint64(letter)
            inside = True
            continue
        if inside:
            out[count] = mixed(word) & ~np.uint64(1)
            count += 1
            word, inside = np.uint64(0), False
        if letter >= WIDE:
            out[count] = mixed(np.uint64(letter)) | np.uint64(1)
            count += 1
    if inside:
        out[count] = mixed(word) & ~np.uint64(1)
        count += 1
    return count


@kernel(int64(U64S, int64, U64S, I64S, U64S))
def grams(text: Any, length: int, power: Any, window: Any, out: Any) -> Any:
    """Write a hash of every gram of the tokens to `out`; how many. A text shorter than one is a gram as a whole.

    `window`: words, characters.
    """
    words, characters = window[0], window[1]
    rolling, weight, first, count = np.uint64(0), 0, 0, 0
    for last in range(length):
        rolling = rolling * power[1] + text[last]
        weight += words if text[last] & np.uint64(1) else characters
        oldest = words if text[first] & np.uint64(1) else characters
        while weight - oldest >= words * characters:
            rolling -= text[first] * power[last - first]
            weight -= oldest
            first += 1
            oldest = words if text[first] & np.uint64(1) else characters
        if weight >= words * characters:
            out[count] = mixed(rolling)
            count += 1
    if count == 0 and length > 0:
        out[0] = mixed(rolling ^ WHOLE)
        count = 1
    return count


@kernel(int64(TEXTS, RULE, U64S, I64S))
def write_grams(texts: Any, rule: Any, found: Any, ends: Any) -> Any:
    """Write all grams of each document to `found`, one after the other, and where each ends to `ends`; how many."""
    data, offsets = texts
    table, power, window = rule
    text = np.empty(longest(offsets) // 2 + 2, np.uint64)
    total = 0
    for n in range(len(offsets) - 1):
        length = tokens(data, offsets[n], offsets[n + 1], table, text)
        total += grams(text, length, power, window, found[total:])
        ends[n] = total
    return total


def grams_of(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], window: tuple[int, int]
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The grams of all documents, repeated ones too, and where those of each begin: (documents + 1)."""
    found = np.empty(len(data) // 2 + len(offsets) + 1, np.uint64)  # no token is shorter than a letter and a space
    bounds = np.zeros(len(offsets), np.int64)
    rule = lettering(), powers(), np.array(window, np.int64)
    total = write_grams((data, offsets), rule, found, bounds[1:])
    return found[:total], bounds


@kernel(void(U64S, U64S, U32S))
def fill_table(keys: Any, slots: Any, places: Any) -> None:
    """Write distinct keys to an empty (0) hash table of a power of two of slots, and their numbers beside them."""
    last = np.uint64(len(slots) - 1)
    for n in range(len(keys)):
        at = keys[n] & last
        while slots[at] != 0:
            at = (at + np.uint64(1)) & last
        slots[at] = keys[n]
        places[at] = n


def hash_table(keys: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    """A table that `write_hits` looks keys up in, at most half full."""
    size = 2 << len(keys).bit_length()
    slots, places = np.zeros(size, np.uint64), np.zeros(size, np.uint32)
    fill_table(keys, slots, places)
    return slots, places


@kernel(int64(uint64, READ_U64S, READ_U32S))
def place_of(key: int, slots: Any, places: Any) -> Any:
    """The number of a key in the table, -1 when it is not there."""
    last = np.uint64(len(slots) - 1)
    at = key & last
    while slots[at] != 0:
        if slots[at] == key:
            return np.int64(places[at])
        at = (at + np.uint64(1)) & last
    return np.int64(-1)


@kernel(int64(GRAMS, TABLE, U32S, I64S))
def write_hits(held: Any, table: Any, hits: Any, ends: Any) -> Any:
    """Write the numbers of the grams that the table holds to `hits`, each once per document; how many in all."""
    found, bounds = held
    slots, places = table
    seen = np.zeros(len(slots), np.uint32)
    total = 0
    for n in range(len(bounds) - 1):
        start = total
        for i in range(bounds[n], bounds[n + 1]):
            place = place_of(found[i], slots, places)
            if place >= 0 and seen[place] != n + 1 and total - start < MOST_HITS:
                seen[place] = n + 1
                hits[total] = place
                total += 1
        ends[n] = total
    return total


def hits_of(
    texts: tuple[NDArray[np.uint8], NDArray[np.int64]],
    window: tuple[int, int],
    table: tuple[NDArray[np.uint64], NDArray[np.uint32]],
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Which grams of the table each document holds (at most MOST_HITS), and where those of each begin."""
    found, begins = grams_of(*texts, window)
    hits, bounds = np.empty(len(found), np.uint32), np.zeros(len(begins), np.int64)
    total = write_hits((found, begins), table, hits, bounds[1:])
    return hits[:total], bounds


@kernel(void(HITS, POSTINGS, I64S, F64S, I64S))
def write_overlaps(held: Any, postings: Any, sizes: Any, rule: Any, best: Any) -> None:
    """Write to `best` the evaluation row that each document overlaps most among those it leaks, -1 for none.

    `postings`: where the owners of each gram begin, the owners, and whether the gram is common: 0 = it counts, 1 = for
    `rule[1]` alone, 2 = never. `sizes`: grams of each owner. `rule`: share of a row's grams that suffices when one of
    them is not common; share that suffices in any case.
    """
    hits, bounds = held
    starts, owners, common = postings
    total, rare = np.zeros(len(sizes), np.int64), np.zeros(len(sizes), np.int64)
    touched = np.empty(len(sizes), np.int64)
    for n in range(len(bounds) - 1):
        count = 0
        for i in range(bounds[n], bounds[n + 1]):
            gram = hits[i]
            if common[gram] == 2:
                continue
            for place in range(starts[gram], starts[gram + 1]):
                row = owners[place]
                if total[row] == 0:
                    touched[count] = row
                    count += 1
                total[row] += 1
                rare[row] += common[gram] == 0
        best[n] = -1
        highest = 0.0
        for i in range(count):
            row = touched[i]
            share = total[row] / sizes[row]
            leaks = share >= rule[1] or (rare[row] > 0 and rare[row] >= rule[0] * sizes[row])
            if leaks and (share > highest or (share == highest and row < best[n])):
                best[n], highest = row, share
            total[row], rare[row] = 0, 0
