"""Figures of the Gopher rules, counted on UTF-8 bytes: what a document is made of, and how much of it repeats.

Rae et al. 2021, "Scaling Language Models: Methods, Analysis & Insights from Training Gopher" (arXiv 2112.11446),
appendix A.1.1 and table A1. A word is a run of characters between white space; a Han character or kana, and a mark of
punctuation between these, is a word of its own, for nothing separates it from the next.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from inhouse.core.compiled import kernel
from inhouse.data.kernels.kinds import (
    DIGIT,
    LETTER,
    PUNCTUATION,
    SIZE,
    SPACE,
    SYMBOL,
    WIDE,
    WIDE_MARK,
    decode,
    kind_beyond,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Key = np.int64 | int

BYTES = "Array(uint8, 1, 'C', readonly=True)"
OFFSETS = "Array(int64, 1, 'C', readonly=True)"
WORK = "int64[:, ::1]"
SEED, PRIME = np.int64(0x27D4EB2F165667C5), np.int64(0x100000001B3)  # of hashes, which wrap around 64 bits
LONGEST_STOP_WORD = 8  # characters
ASCII_LETTER = np.array([65 <= byte <= 90 or 97 <= byte <= 122 for byte in range(256)])
# Longer documents are judged for repetition by their beginning, which bounds the memory that this takes.
MOST_BYTES = 1 << 20

# Columns of `made_of`.
(
    CHARS,
    VISIBLE,
    LETTERS,
    WIDE_LETTERS,
    LATIN,
    CYRILLIC,
    DIGITS,
    MARKS,
    WORDS,
    WORD_CHARS,
    LETTER_WORDS,
    HASHES,
    ELLIPSES,
    LINES,
    BULLET_LINES,
    ELLIPSIS_LINES,
    STOP_WORDS,
    FIGURES,
) = range(18)
# Columns of `repeats`: lines and paragraphs that stood before and their characters; the characters in the most
# frequent 2, 3 and 4 words, and in 5 to 10 words that stood before.
REP_CHARS, REP_WIDE, REP_LETTERS, WORD_COUNT, LINE_COUNT, LINE_TWICE, LINE_CHARS = range(7)
PART_COUNT, PART_TWICE, PART_CHARS, TOP_2, AGAIN_5, REPEATS = 7, 8, 9, 10, 13, 19
# Rows of the workspace of `repeats`, by word, line or paragraph.
PREFIX, SIZES, RUNS, PLACES, LINE_HASH, LINE_SIZE, PART_HASH, PART_SIZE, WORK_ROWS = range(9)


@kernel("boolean(int64)")
def is_bullet(code: int) -> bool:
    """Whether a line that begins with this character is an item of a list."""
    if code < 0x2013:
        return code == 0x2D or code == 0x2A or code == 0xB7
    return (
        code == 0x2013
        or code == 0x2022
        or code == 0x2023
        or 0x25A0 <= code <= 0x25AB
        or code == 0x25B6
        or code == 0x25C0
        or code == 0x25CB
        or code == 0x25CF
        or code == 0x25E6
    )


@kernel("int64(int64, int64[:, ::1])")
def place_of(key: Key, table: NDArray[np.int64]) -> int:
    """The place of a key in an open hash table (column 0: keys, 0 = free), or the free place where it belongs."""
    mask = table.shape[0] - 1
    place = (key ^ (key >> 29)) & mask
    while table[place, 0] != 0 and table[place, 0] != key:
        place = (place + 1) & mask
    return int(place)


@cache
def stop_table(lists: tuple[tuple[str, ...], ...]) -> NDArray[np.int64]:
    """Words of several lists as a hash table: column 0 their keys, 1 + l the bit of the word in list l."""
    table = np.zeros((1024, 1 + len(lists)), np.int64)
    for number, words in enumerate(lists):
        assert len(words) < 63 and all(len(word) <= LONGEST_STOP_WORD for word in words)
        for bit, word in enumerate(words):
            key = int(SEED)
            for char in word:
                key = ((key ^ ord(char)) * int(PRIME)) & (1 << 64) - 1
            signed = np.int64(key - (1 << 64) if key >> 63 else key)
            place = place_of(signed, table)
            table[place, 0] = signed
            table[place, 1 + number] |= 1 << bit
    return table


@kernel("int64(int64[::1])")
def most_bits(masks: NDArray[np.int64]) -> int:
    """The largest number of bits in one of the masks."""
    most = 0
    for mask in masks:
        bits = 0
        while mask:
            mask &= mask - 1
            bits += 1
        most = max(most, bits)
    return most


@kernel("void(int64, int64, int64[:, ::1], int64[::1])")
def note_stop_word(key: Key, size: int, stops: NDArray[np.int64], seen: NDArray[np.int64]) -> None:
    """Note a word that stands in one of the lists of stop words."""
    if size > LONGEST_STOP_WORD:
        return
    place = place_of(key, stops)
    if stops[place, 0] == key:
        for number in range(len(seen)):
            seen[number] |= stops[place, 1 + number]


@kernel("void(int64, int64, int64[::1])")
def count_character(kind: int, code: int, row: NDArray[np.int64]) -> None:
    """Count a visible character by its kind."""
    row[VISIBLE] += 1
    if kind == LETTER:
        row[LETTERS] += 1
        if code < 0x250 or 0x1E00 <= code < 0x1F00:
            row[LATIN] += 1
        elif 0x400 <= code < 0x530:
            row[CYRILLIC] += 1
    elif kind == WIDE:
        row[LETTERS] += 1
        row[WIDE_LETTERS] += 1
    elif kind == DIGIT:
        row[DIGITS] += 1
    elif kind in (PUNCTUATION, SYMBOL, WIDE_MARK):
        row[MARKS] += 1
        row[HASHES] += code == 0x23


@kernel(f"UniTuple(int64, 2)({BYTES}, int64, int64, int64[::1])")
def read_letters(data: NDArray[np.uint8], at: int, key: Key, row: NDArray[np.int64]) -> tuple[int, Key]:
    """Count the ASCII letters from `at` on: the place behind them, and the key of the word so far."""
    start = at
    while at < len(data) and ASCII_LETTER[data[at]]:
        key = (key ^ (data[at] | 32)) * PRIME
        at += 1
    for figure in (CHARS, VISIBLE, LETTERS, LATIN):
        row[figure] += at - start
    return at, key


@kernel("void(int64, boolean, int64[::1])")
def count_word(size: int, lettered: bool, row: NDArray[np.int64]) -> None:
    """Count a word of so many characters."""
    row[WORDS] += 1
    row[WORD_CHARS] += size
    row[LETTER_WORDS] += lettered


@kernel("UniTuple(int64, 2)(int64, int64, int64, int64[::1])")
def count_in_line(code: int, dots: int, last: int, row: NDArray[np.int64]) -> tuple[int, int]:
    """Count bullets and ellipses; returns the full stops in a row (-1: behind '…') and what the line ends with now."""
    row[BULLET_LINES] += last == 0 and is_bullet(code)
    if code == 0x2E:
        dots = max(dots, 0) + 1
        row[ELLIPSES] += dots % 3 == 0
        return dots, -1 if dots >= 3 else code
    if code == 0x2026:
        row[ELLIPSES] += dots != -1
        return -1, -1
    return 0, code


@kernel("int64(int64, int64, int64[::1])")
def end_line_of(code: int, last: int, row: NDArray[np.int64]) -> int:
    """Count the line that a line end closes; returns what the line ends with then."""
    if code != 10:
        return last
    row[LINES] += last != 0
    row[ELLIPSIS_LINES] += last == -1
    return 0


@kernel(f"void({BYTES}, {BYTES}, int64[:, ::1], int64[::1], int64[::1])")
def describe(
    data: NDArray[np.uint8],
    kinds: NDArray[np.uint8],
    stops: NDArray[np.int64],
    seen: NDArray[np.int64],
    row: NDArray[np.int64],
) -> None:
    """Count one document into `row`; `seen` gathers the stop words of each list."""
    at, end = 0, len(data)
    key: Key = SEED  # of the word that is being read
    size, lettered = 0, False
    dots = last = 0  # see count_in_line; last is 0 at the beginning of a line and -1 behind an ellipsis
    while at <= end:
        if at < end and ASCII_LETTER[data[at]]:
            start = at
            at, key = read_letters(data, at, key, row)
            size, lettered, dots, last = size + at - start, True, 0, 65
            continue
        code, width, kind = 10, 1, SPACE  # as if a line end followed the text
        if at < end:
            code, width = decode(data, at)
            kind = int(kinds[code]) if code < SIZE else kind_beyond(code)
            row[CHARS] += 1
        at += width
        if (kind == SPACE or kind >= WIDE) and size:
            count_word(size, lettered, row)
            note_stop_word(key, size, stops, seen)
            key, size, lettered = SEED, 0, False
        if kind == SPACE:
            dots, last = 0, end_line_of(code, last, row)
            continue
        count_character(kind, code, row)
        dots, last = count_in_line(code, dots, last, row)
        if kind == WIDE:
            note_stop_word((SEED ^ code) * PRIME, 1, stops, seen)
        elif kind != WIDE_MARK:
            key, size, lettered = (key ^ code) * PRIME, size + 1, lettered or kind == LETTER


@kernel(f"int64[:, ::1]({BYTES}, {OFFSETS}, {BYTES}, int64[:, ::1])")
def made_of(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], kinds: NDArray[np.uint8], stops: NDArray[np.int64]
) -> NDArray[np.int64]:
    """What each document is made of: one row of counts, columns CHARS to STOP_WORDS."""
    figures = np.zeros((len(offsets) - 1, FIGURES), np.int64)
    seen = np.zeros(stops.shape[1] - 1, np.int64)
    for doc in range(len(figures)):
        seen[:] = 0
        describe(data[offsets[doc] : offsets[doc + 1]], kinds, stops, seen, figures[doc])
        figures[doc, STOP_WORDS] = most_bits(seen)
    return figures


@kernel("int64(int64)")
def never_zero(key: Key) -> Key:
    """A well mixed key of a hash table, where 0 means free."""
    key = (key ^ (key >> 32)) * PRIME
    key ^= key >> 29
    return key if key != 0 else np.int64(1)


@kernel(f"{WORK}({WORK}, int64)")
def cleared(table: NDArray[np.int64], keys: int) -> NDArray[np.int64]:
    """The beginning of the table, emptied and large enough for so many keys."""
    size = 4
    while size < 2 * keys:
        size *= 2
    part = table[:size]
    part[:] = 0
    return part


@kernel(f"void({WORK}, int64, int64, int64, int64[::1])")
def add_word(work: NDArray[np.int64], key: Key, size: int, column: int, row: NDArray[np.int64]) -> None:
    """Append a word to the hashes and sizes of the text's beginnings, and with its column to the present line."""
    number, line = row[WORD_COUNT], row[LINE_COUNT]
    work[PREFIX, number + 1] = work[PREFIX, number] * PRIME + key
    work[SIZES, number + 1] = work[SIZES, number] + size
    work[LINE_HASH, line] = work[LINE_HASH, line] * PRIME + (key ^ (column * SEED))
    row[WORD_COUNT] = number + 1


