"""What the texts of a dataset are about: groups of rows that share words, each with its strongest terms."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cache
from math import log, sqrt
from typing import TYPE_CHECKING, Any

from inhouse.data.lexicons import word_lists
from inhouse.data.scripts import UNSPACED

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FEWEST_TEXTS = 50
LOOKED_AT = 1000  # characters of each text: the beginning says what it is about, and twice as many took twice as long
MAX_TERMS, MIN_TEXTS = 2000, 3  # terms compared; texts that a term must stand in, and at most half of all
MIN_TOPICS, MAX_TOPICS, SHOWN_TERMS = 2, 12, 5
ROUNDS, TRIED, SEED = 25, 4, 20
# Length of a text's vector, of whole numbers: float32 adds up their products exactly (< 2^24), so that no result
# depends on the order in which the processor adds, on its threads or on its kind.
LENGTH = 2048
# A run of letters and other characters that holds a digit or @ is an address, a number or a name for machines.
MARKED = rf"[^\s{UNSPACED}]*[\d@][^\s{UNSPACED}]*"
WORD = rf"[\p{{L}}\p{{M}}&&[^{UNSPACED}]]{{3,}}"
PAIRED = ((0x3400, 0xA000), (0xAC00, 0xD7A4))  # Han and Hangul


def topics(texts: Sequence[str]) -> list[dict[str, Any]]:
    """Topics as {share of the texts, terms, rows}, largest first; the order of the texts makes no difference.

    TF-IDF over words, for Chinese over pairs of characters, grouped by spherical k-means. Texts without any of the
    terms are in no topic. Empty when fewer than 50 texts have terms.
    """
    texts = sorted(text[:LOOKED_AT] for text in texts)
    if len(texts) < FEWEST_TEXTS:
        return []
    terms, vectors = _vectors(texts)
    vectors = vectors[vectors.any(axis=1)]
    if len(vectors) < FEWEST_TEXTS:
        return []
    labels, centres = _grouped(vectors, max(MIN_TOPICS, min(MAX_TOPICS, round(sqrt(len(vectors) / 2) / 2))))
    rows = [int((labels == place).sum()) for place in range(len(centres))]
    found = [
        {"share": round(count / len(texts), 4), "terms": list(_strongest(terms, centre)), "rows": count}
        for count, centre in zip(rows, centres, strict=True)
        if count
    ]
    return sorted(found, key=lambda topic: (-topic["rows"], topic["terms"]))


def _vectors(texts: Sequence[str]) -> tuple[list[str], NDArray[np.float32]]:
    """The terms in the order of their letters, and how much each says about each text (text, term)."""
    import numpy as np

    words, pairs = _words(texts), _pairs(texts)
    named = sorted([*((-n, term, 0, at) for at, (term, n) in enumerate(words[0])),
                    *((-n, term, 1, at) for at, (term, n) in enumerate(pairs[0]))])[:MAX_TERMS]  # fmt: skip
    named.sort(key=lambda term: term[1])
    vectors = np.zeros((len(texts), len(named)), np.float32)
    for kind, (found, row, term, times) in enumerate((words, pairs)):
        column = np.full(len(found), -1)
        for place, (_, _, of, at) in enumerate(named):
            if of == kind:
                column[at] = place
        used = column[term] >= 0
        vectors[row[used], column[term[used]]] = np.sqrt(times[used])
    vectors *= np.array([round(log(len(texts) / -count), 6) for count, *_ in named], np.float32)
    norms = np.sqrt(np.add.accumulate(np.square(vectors.astype(np.float32)), axis=1)[:, -1:]) if named else 1
    return [term for _, term, _, _ in named], vectors
