"""What the texts of a dataset are about: groups of rows that share terms, each with its strongest ones."""

from __future__ import annotations

import random
from collections.abc import Sequence
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
LOOKED_AT = 1000  # characters of each text: its beginning says what it is about, and twice as many take twice as long
MAX_TERMS, MIN_TEXTS = 2000, 3  # terms compared; texts that a term must stand in (and at most half of all)
MIN_TOPICS, MAX_TOPICS, SHOWN_TERMS = 2, 12, 5
ROUNDS, TRIED, SEED = 25, 4, 20
# Vectors are whole numbers of this length: float32 holds their products and sums exactly (below 2^24, for up to 8,000
# texts), so that no topic depends on the order in which a processor adds or on its threads.
LENGTH = 2048
# What holds a digit or @ is an address, a number or a name for machines.
MARKED = rf"[^\s{UNSPACED}]*[\d@][^\s{UNSPACED}]*"
WORD = rf"[\p{{L}}\p{{M}}&&[^{UNSPACED}]]{{3,}}"
ROW, PAIR = 33, 1 << 32  # a key: number of the text << ROW | (number of a word, or PAIR | two characters)
IN_WORDS = "中不有对對以为為"  # function words that other words are made with, such as 中国
PAIRED = ((0x3400, 0xA000), (0xAC00, 0xD7A4))  # Han and Hangul


def topics(texts: Sequence[str]) -> list[dict[str, Any]]:
    """Topics as {share of all texts, terms, rows}, largest first; the order of the texts makes no difference.

    TF-IDF over words, or pairs of characters in Chinese, then spherical k-means (Dhillon and Modha 2001). A text
    without any of the terms is in no topic. None are told where fewer than 50 texts have terms.
    """
    texts = sorted(text[:LOOKED_AT] for text in texts)
    if len(texts) < FEWEST_TEXTS:
        return []
    terms, vectors = _vectors(texts)
    vectors = vectors[vectors.any(axis=1)]
    if len(vectors) < FEWEST_TEXTS:
        return []
    labels, centres = _grouped(vectors, max(MIN_TOPICS, min(MAX_TOPICS, round(sqrt(len(vectors) / 2) / 2))))
    found = []
    for place, centre in enumerate(centres):
        if rows := int((labels == place).sum()):
            found.append({"share": round(rows / len(texts), 4), "terms": _strongest(terms, centre), "rows": rows})
    return sorted(found, key=lambda topic: (-topic["rows"], topic["terms"]))


def _vectors(texts: Sequence[str]) -> tuple[list[str], NDArray[np.float32]]:
    """The terms in the order of their letters, and what each says about each text (text, term)."""
    import numpy as np

    words, names = _words(texts)
    keys, times = _counted(np.concatenate([words, _pairs(texts)]))
    entries = keys & ((1 << ROW) - 1)
    terms = _terms(*_counted(entries), len(texts), names)
    vectors = np.zeros((len(texts), len(terms)), np.float32)
    if not terms:
        return [], vectors
    numbers, order = np.unique([number for _, number, _ in terms], return_index=True)
    places = np.minimum(np.searchsorted(numbers, entries), len(numbers) - 1)
    used = numbers[places] == entries
    rows, columns = keys[used] >> ROW, order[places[used]]
    rarity = np.array([log(len(texts) / count) for _, _, count in terms])
    weights = np.rint(1000 * np.sqrt(times[used]) * rarity[columns])  # whole: sums of squares are exact
    norms = np.sqrt(np.bincount(rows, weights * weights, minlength=len(texts)))
    vectors[rows, columns] = np.rint(LENGTH * weights / norms[rows])
    return [name for name, _, _ in terms], vectors


def _words(texts: Sequence[str]) -> tuple[NDArray[np.int64], pl.DataFrame]:
    """Every word as text << ROW | its number, and the words by number."""
    import numpy as np
    import polars as pl

    cleaned = pl.col("word").str.to_lowercase().str.replace_all(MARKED, " ")
    found = pl.DataFrame({"row": np.arange(len(texts)), "word": texts})
    found = found.with_columns(cleaned.str.extract_all(WORD)).explode("word").drop_nulls()
    words = found["word"].cast(pl.Categorical)
    different = words.unique()
    names = pl.DataFrame({"number": different.to_physical().cast(pl.Int64), "name": different.cast(pl.String)})
    return found["row"].to_numpy() << ROW | words.to_physical().to_numpy(), names


