"""Read a quantised fastText classifier and label texts with it, straight from their UTF-8 bytes.

The format and the arithmetic are those of fastText 0.9.2 (github.com/facebookresearch/fastText, MIT licence; Joulin
et al. 2016, "Bag of Tricks for Efficient Text Classification", arXiv 1607.01759, and "FastText.zip", arXiv 1612.03651)
for models like lid.176.ftz: a pruned and quantised input matrix, character n-grams of 2 to 4 characters in 2,000,000
buckets, and a Huffman tree of labels. Two things make it fast: every row is decoded once, and a word seen before adds
its sum of rows in one step. A sum is always made word by word, so that it does not depend on what was seen.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numba
import numpy as np
from numba import types

if TYPE_CHECKING:
    from numpy.typing import NDArray

DIM, BUCKETS, SHORTEST, LONGEST = 16, 2_000_000, 2, 4  # the only model shape that is read
BASIS, PRIME = np.uint32(2166136261), np.uint32(16777619)  # FNV-1a, 32 bits
OPENS, CLOSES = np.uint32(60), np.uint32(62)  # < and > stand around each word
END_OF_LINE = b"</s>"  # the first word of every model
LABEL = b"__label__"
LOG_FLOOR = 1e-5  # added to what a logarithm is taken of
ENDS = -1
# Words up to 32 bytes are remembered: most of a text with spaces. 8,192 of them take 0.8 MB, about a second-level cache.
KEY_PARTS, KNOWN_BITS = 4, 13
KNOWN = 1 << KNOWN_BITS
# Odd numbers, of SplitMix64 and xxHash.
MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93], np.uint64)


class Model(NamedTuple):
    """What the loops need of a model; all arrays read-only."""

    rows: NDArray[np.float32]  # (words + n-grams, DIM): of words by number, then of n-grams by bucket
    words: NDArray[np.int32]  # open hash table: number of the word, -1 = free
    spelling: NDArray[np.uint8]  # bytes of all words and labels, and where each begins
    begins: NDArray[np.int64]
    marked: NDArray[np.uint64]  # a bit for each bucket that has a row, and how many rows stand before each 64 of them
    before: NDArray[np.int32]
    output: NDArray[np.float32]  # (labels - 1, DIM): of the inner nodes of the tree
    left: NDArray[np.int32]  # children of each node, -1 = none; nodes below `labels` are labels
    right: NDArray[np.int32]
    count: int  # of words; labels follow
    longest: int  # bytes of the longest word or label


class Work(NamedTuple):
    """Sums of rows of words met lately, by their bytes, and what the text in hand needs."""

    keys: NDArray[np.uint64]  # (KNOWN, KEY_PARTS)
    sums: NDArray[np.float32]  # (KNOWN, DIM)
    counts: NDArray[np.int32]  # rows in each sum, ENDS for the mark of a line's end
    key: NDArray[np.uint64]  # of the word in hand
    word: NDArray[np.float32]  # sum of a word that is not remembered
    total: NDArray[np.float32]  # sum of the text
    stack: NDArray[np.int32]  # nodes of the tree left to visit, and their scores
    scores: NDArray[np.float32]


def _read_only(dtype: types.Type, dimensions: int = 1) -> types.Array:
    return types.Array(dtype, dimensions, "C", readonly=True)


BYTES, OFFSETS = _read_only(types.uint8), _read_only(types.int64)
SUM = types.float32[::1]
MODEL = types.NamedTuple(
    [
        _read_only(types.float32, 2),
        _read_only(types.int32),
        BYTES,
        OFFSETS,
        _read_only(types.uint64),
        _read_only(types.int32),
        _read_only(types.float32, 2),
        _read_only(types.int32),
        _read_only(types.int32),
        types.int64,
        types.int64,
    ],
    Model,
)
WORK = types.NamedTuple(
    [types.uint64[:, ::1], types.float32[:, ::1], types.int32[::1], types.uint64[::1], SUM, SUM, types.int32[::1], SUM],
    Work,
)


@numba.njit(types.boolean(types.uint8), cache=True, nogil=True)
def is_white(byte: int) -> bool:
    """Whether a byte ends a word: space, tab, LF, VT, FF, CR and NUL."""
    return byte <= 32 and (byte == 32 or 9 <= byte <= 13 or byte == 0)


@numba.njit(types.uint32(types.uint32, types.uint8), cache=True, nogil=True)
def hashed(value: np.uint32, byte: np.uint8) -> np.uint32:
    """One step of FNV-1a over signed bytes, as all released models were trained."""
    return np.uint32((value ^ np.uint32(np.int32(np.int8(byte)))) * PRIME)


@numba.njit(types.uint32(BYTES, types.int64, types.int64), cache=True, nogil=True)
def hash_word(data: NDArray[np.uint8], at: int, end: int) -> np.uint32:
    """FNV-1a of data[at:end]."""
    value = BASIS
    for place in range(at, end):
        value = hashed(value, data[place])
    return value


@numba.njit(types.int32[::1](BYTES, OFFSETS), cache=True, nogil=True)
def word_table(spelling: NDArray[np.uint8], begins: NDArray[np.int64]) -> NDArray[np.int32]:
    """An open hash table of the numbers of different words, -1 = free, at most half full."""
    table = np.full(2 * len(begins), -1, np.int32)
    for number in range(len(begins) - 1):
        slot = np.int64(hash_word(spelling, begins[number], begins[number + 1])) % len(table)
        while table[slot] >= 0:
            slot = (slot + 1) % len(table)
        table[slot] = number
    return table


@numba.njit(types.int64(MODEL, BYTES, types.int64, types.int64), cache=True, nogil=True)
def word_number(model: Model, data: NDArray[np.uint8], at: int, end: int) -> int:
    """The number of the word data[at:end] in the model's dictionary, -1 = not there."""
    slot = np.int64(hash_word(data, at, end)) % len(model.words)
    while model.words[slot] >= 0:
        number = np.int64(model.words[slot])
        begin = model.begins[number]
        if model.begins[number + 1] - begin == end - at:
            same = True
            for place in range(end - at):
                if model.spelling[begin + place] != data[at + place]:
                    same = False
                    break
            if same:
                return number
        slot = (slot + 1) % len(model.words)
    return -1


