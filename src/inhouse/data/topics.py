"""What the texts of a dataset are about: groups of rows that share terms, each with its strongest ones."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import log, sqrt
from typing import TYPE_CHECKING, Any

from inhouse.data.lexicons import word_lists
from inhouse.data.scripts import UNSPACED

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

FEWEST_TEXTS = 50
LOOKED_AT = 960  # bytes of each text, 320 characters of Chinese: its beginning says what it is about
MAX_TERMS = 4000  # terms that are compared, fewer than 2^12
MIN_TEXTS = 3  # that a term must stand in, and at most half of all
MIN_TOPICS, MAX_TOPICS, SHOWN_TERMS = 2, 12, 5
STRONGEST = 32  # terms of a text that count
ROUNDS, TRIED, SEED = 25, 4, 20
MAX_STARTS, SHARED_TEXTS = 10, 3000  # few texts cost little, and one start in five groups them badly
# Vectors are whole numbers of this length, so that sums are exact: no topic depends on the order in which a processor
# adds or on its threads.
LENGTH = 2048
# What holds a digit or @ is an address, a number or a name for machines.
MARKED = rf"[^\s{UNSPACED}]*[\d@][^\s{UNSPACED}]*"
WORD = rf"[\p{{L}}\p{{M}}&&[^{UNSPACED}]]{{3,}}"
ROW, PAIR = 49, 1 << 48  # a key: number of the text << ROW | (hash of a word, or PAIR | two characters)
IN_WORDS = "中不有对對以为為"  # function words that other words are made with, such as 中国
PAIRED = ((0x3400, 0xA000), (0xAC00, 0xD7A4))  # Han and Hangul


def topics(texts: Sequence[str]) -> list[dict[str, Any]]:
    """Topics as {share of all texts, terms, rows}, largest first; the order of the texts makes no difference.

    TF-IDF over words, or pairs of characters in Chinese, then spherical k-means (Dhillon and Modha 2001). A text
    without any of the terms is in no topic. None are told where fewer than 50 texts have terms.
    """
    texts = sorted(text.encode()[:LOOKED_AT].decode(errors="ignore") for text in texts)
    if len(texts) < FEWEST_TEXTS:
        return []
    terms, vectors = _vectors(texts)
    if len(vectors.columns) < FEWEST_TEXTS:
        return []
    labels, centres = _grouped(vectors, max(MIN_TOPICS, min(MAX_TOPICS, round(sqrt(len(vectors.columns) / 2) / 2))))
    found = []
    for place, centre in enumerate(centres.T):
        if rows := int((labels == place).sum()):
            found.append({"share": round(rows / len(texts), 4), "terms": _strongest(terms, centre), "rows": rows})
    return sorted(found, key=lambda topic: (-topic["rows"], topic["terms"]))


@dataclass(frozen=True)
class Vectors:
    """The strongest terms of every text that has any: their columns and weights (text, term), weight 0 beyond them."""

    columns: NDArray[np.int64]
    weights: NDArray[np.int64]
    width: int  # terms there are

    def products(self, others: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of every text with the columns of `others` (term, other)."""
        import numpy as np

        found = np.zeros((len(self.columns), others.shape[1]), np.int32)  # at most about LENGTH squared
        small = others.astype(np.int32)
        for columns, weights in zip(self.columns.T, self.weights.T.astype(np.int32), strict=True):
            found += small[columns] * weights[:, None]
        return found.astype(np.int64)

    def sums(self, groups: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """The sum of each group's texts (term, group)."""
        import numpy as np

        cells = (self.columns * count + groups[:, None]).ravel()
        found = np.bincount(cells, self.weights.ravel(), minlength=self.width * count)
        return found.astype(np.int64).reshape(self.width, count)


def _vectors(texts: Sequence[str]) -> tuple[list[str], Vectors]:
    """The terms in the order of their letters, and what they say about the texts."""
    import numpy as np

    words, named = _words(texts)
    keys, times = _counted(np.concatenate([words, _pairs(texts)]))
    entries = keys & ((1 << ROW) - 1)
    terms = _terms(*_counted(entries), len(texts), named)
    numbers, order = np.unique(np.array([number for _, number, _ in terms], np.int64), return_index=True)
    places = np.searchsorted(numbers, entries)
    used = places < len(numbers)
    used[used] = numbers[places[used]] == entries[used]
    rows, columns = keys[used] >> ROW, order[places[used]]
    rarity = np.array([log(len(texts) / count) for _, _, count in terms])
    weights = np.rint(1000 * np.sqrt(times[used]) * rarity[columns]).astype(np.int64)
    return [name for name, _, _ in terms], _strong(rows, columns, weights, len(terms))


def _strong(rows: NDArray[np.int64], columns: NDArray[np.int64], weights: NDArray[np.int64], width: int) -> Vectors:
    """The strongest terms of each row, the first of equal ones, scaled to one length."""
    import numpy as np

    keys = np.sort(rows << 36 | ((1 << 24) - 1 - weights) << 12 | columns)
    rows, weights, columns = keys >> 36, (1 << 24) - 1 - (keys >> 12 & (1 << 24) - 1), keys & (1 << 12) - 1
    first = np.flatnonzero(np.diff(rows, prepend=-1))
    sizes = np.diff(first, append=len(rows))
    nth = np.arange(len(rows)) - np.repeat(first, sizes)
    row, kept = np.repeat(np.arange(len(first)), sizes), nth < STRONGEST
    found = np.zeros((2, len(first), STRONGEST), np.int64)
    found[:, row[kept], nth[kept]] = columns[kept], weights[kept]
    norms = np.sqrt(np.square(found[1]).sum(axis=1, keepdims=True))
    return Vectors(found[0], np.rint(LENGTH * found[1] / norms).astype(np.int64), width)


def _words(texts: Sequence[str]) -> tuple[NDArray[np.int64], pl.DataFrame]:
    """Every word as text << ROW | its number; and the words with their numbers."""
    import numpy as np
    import polars as pl

    cleaned = pl.col("word").str.to_lowercase().str.replace_all(MARKED, " ")
    found = pl.DataFrame({"row": np.arange(len(texts)), "word": texts})
    found = found.with_columns(cleaned.str.extract_all(WORD)).explode("word").drop_nulls()
    found = found.with_columns(number=(pl.col("word").hash(SEED) % PAIR).cast(pl.Int64))
    return found["row"].to_numpy() << ROW | found["number"].to_numpy(), found.select("number", "word")


def _pairs(texts: Sequence[str]) -> NDArray[np.int64]:
    """Every pair of Han or Hangul characters as text << ROW | PAIR | first << 16 | second."""
    import numpy as np

    units = np.frombuffer("\n".join(texts).encode("utf-16-le"), np.uint16)
    fit = _paired()[units]
    at = np.flatnonzero(fit[1:] & fit[:-1])
    ends = np.cumsum([len(text.encode("utf-16-le")) // 2 + 1 for text in texts])
    inside = np.diff(np.searchsorted(at, ends), prepend=0)
    rows = np.repeat(np.arange(len(texts)) << ROW | PAIR, inside)
    rows |= units[at].astype(np.int64) << 16 | units[at + 1]
    return rows


def _paired() -> NDArray[np.bool_]:
    """Which UTF-16 units are characters that pairs are made of: not function words."""
    import numpy as np

    found = np.zeros(0x10000, bool)
    for first, end in PAIRED:
        found[first:end] = True
    words = [*word_lists("function_words")["zh"], *word_lists("function_words")["ja"]]
    found[[ord(word) for word in words if word not in IN_WORDS]] = False
    return found


@cache
def _empty_words() -> frozenset[str]:
    """Words that say nothing about what a text is about."""
    lists = [*word_lists("function_words").values(), *word_lists("stop_words").values()]
    return frozenset(word for words in lists for word in words)


def _counted(values: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The different values in order, and how often each is there."""
    import numpy as np

    values = np.sort(values)
    first = np.flatnonzero(np.diff(values, prepend=-1))
    return values[first], np.diff(first, append=len(values))


def _terms(
    numbers: NDArray[np.int64], counts: NDArray[np.int64], texts: int, words: pl.DataFrame
) -> list[tuple[str, int, int]]:
    """The commonest terms that are neither rare nor everywhere, by name: name, number, texts that it stands in."""
    import numpy as np
    import polars as pl

    known = (counts >= MIN_TEXTS) & (counts * 2 <= texts)
    numbers, counts = numbers[known], counts[known]
    if (most := MAX_TERMS + len(_empty_words())) < len(numbers):
        known = counts >= np.partition(counts, -most)[-most]
        numbers, counts = numbers[known], counts[known]
    used = words.filter(pl.col("number").is_in(numbers)).group_by("number").agg(pl.col("word").first())
    named = dict(used.iter_rows())
    called = (named.get(n) or chr(n >> 16 & 0xFFFF) + chr(n & 0xFFFF) for n in numbers.tolist())
    found = zip(called, numbers.tolist(), counts.tolist(), strict=True)
    terms = sorted((term for term in found if term[0] not in _empty_words()), key=lambda term: (-term[2], term[0]))
    return sorted(terms[:MAX_TERMS])


def _grouped(vectors: Vectors, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The group of every text, and the centres of the groups (term, group): the closest grouping of some starts."""
    starts = max(1, min(MAX_STARTS, SHARED_TEXTS // len(vectors.columns)))
    tried = [_settled(vectors, _first_centres(vectors, count, SEED + start)) for start in range(starts)]
    _, labels, centres = max(tried, key=lambda grouping: grouping[0])
    return labels, centres


def _settled(vectors: Vectors, centres: NDArray[np.int64]) -> tuple[int, NDArray[np.int64], NDArray[np.int64]]:
    """How close the texts are to their centres after k-means from these, the group of every text, and the centres."""
    import numpy as np

    labels = np.zeros(0, np.int64)
    for _ in range(ROUNDS):
        products = vectors.products(centres)
        found = np.argmax(products, axis=1)  # of equal ones the first
        if np.array_equal(found, labels):
            break
        labels, sums = found, vectors.sums(found, centres.shape[1])
        centres = np.rint(LENGTH * sums / np.sqrt(np.maximum(np.square(sums).sum(axis=0), 1))).astype(np.int64)
    return int(products.max(axis=1).sum()), labels, centres


def _first_centres(vectors: Vectors, count: int, seed: int) -> NDArray[np.int64]:
    """Texts far from each other: greedy k-means++ (Arthur and Vassilvitskii 2007), the best of some draws each time."""
    import numpy as np

    draw = random.Random(seed)
    last = len(vectors.columns) - 1
    far = np.full(last + 1, LENGTH**2, np.int64)
    centres = np.zeros((vectors.width, count), np.int64)
    for place in range(count):
        upto = np.cumsum(far)
        drawn = [int(draw.random() * int(upto[-1])) for _ in range(TRIED)]
        tried = np.minimum(np.searchsorted(upto, drawn, "right"), last)
        others = np.zeros((vectors.width, TRIED), np.int64)
        np.add.at(others, (vectors.columns[tried].T, np.arange(TRIED)), vectors.weights[tried].T)
        left = np.minimum(far[:, None], np.maximum(LENGTH**2 - vectors.products(others), 0))
        best = int(np.argmin(left.sum(axis=0)))
        centres[:, place], far = others[:, best], left[:, best]
    return centres


def _strongest(terms: Sequence[str], centre: NDArray[np.int64]) -> list[str]:
    """The terms that weigh most in a centre; of pairs that may overlap, as in 中国经济, the stronger one."""
    import numpy as np

    shown: list[str] = []
    for place in np.argsort(-centre, kind="stable").tolist():
        term = terms[place]
        pair = len(term) == 2
        if len(shown) == SHOWN_TERMS or centre[place] <= 0:
            break
        if not (pair and any(len(other) == 2 and (term[0] == other[1] or term[1] == other[0]) for other in shown)):
            shown.append(term)
    return shown