def _pairs(texts: Sequence[str]) -> NDArray[np.int64]:
    """Every pair of Han or Hangul characters as text << ROW | PAIR | first << 16 | second."""
    import numpy as np

    units = np.frombuffer("\n".join(texts).encode("utf-16-le", "replace"), np.uint16)
    fit = _paired()[units]
    at = np.flatnonzero(fit[1:] & fit[:-1])
    ends = np.cumsum([len(text.encode("utf-16-le", "replace")) // 2 + 1 for text in texts])
    inside = np.diff(np.searchsorted(at, ends), prepend=0)
    rows = np.repeat(np.arange(len(texts)) << ROW | PAIR, inside)
    return rows | units[at].astype(np.int64) << 16 | units[at + 1]


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
    numbers: NDArray[np.int64], counts: NDArray[np.int64], texts: int, names: pl.DataFrame
) -> list[tuple[str, int, int]]:
    """The commonest terms that are neither rare nor everywhere, by name: name, number, texts that it stands in."""
    import numpy as np
    import polars as pl

    known = (counts >= MIN_TEXTS) & (counts * 2 <= texts)
    numbers, counts = numbers[known], counts[known]
    if (most := MAX_TERMS + len(_empty_words())) < len(numbers):
        known = counts >= np.partition(counts, -most)[-most]
        numbers, counts = numbers[known], counts[known]
    named = dict(names.filter(pl.col("number").is_in(numbers)).iter_rows())
    called = (named.get(n) or chr(n >> 16 & 0xFFFF) + chr(n & 0xFFFF) for n in numbers.tolist())
    found = zip(called, numbers.tolist(), counts.tolist(), strict=True)
    terms = sorted((term for term in found if term[0] not in _empty_words()), key=lambda term: (-term[2], term[0]))
    return sorted(terms[:MAX_TERMS])


def _grouped(vectors: NDArray[np.float32], count: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The group of every row, and the centres of the groups."""
    import numpy as np

    centres = _first_centres(vectors, count)
    labels = np.zeros(0, np.int64)
    for _ in range(ROUNDS):
        found = np.argmax(vectors @ centres.T, axis=1)  # equal ones: the first
        if np.array_equal(found, labels):
            break
        labels = found
        sums = ((labels == np.arange(count)[:, None]).astype(np.float32) @ vectors).astype(np.float64)
        norms = np.sqrt(np.square(sums).sum(axis=1, keepdims=True))
        centres = np.rint(LENGTH * sums / np.maximum(norms, 1)).astype(np.float32)
    return labels, centres


def _first_centres(vectors: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Rows far from each other: greedy k-means++ (Arthur and Vassilvitskii 2007), the best of four draws each time."""
    import numpy as np

    draw = random.Random(SEED)
    chosen = [draw.randrange(len(vectors))]
    far = np.full(len(vectors), LENGTH**2, np.int64)
    far = np.minimum(far, _distances(vectors, chosen)[:, 0])
    while len(chosen) < count:
        upto = np.cumsum(far)
        tried = [int(np.searchsorted(upto, int(draw.random() * int(upto[-1])), "right")) for _ in range(TRIED)]
        tried = [min(row, len(vectors) - 1) for row in tried]
        left = np.minimum(far[:, None], _distances(vectors, tried))
        best = int(np.argmin(left.sum(axis=0)))
        chosen.append(tried[best])
        far = left[:, best]
    return vectors[chosen]


def _distances(vectors: NDArray[np.float32], rows: Sequence[int]) -> NDArray[np.int64]:
    """One minus the cosine of every row with some rows, in parts of LENGTH squared."""
    import numpy as np

    return np.maximum(LENGTH**2 - (vectors @ vectors[list(rows)].T).astype(np.int64), 0)


def _strongest(terms: Sequence[str], centre: NDArray[np.float32]) -> list[str]:
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