@numba.njit(types.int64(MODEL, types.uint32), cache=True, nogil=True)
def row_of(model: Model, value: np.uint32) -> int:
    """The row of an n-gram with this hash, -1 = pruned."""
    bucket = np.uint64(value % np.uint32(BUCKETS))
    part = model.marked[bucket >> np.uint64(6)]
    place = bucket & np.uint64(63)
    if not (part >> place) & np.uint64(1):
        return -1
    # Ones below the place, counted in parallel (Warren, Hacker's Delight, 5-1).
    ones = part & ((np.uint64(1) << place) - np.uint64(1))
    ones = ones - ((ones >> np.uint64(1)) & np.uint64(0x5555555555555555))
    ones = (ones & np.uint64(0x3333333333333333)) + ((ones >> np.uint64(2)) & np.uint64(0x3333333333333333))
    ones = (ones + (ones >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    ones = (ones * np.uint64(0x0101010101010101)) >> np.uint64(56)
    return model.count + model.before[bucket >> np.uint64(6)] + np.int64(ones)


@numba.njit([types.void(SUM, SUM), types.void(SUM, _read_only(types.float32))], cache=True, nogil=True)
def add(total: NDArray[np.float32], row: NDArray[np.float32]) -> None:
    """Add one row to a sum."""
    for column in range(DIM):
        total[column] += row[column]


@numba.njit(types.int64(MODEL, BYTES, types.int64, types.int64, SUM), cache=True, nogil=True)
def add_ngrams(model: Model, data: NDArray[np.uint8], at: int, end: int, total: NDArray[np.float32]) -> int:
    """Add the rows of the n-grams of one word to a sum; returns how many there were."""
    count = 0
    start = at - 1  # the opening mark stands before the word
    while start < end:
        place, size, value = start, 0, BASIS
        while size < LONGEST and place <= end:
            if place < at:
                value = hashed(value, OPENS)
                place += 1
            elif place == end:
                value = hashed(value, CLOSES)
                place += 1
            else:
                value = hashed(value, data[place])
                place += 1
                while place < end and data[place] & 0xC0 == 0x80:
                    value = hashed(value, data[place])
                    place += 1
            size += 1
            if size >= SHORTEST:
                row = row_of(model, value)
                if row >= 0:
                    add(total, model.rows[row])
                    count += 1
        start += 1
        while start < end and data[start] & 0xC0 == 0x80:
            start += 1
    return count


@numba.njit(types.boolean(BYTES, types.int64, types.int64), cache=True, nogil=True)
def is_label(data: NDArray[np.uint8], at: int, end: int) -> bool:
    """Whether a word begins as labels do; such words are not read."""
    if end - at < len(LABEL):
        return False
    for place in range(len(LABEL)):
        if data[at + place] != LABEL[place]:
            return False
    return True


@numba.njit(types.int64(MODEL, BYTES, types.int64, types.int64, SUM), cache=True, nogil=True)
def sum_word(model: Model, data: NDArray[np.uint8], at: int, end: int, total: NDArray[np.float32]) -> int:
    """The sum of the rows of one word, and their number; ENDS for the mark of a line's end, which ends the text."""
    total[:] = 0
    number = word_number(model, data, at, end) if end - at <= model.longest else -1
    if number == 0:
        return ENDS
    if is_label(data, at, end):
        return 0
    if number > 0:
        add(total, model.rows[number])
        return 1 + add_ngrams(model, data, at, end, total)
    return add_ngrams(model, data, at, end, total)


@numba.njit(types.int64(MODEL, WORK, BYTES, types.int64, types.int64), cache=True, nogil=True)
def remembered(model: Model, work: Work, data: NDArray[np.uint8], at: int, end: int) -> int:
    """Where the sum of a word of at most 32 bytes stands, made now unless it is there already.

    Words hold no NUL, so their bytes in four numbers tell them apart without their length.
    """
    value = np.uint64(0)
    for part in range(KEY_PARTS):
        chunk = np.uint64(0)
        for place in range(at + 8 * part, min(at + 8 * part + 8, end)):
            chunk = (chunk << np.uint64(8)) | np.uint64(data[place])
        work.key[part] = chunk
        value ^= chunk * MIX[part]
    value ^= value >> np.uint64(29)
    slot = np.int64((value * MIX[1]) >> np.uint64(64 - KNOWN_BITS))
    same = True
    for part in range(KEY_PARTS):
        same &= work.keys[slot, part] == work.key[part]
    if not same:
        work.counts[slot] = sum_word(model, data, at, end, work.sums[slot])
        work.keys[slot] = work.key
    return slot


@numba.njit(types.int64(MODEL, WORK, BYTES, types.int64, types.int64), cache=True, nogil=True)
def sum_text(model: Model, work: Work, data: NDArray[np.uint8], at: int, end: int) -> int:
    """The sum of the rows of one text in work.total, and their number."""
    work.total[:] = model.rows[0]  # of the end of the line, which every text has
    count = 1
    while True:
        while at < end and is_white(data[at]):
            at += 1
        close = at
        while close < end and not is_white(data[close]):
            close += 1
        if close == at:
            return count
        if close - at <= 8 * KEY_PARTS:
            slot = remembered(model, work, data, at, close)
            if work.counts[slot] == ENDS:
                return count
            add(work.total, work.sums[slot])
            count += work.counts[slot]
        else:
            count += sum_word(model, data, at, close, work.word)
            add(work.total, work.word)
        at = close


@numba.njit(types.Tuple((types.int32, types.float32))(MODEL, WORK), cache=True, nogil=True)
def best_label(model: Model, work: Work) -> tuple[int, float]:
    """The most probable label of the hidden vector in work.total, and the logarithm of its probability.

    Walks the tree and leaves branches that are worse than the best label so far.
    """
    labels = (len(model.left) + 1) // 2
    best, best_score = -1, np.float32(-np.inf)
    work.stack[0], work.scores[0] = len(model.left) - 1, 0
    left = 1
    while left:
        left -= 1
        node, score = np.int64(work.stack[left]), work.scores[left]
        if score < best_score:
            continue
        if node < labels:
            best, best_score = node, score
            continue
        dot = np.float32(0)
        for column in range(DIM):
            dot += model.output[node - labels, column] * work.total[column]
        right = np.float32(1 / (1 + np.float32(math.exp(-dot))))
        work.stack[left] = model.right[node]
        work.scores[left] = score + np.float32(math.log(right + LOG_FLOOR))
        work.stack[left + 1] = model.left[node]
        work.scores[left + 1] = score + np.float32(math.log(np.float32(1 - right) + LOG_FLOOR))
        left += 2
    return best, best_score


@numba.njit(types.Tuple((types.int32[::1], SUM))(MODEL, WORK, BYTES, OFFSETS), cache=True, nogil=True)
def label_all(
    model: Model, work: Work, data: NDArray[np.uint8], offsets: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The number of the best label of each text, and the logarithm of its probability."""
    labels, scores = np.empty(len(offsets) - 1, np.int32), np.empty(len(offsets) - 1, np.float32)
    for text in range(len(labels)):
        part = np.float32(1 / sum_text(model, work, data, offsets[text], offsets[text + 1]))
        for column in range(DIM):
            work.total[column] *= part
        labels[text], scores[text] = best_label(model, work)
    return labels, scores


def predict(model: Model, data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> tuple[Any, Any]:
    """The number of the most probable label of each text, and its probability."""
    nodes = len(model.left)
    work = Work(
        np.zeros((KNOWN, KEY_PARTS), np.uint64),
        np.zeros((KNOWN, DIM), np.float32),
        np.zeros(KNOWN, np.int32),
        np.zeros(KEY_PARTS, np.uint64),
        np.zeros(DIM, np.float32),
        np.zeros(DIM, np.float32),
        np.zeros(nodes + 1, np.int32),
        np.zeros(nodes + 1, np.float32),
    )
    labels, scores = label_all(model, work, data, offsets)
    # Probabilities can lie a little above 1, for LOG_FLOOR is added on the way.
    return labels, np.minimum(np.exp(scores.astype(np.float64)), 1.0)
