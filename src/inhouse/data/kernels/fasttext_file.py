"""Read the file of a quantised fastText classifier: dictionary, n-grams that were kept, matrices and tree of labels."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from inhouse.data.kernels.fasttext import BLOCK, BUCKETS, DIM, LONGEST, SHORTEST, Model, word_table

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

END_OF_LINE = b"</s>"  # the first word of every model
LABEL = b"__label__"
MAGIC, VERSION = 793712314, 12
HIERARCHICAL, SUPERVISED = 1, 3
CENTROIDS = 256
MOST = 10_000_000  # words, rows, n-grams, and size of numbers: more is a damaged file


class BadModel(ValueError):
    """The file is no such model, or is damaged."""


class File:
    """A place in the bytes of a file."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def numbers(self, layout: str) -> tuple[Any, ...]:
        """The next little-endian numbers of this layout (see `struct`)."""
        size = struct.calcsize("<" + layout)
        return struct.unpack("<" + layout, self.take(size))

    def array(self, dtype: str, count: int) -> NDArray[Any]:
        return np.frombuffer(self.take(np.dtype(dtype).itemsize * count), dtype)

    def take(self, size: int) -> bytes:
        need(0 <= size <= len(self.data) - self.at, "it ends too early")
        self.at += size
        return self.data[self.at - size : self.at]

    def word(self) -> bytes:
        """Bytes up to a NUL."""
        end = self.data.find(b"\0", self.at)
        need(end >= 0, "it ends too early")
        return self.take(end + 1 - self.at)[:-1]


class Dictionary(NamedTuple):
    words: list[bytes]  # words by number, then labels
    size: int  # how many words
    counts: list[int]  # of the labels in the training data
    kept: NDArray[np.int32]  # (n-grams, 2): bucket, row behind the words


def need(fine: bool, problem: str) -> None:
    if not fine:
        raise BadModel(problem)


def read_model(path: Path) -> tuple[Model, list[str]]:
    """The model in a file, and its labels without their prefix. Raises BadModel, OSError."""
    file = File(path.read_bytes())
    need(len(file.data) >= 8 and file.numbers("ii") == (MAGIC, VERSION), "it is not a fastText model")
    _check_settings(file)
    words = _dictionary(file)
    rows = _input(file)
    need(len(rows) == words.size + len(words.kept), "its parts do not fit together")
    output = _output(file, len(words.words) - words.size)
    need(file.at == len(file.data), "it is longer than it should be")
    labels = [word.removeprefix(LABEL).decode("utf-8", "replace") for word in words.words[words.size :]]
    return _model(words, rows, output), labels


def _check_settings(file: File) -> None:
    dim, _, _, _, _, word_ngrams, loss, kind, buckets, shortest, longest, _, _ = file.numbers("12id")
    found = (dim, word_ngrams, loss, kind, buckets, shortest, longest)
    need(
        found == (DIM, 1, HIERARCHICAL, SUPERVISED, BUCKETS, SHORTEST, LONGEST),
        "it is a fastText model of another kind than lid.176.ftz",
    )


def _dictionary(file: File) -> Dictionary:
    size, count, labels, _, pruned = file.numbers("iiiqq")
    need(1 <= count <= size <= MOST and labels == size - count >= 2 and 0 <= pruned <= MOST, "its counts make no sense")
    words, counts = [], []
    for number in range(size):
        words.append(file.word())
        times, kind = file.numbers("qb")
        need(kind == (number >= count), "its words and labels are mixed up")
        if number >= count:
            need(words[-1].startswith(LABEL) and 0 <= times < 1 << 40, "its labels make no sense")
            counts.append(times)
    need(words[0] == END_OF_LINE and len(set(words)) == size, "its words make no sense")
    kept = file.array("<i4", 2 * pruned).reshape(-1, 2)
    need(pruned < 1 << 64 - BLOCK and len(np.unique(kept[:, 0])) == pruned, "its n-grams make no sense")
    need(bool(np.array_equal(np.sort(kept[:, 1]), np.arange(pruned))), "its n-grams make no sense")
    need(bool(((kept[:, 0] >= 0) & (kept[:, 0] < BUCKETS)).all()), "its n-grams make no sense")
    return Dictionary(words, count, counts, kept)