@kernel(f"void({WORK}, int64, boolean, int64[::1])")
def end_line(work: NDArray[np.int64], size: int, blank: bool, row: NDArray[np.int64]) -> None:
    """Close the present line of `size` characters; a blank one closes the present paragraph instead."""
    line, part = row[LINE_COUNT], row[PART_COUNT]
    if not blank:
        work[LINE_SIZE, line] = size
        work[PART_HASH, part] = work[PART_HASH, part] * PRIME + never_zero(work[LINE_HASH, line])
        work[PART_SIZE, part] += size + (1 if work[PART_SIZE, part] > 0 else 0)
        row[LINE_COUNT] = line + 1
        work[LINE_HASH, line + 1] = 0
    elif work[PART_SIZE, part] > 0:
        row[PART_COUNT] = part + 1
        work[PART_HASH, part + 1] = work[PART_SIZE, part + 1] = 0


@kernel(f"void({BYTES}, {BYTES}, {WORK}, int64[::1])")
def read_words(
    data: NDArray[np.uint8], kinds: NDArray[np.uint8], work: NDArray[np.int64], row: NDArray[np.int64]
) -> None:
    """Split a document into words, lines and paragraphs; the counts go to `row`, hashes and sizes to `work`."""
    work[:, 0] = 0
    at, end = 0, len(data)
    key, size = SEED, 0
    line_start = words_before = 0
    while at <= end:
        code, width, kind = 10, 1, SPACE  # as if a line end followed the text
        if at < end:
            code, width = decode(data, at)
            kind = int(kinds[code]) if code < SIZE else kind_beyond(code)
        at += width
        row[REP_LETTERS] += kind == LETTER
        row[REP_WIDE] += kind == WIDE
        if kind != SPACE and kind < WIDE:
            key = (key ^ code) * PRIME
            size += 1
        else:
            column = row[REP_CHARS] - line_start
            if size:
                add_word(work, key, size, column - size, row)
            key, size = SEED, 0
            if kind >= WIDE:
                add_word(work, (SEED ^ code) * PRIME, 1, column, row)
            elif code == 10:
                end_line(work, row[REP_CHARS] - line_start, row[WORD_COUNT] == words_before, row)
                line_start, words_before = row[REP_CHARS] + 1, row[WORD_COUNT]
        row[REP_CHARS] += 1
    row[REP_CHARS] -= 1
    end_line(work, 0, True, row)


