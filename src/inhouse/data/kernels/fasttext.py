"""Label texts with a quantised fastText classifier, straight from their UTF-8 bytes.

The arithmetic is that of fastText 0.9.2 (github.com/facebookresearch/fastText, MIT licence; Joulin et al. 2016, "Bag
of Tricks for Efficient Text Classification", arXiv 1607.01759, and "FastText.zip", arXiv 1612.03651) for models like
lid.176.ftz: character n-grams of 2 to 4 characters in 2,000,000 buckets of which few have a row, and a Huffman tree
of labels. Two things make it fast: every row is decoded once, and a word that comes again adds its sum of rows in one
step. Rows are always added up by word first, so that a result does not depend on what else is in the batch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from inhouse.core.compiled import kernel

if TYPE_CHECKING:
    from numpy.typing import NDArray

DIM, BUCKETS, SHORTEST, LONGEST = 16, 2_000_000, 2, 4  # the only shape of a model that is read
BASIS, PRIME = np.uint32(2166136261), np.uint32(16777619)  # FNV-1a, 32 bits
OPENS, CLOSES = np.uint8(60), np.uint8(62)  # < and > stand around each word
LABEL = np.frombuffer(b"__label__", np.uint8)
BLOCK = 48  # buckets that share a number of 64 bits
LOG_FLOOR = 1e-5  # added to what a logarithm is taken of
# Words are cut in portions; their sums are remembered until there are so many, which take 3 MB.
PORTION, KNOWN, SLOTS = 4096, 1 << 15, 1 << 16
BEGIN, END, HASH, TEXT = range(4)  # columns of words
ROWS, ROW = 2, 3  # columns of known words besides BEGIN and END: how many rows are in the sum, the row of the word
NO_ROW, LABELS, LINE_END = -1, -2, -3  # instead of a row: for other words, for labels, for </s>, which ends a text
COUNT, ENDED = range(2)  # columns of what is known of texts: rows in the sum, and whether </s> was met

READ = "Array({}, {}, 'C', readonly=True)"
BYTES, OFFSETS, KEPT = READ.format("uint8", 1), READ.format("int64", 1), READ.format("uint64", 1)
FLOATS, TABLE = READ.format("float32", 2), READ.format("int32", 2)
SUMS, WORDS = "float32[:, ::1]", "int64[:, ::1]"


class Model(NamedTuple):
    """What the loops need of a model; all arrays read-only."""

    rows: NDArray[np.float32]  # (n-grams + words + 1, DIM): of n-grams by bucket, of words, zeros
    kept: NDArray[np.uint64]  # a bit for each of BLOCK buckets that has a row; above, how many n-grams stand before
    words: NDArray[
        np.int32
    ]  # (slots, 3): open hash table: row or LINE_END, NO_ROW = free; begin and length in `spelling`
    spelling: NDArray[np.uint8]
    line_end: NDArray[np.float32]  # (DIM,): of </s>, which every text has once
    output: NDArray[np.float32]  # (labels, DIM): of the inner nodes of the tree
    children: NDArray[np.int32]  # (2, nodes): left and right, -1 = none; the first nodes are the labels, the last is
    # the root


@kernel("boolean(uint8)")
def is_white(byte: int) -> bool:
    """Whether a byte ends a word: space, tab, LF, VT, FF, CR and NUL."""
    return byte <= 32 and (byte == 32 or 9 <= byte <= 13 or byte == 0)


@kernel("uint32(uint32, uint8)")
def hashed(value: np.uint32, byte: np.uint8) -> np.uint32:
    """One step of FNV-1a over signed bytes, as all released models were trained."""
    signed = np.uint32(byte) | np.uint32(0xFFFFFF00) if byte & 0x80 else np.uint32(byte)
    return np.uint32((np.uint64(value ^ signed) * np.uint64(PRIME)) & np.uint64(0xFFFFFFFF))


@kernel(f"int32[:, ::1]({BYTES}, {OFFSETS}, int64)")
def word_table(spelling: NDArray[np.uint8], begins: NDArray[np.int64], first: int) -> NDArray[np.int32]:
    """The hash table of Model.words: the first word is </s>, rows begin with `first`; at most half full."""
    size = 1
    while size < 2 * len(begins):
        size *= 2
    table = np.full((size, 3), NO_ROW, np.int32)
    for word in range(len(begins) - 1):
        value = BASIS
        for place in range(begins[word], begins[word + 1]):
            value = hashed(value, spelling[place])
        slot = np.int64(value) & (size - 1)
        while table[slot, 0] != NO_ROW:
            slot = (slot + 1) & (size - 1)
        table[slot, 0] = first + word if word else LINE_END
        table[slot, 1], table[slot, 2] = begins[word], begins[word + 1] - begins[word]
    return table


@kernel(f"UniTuple(int64, 3)({BYTES}, {OFFSETS}, int64, int64, {WORDS})")
def cut_words(
    data: NDArray[np.uint8], offsets: NDArray[np.int64], text: int, at: int, words: NDArray[np.int64]
) -> tuple[int, int, int]:
    """Fill `words` (BEGIN, END, HASH, TEXT) from `at` on, a place in `text`; returns how many, and where it stopped."""
    count = 0
    while text < len(offsets) - 1:
        end = offsets[text + 1]
        while at < end:
            if is_white(data[at]):
                at += 1
                continue
            if count == len(words):
                return count, text, at
            words[count, BEGIN], words[count, TEXT] = at, text
            value = BASIS
            while at < end and not is_white(data[at]):
                value = hashed(value, data[at])
                at += 1
            words[count, END], words[count, HASH] = at, value
            count += 1
        text += 1
    return count, text, at


@kernel(f"int64({BYTES}, {WORDS}, int64, {WORDS}, int32[::1])")
def find_again(
    data: NDArray[np.uint8],
    words: NDArray[np.int64],
    count: int,
    known: NDArray[np.int64],
    table: NDArray[np.int32],
) -> int:
    """Write to HASH of each word its place among the known words, new ones behind `count`; returns their new count.

    `table` is an open hash table of places, -1 = free; new words keep their hash in ROWS.
    """
    mask = len(table) - 1
    for word in range(len(words)):
        begin, value = words[word, BEGIN], words[word, HASH]
        length = words[word, END] - begin
        slot = (value ^ (value >> 15)) & mask
        while table[slot] >= 0:
            other = known[table[slot], BEGIN]
            if known[table[slot], END] - other == length:
                same = 0
                while same < length and data[begin + same] == data[other + same]:
                    same += 1
                if same == length:
                    break
            slot = (slot + 1) & mask
        if table[slot] < 0:
            table[slot] = count
            known[count, BEGIN], known[count, END], known[count, ROWS] = begin, words[word, END], value
            count += 1
        words[word, HASH] = table[slot]
    return count


@kernel(f"void({BYTES}, {WORDS}, {TABLE}, {BYTES})")
def find_rows(
    data: NDArray[np.uint8], known: NDArray[np.int64], words: NDArray[np.int32], spelling: NDArray[np.uint8]
) -> None:
    """Write ROW of each known word, which has its hash in ROWS."""
    mask = len(words) - 1
    for word in range(len(known)):
        begin, length = known[word, BEGIN], known[word, END] - known[word, BEGIN]
        slot = known[word, ROWS] & mask
        while words[slot, 0] != NO_ROW:
            if words[slot, 2] == length:
                same = 0
                while same < length and data[begin + same] == spelling[words[slot, 1] + same]:
                    same += 1
                if same == length:
                    break
            slot = (slot + 1) & mask
        known[word, ROW] = words[slot, 0]
        same = 0
        while same < length and same < len(LABEL) and data[begin + same] == LABEL[same]:
            same += 1
        if same == len(LABEL):
            known[word, ROW] = LABELS


@kernel(f"int64({KEPT}, uint32, int64)")
def row_of(kept: NDArray[np.uint64], value: np.uint32, none: int) -> int:
    """The row of an n-gram with this hash, `none` when it has none; without a branch, which would be guessed wrong
    too often.
    """
    bucket = np.uint64(value) % np.uint64(BUCKETS)
    block = bucket // np.uint64(BLOCK)
    entry = kept[block]
    place = bucket - block * np.uint64(BLOCK)
    # Ones below the place, counted in parallel (Warren, Hacker's Delight, 5-1).
    ones = entry & ((np.uint64(1) << place) - np.uint64(1))
    ones = ones - ((ones >> np.uint64(1)) & np.uint64(0x5555555555555555))
    ones = (ones & np.uint64(0x3333333333333333)) + ((ones >> np.uint64(2)) & np.uint64(0x3333333333333333))
    ones = (ones + (ones >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    ones = (ones * np.uint64(0x0101010101010101)) >> np.uint64(56)
    row = np.int64(entry >> np.uint64(BLOCK)) + np.int64(ones)
    return int(row if (entry >> place) & np.uint64(1) else none)


@kernel(f"int64({FLOATS}, {KEPT}, {BYTES}, UniTuple(int64, 3), {SUMS})")
def add_ngrams(
    rows: NDArray[np.float32],
    kept: NDArray[np.uint64],
    data: NDArray[np.uint8],
    word: tuple[int, int, int],
    sums: NDArray[np.float32],
) -> int:
    """Add the rows of the n-grams of a word (begin, end, place in sums) to its sum; returns how many there were.

    Follows the hashes of the last one to four characters from character to character.
    """
    place, end, here = word
    none = len(rows) - 1
    one, two, three, four = hashed(BASIS, OPENS), BASIS, BASIS, BASIS
    count, chars = 0, 1
    while place <= end:
        byte = data[place] if place < end else CLOSES
        four, three, two, one = hashed(three, byte), hashed(two, byte), hashed(one, byte), hashed(BASIS, byte)
        place += 1
        while place < end and data[place] & 0xC0 == 0x80:
            byte = data[place]
            four, three, two, one = hashed(four, byte), hashed(three, byte), hashed(two, byte), hashed(one, byte)
            place += 1
        chars += 1
        of_two = row_of(kept, two, none)
        of_three = row_of(kept, three, none) if chars > 2 else none
        of_four = row_of(kept, four, none) if chars > 3 else none
        # Up to a width that the compiler does not know: known, it unrolls the loop and forgets to use wide registers.
        for column in range(sums.shape[1]):
            sums[here, column] += rows[of_two, column] + rows[of_three, column] + rows[of_four, column]
        count += (of_two < none) + (of_three < none) + (of_four < none)
    return count


@kernel(f"void({FLOATS}, {KEPT}, {BYTES}, {WORDS}, {SUMS})")
def sum_words(
    rows: NDArray[np.float32],
    kept: NDArray[np.uint64],
    data: NDArray[np.uint8],
    known: NDArray[np.int64],
    sums: NDArray[np.float32],
) -> None:
    """The sum of the rows of each known word, and their number in ROWS."""
    for word in range(len(known)):
        row = known[word, ROW]
        known[word, ROWS] = row >= 0
        for column in range(sums.shape[1]):
            sums[word, column] = rows[row if row >= 0 else len(rows) - 1, column]
        if row >= NO_ROW:
            span = (known[word, BEGIN], known[word, END], word)
            known[word, ROWS] += add_ngrams(rows, kept, data, span, sums)


@kernel(f"void({WORDS}, {WORDS}, {SUMS}, {WORDS}, {SUMS})")
def sum_texts(
    words: NDArray[np.int64],
    known: NDArray[np.int64],
    sums: NDArray[np.float32],
    facts: NDArray[np.int64],
    totals: NDArray[np.float32],
) -> None:
    """Add the sums of words to those of their texts, up to a word </s> in the text."""
    for word in range(len(words)):
        text, place = words[word, TEXT], words[word, HASH]
        if facts[text, ENDED] or known[place, ROW] == LINE_END:
            facts[text, ENDED] = 1
            continue
        for column in range(totals.shape[1]):
            totals[text, column] += sums[place, column]
        facts[text, COUNT] += known[place, ROWS]


@kernel(f"UniTuple(float64, 2)({SUMS}, int64, {FLOATS}, {TABLE}, {SUMS})")
def best_label(
    hidden: NDArray[np.float32],
    text: int,
    output: NDArray[np.float32],
    children: NDArray[np.int32],
    left: NDArray[np.float32],
) -> tuple[float, float]:
    """The most probable label of a text and the logarithm of its probability.

    Walks the tree and leaves branches that are worse than the best label so far. `left` (nodes, 2) has room for the
    nodes still to visit and their scores.
    """
    labels = len(output)
    best, best_score = np.float32(-1), np.float32(-np.inf)
    left[0, 0], left[0, 1] = children.shape[1] - 1, 0
    count = 1
    while count:
        count -= 1
        node, score = np.int64(left[count, 0]), left[count, 1]
        if score < best_score:
            continue
        if node < labels:
            best, best_score = np.float32(node), score
            continue
        dot = np.float32(0)
        for column in range(DIM):
            dot += output[node - labels, column] * hidden[text, column]
        right = np.float32(1 / (1 + np.float32(math.exp(-dot))))
        left[count, 0], left[count + 1, 0] = children[1, node], children[0, node]
        left[count, 1] = score + np.float32(math.log(right + LOG_FLOOR))
        left[count + 1, 1] = score + np.float32(math.log(np.float32(1 - right) + LOG_FLOOR))
        count += 2
    return float(best), float(best_score)


@kernel(f"void({SUMS}, {FLOATS}, {TABLE}, float64[:, ::1])")
def label_texts(
    hidden: NDArray[np.float32],
    output: NDArray[np.float32],
    children: NDArray[np.int32],
    found: NDArray[np.float64],
) -> None:
    """Write the best label of each text and the logarithm of its probability to `found`."""
    left = np.empty((children.shape[1] + 1, 2), np.float32)
    for text in range(len(hidden)):
        found[text, 0], found[text, 1] = best_label(hidden, text, output, children, left)


def predict(model: Model, data: NDArray[np.uint8], offsets: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """The number of the most probable label of each text, and its probability."""
    texts = len(offsets) - 1
    totals, facts = np.tile(model.line_end, (texts, 1)), np.tile(np.array([1, 0], np.int64), (texts, 1))
    words, known = np.empty((PORTION, 4), np.int64), np.empty((KNOWN, 4), np.int64)
    sums, table = np.empty((KNOWN, DIM), np.float32), np.full(SLOTS, -1, np.int32)
    text = at = count = 0
    while text < texts:
        found, text, at = cut_words(data, offsets, text, at, words)
        if count + found > KNOWN:
            count = 0
            table.fill(-1)
        before, count = count, find_again(data, words[:found], count, known, table)
        find_rows(data, known[before:count], model.words, model.spelling)
        sum_words(model.rows, model.kept, data, known[before:count], sums[before:count])
        sum_texts(words[:found], known, sums, facts, totals)
    totals *= (1 / facts[:, :1]).astype(np.float32)
    labels = np.empty((texts, 2))
    label_texts(totals, model.output, model.children, labels)
    # Probabilities can lie a little above 1, for LOG_FLOOR is added on the way.
    return labels[:, 0].astype(np.int64), np.minimum(np.exp(labels[:, 1]), 1.0)