def _input(file: File) -> NDArray[np.float32]:
    """The quantised matrix of words and n-grams, decoded."""
    quantised, by_norm, count, width, size = file.numbers("??qqi")
    need(quantised and width == DIM and 0 < count <= MOST and size % count == 0, "its matrix makes no sense")
    codes = file.array("u1", size).reshape(count, -1)
    rows = _decoded(file, codes, DIM)
    if by_norm:
        rows *= _decoded(file, file.array("u1", count).reshape(count, 1), 1)
    return rows


def _decoded(file: File, codes: NDArray[np.uint8], width: int) -> NDArray[np.float32]:
    """Rows of `width` numbers of which each code stands for some, the last maybe for fewer."""
    found, parts, each, last = file.numbers("4i")
    need(found == width and parts == codes.shape[1] and 1 <= each <= width, "its codes make no sense")
    need(1 <= last <= each and (parts - 1) * each + last == width, "its codes make no sense")
    centroids = file.array("<f4", width * CENTROIDS)
    need(_sane(centroids), "its codes make no sense")
    rows = np.empty((len(codes), width), np.float32)
    for part in range(parts):
        begin, size = part * each, last if part == parts - 1 else each
        table = centroids[begin * CENTROIDS :][: size * CENTROIDS].reshape(CENTROIDS, size)
        rows[:, begin : begin + size] = table[codes[:, part]]
    return rows


def _sane(numbers: NDArray[np.float32]) -> bool:
    """Whether no number is infinite or so large that sums could become so."""
    return bool((np.abs(numbers) < MOST).all())


def _output(file: File, labels: int) -> NDArray[np.float32]:
    """The matrix of the tree's inner nodes, whose last row nothing uses."""
    quantised, count, width = file.numbers("?qq")
    need(not quantised and (count, width) == (labels, DIM), "its matrix makes no sense")
    output = file.array("<f4", count * width).reshape(count, width)
    need(_sane(output), "its matrix makes no sense")
    return output


def _tree(counts: list[int]) -> NDArray[np.int32]:
    """Children of each node of the Huffman tree of the labels, most frequent first; the root is the last node.

    As fastText builds it, ties and all: labels from the end, inner nodes as they are made, a label only if rarer.
    """
    labels = len(counts)
    weights = [*counts, *[10**15] * (labels - 1)]
    children = np.full((2, 2 * labels - 1), -1, np.int32)
    leaf, inner = labels - 1, labels
    for node in range(labels, 2 * labels - 1):
        weights[node] = 0
        for side in range(2):
            if leaf >= 0 and (inner >= node or weights[leaf] < weights[inner]):
                chosen, leaf = leaf, leaf - 1
            else:
                chosen, inner = inner, inner + 1
            children[side, node] = chosen
            weights[node] += weights[chosen]
    return children


def _model(words: Dictionary, rows: NDArray[np.float32], output: NDArray[np.float32]) -> Model:
    """The parts as loops want them: n-grams in the order of their buckets, found by a bit each."""
    children = _tree(words.counts)
    order = np.argsort(words.kept[:, 0])
    buckets, places = words.kept[order, 0], words.kept[order, 1]
    blocks, bits = np.divmod(buckets.astype(np.uint64), np.uint64(BLOCK))
    kept = np.searchsorted(blocks, np.arange(BUCKETS // BLOCK + 1, dtype=np.uint64)).astype(np.uint64) << np.uint64(
        BLOCK
    )
    np.bitwise_or.at(kept, blocks, np.uint64(1) << bits)
    begins = np.cumsum([0, *map(len, words.words)])
    spelling = np.frombuffer(b"".join(words.words), np.uint8)
    ranked = [rows[words.size :][places], rows[: words.size], np.zeros((1, DIM), np.float32)]
    table = word_table(spelling, _fixed(begins[: words.size + 1]), len(buckets))
    arrays = (np.concatenate(ranked), kept, table, spelling, rows[0], output, children)
    return Model(*map(_fixed, arrays))


def _fixed(array: NDArray[Any]) -> NDArray[Any]:
    array = np.ascontiguousarray(array).view()
    array.flags.writeable = False
    return array