@kernel(f"UniTuple(int64, 2)({WORK}, int64, int64, {WORK})")
def twice(work: NDArray[np.int64], kind: int, count: int, table: NDArray[np.int64]) -> tuple[int, int]:
    """How many of the first `count` lines or paragraphs stood before, and their characters."""
    found = chars = 0
    table = cleared(table, count)
    for item in range(count):
        key = never_zero(work[kind, item])
        place = place_of(key, table)
        if table[place, 0] == 0:
            table[place, 0] = key
        else:
            found += 1
            chars += work[kind + 1, item]
    return found, chars


@kernel(f"int64({WORK}, int64, int64, int64)")
def gram_key(work: NDArray[np.int64], first: int, length: int, power: Key) -> Key:
    """The key of `length` words from `first` on; `power` is PRIME to the power of `length`."""
    return never_zero(work[PREFIX, first + length] - work[PREFIX, first] * power)


@kernel("int64(int64)")
def power_of(length: int) -> Key:
    """PRIME to the power of `length`, modulo 2 to the 64."""
    power = np.int64(1)
    for _ in range(length):
        power *= PRIME
    return power


@kernel(f"UniTuple(int64, 2)({WORK}, int64, int64, int64, {WORK})")
def top(work: NDArray[np.int64], count: int, length: int, base: int, table: NDArray[np.int64]) -> tuple[int, int]:
    """Characters in the most frequent `length` words (the first of them if several are), and how often they occur; 0
    of both when none occurs twice.

    Only places where row RUNS says that enough runs of `base` words are repeated can matter (0: all of them). Leaves
    in RUNS how many places from here on begin `length` words that are repeated.
    """
    least = length - base + 1 if base else 0
    places = max(count - length + 1, 0)
    table = cleared(table, int(np.sum(work[RUNS, :places] >= least)))
    power = power_of(length)
    most = 1
    best = -1
    for first in range(places):
        work[PLACES, first] = -1
        if work[RUNS, first] < least:
            continue
        key = gram_key(work, first, length, power)
        place = place_of(key, table)
        if table[place, 0] == 0:
            table[place, 0], table[place, 2] = key, first
        table[place, 1] += 1
        work[PLACES, first] = place
        times, begin = table[place, 1], table[place, 2]
        if times > most or (times == most and 0 <= begin < best):
            most, best = times, begin
    run = 0
    work[RUNS, places:count] = 0
    for first in range(places - 1, -1, -1):
        place = work[PLACES, first]
        run = run + 1 if place >= 0 and table[place, 1] > 1 else 0
        work[RUNS, first] = run
    if best < 0:
        return 0, 0
    return most * (work[SIZES, best + length] - work[SIZES, best]), most


@kernel(f"int64({WORK}, int64, int64, int64, {WORK})")
def again(work: NDArray[np.int64], count: int, length: int, base: int, table: NDArray[np.int64]) -> int:
    """Characters in `length` words that stood before, each counted once: a repetition is stepped over."""
    least = length - base + 1
    places = max(count - length + 1, 0)
    table = cleared(table, int(np.sum(work[RUNS, :places] >= least)))
    power = power_of(length)
    chars = first = 0
    while first < places:
        step = 1
        if work[RUNS, first] >= least:
            key = gram_key(work, first, length, power)
            place = place_of(key, table)
            if table[place, 0] == 0:
                table[place, 0] = key
            else:
                chars += work[SIZES, first + length] - work[SIZES, first]
                step = length
        first += step
    return chars


@kernel("boolean(int64, int64)")
def is_wide(wide: int, letters: int) -> bool:
    """Whether a text is written without spaces between words: at least 3 of 10 letters are Han or kana."""
    return wide * 10 >= (wide + letters) * 3 and wide > 0


@kernel(f"void({WORK}, int64, {WORK}, int64[::1])")
def judge(work: NDArray[np.int64], wide_unit: int, table: NDArray[np.int64], row: NDArray[np.int64]) -> None:
    """Fill `row` with what repeats. In text without spaces `wide_unit` words stand for a word of the rules."""
    wide = is_wide(row[REP_WIDE], row[REP_LETTERS])
    unit = wide_unit if wide else 1
    count = row[WORD_COUNT]
    row[LINE_TWICE], row[LINE_CHARS] = twice(work, LINE_HASH, row[LINE_COUNT], table)
    row[PART_TWICE], row[PART_CHARS] = twice(work, PART_HASH, row[PART_COUNT], table)
    work[RUNS, :count] = 0
    base = 0
    for column, words in enumerate((2, 3, 4)):
        chars, times = top(work, count, words * unit, base, table)
        row[TOP_2 + column] = chars + (0 if wide else times * (words - 1))  # with the spaces between the words
        base = words * unit
    for column, words in enumerate((5, 6, 7, 8, 9, 10)):
        row[AGAIN_5 + column] = again(work, count, words * unit, base, table)


@kernel(f"{WORK}({BYTES}, {OFFSETS}, {BYTES}, int64)")
def repeats(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], kinds: NDArray[np.uint8], wide_unit: int
) -> NDArray[np.int64]:
    """What repeats in each document: one row of counts, columns REP_CHARS to AGAIN_5 + 5.

    `wide_unit` is how many characters stand for a word of the rules in a text of Han characters or kana.
    """
    figures = np.zeros((len(offsets) - 1, REPEATS), np.int64)
    longest = 0
    for doc in range(len(figures)):
        longest = max(longest, min(offsets[doc + 1] - offsets[doc], MOST_BYTES))
    work = np.zeros((WORK_ROWS, longest // 2 + 4), np.int64)
    size = 4
    while size < longest + 4:
        size *= 2
    table = np.zeros((size, 3), np.int64)
    for doc in range(len(figures)):
        end = min(offsets[doc + 1], offsets[doc] + MOST_BYTES)
        while end < offsets[doc + 1] and data[end] & 0xC0 == 0x80:
            end -= 1
        row = figures[doc]
        read_words(data[offsets[doc] : end], kinds, work, row)
        judge(work, wide_unit, table, row)
    return figures
