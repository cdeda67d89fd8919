"""How far two series of labels agree, with 95 % intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from inhouse.core.artifact import Frozen

Z = 1.959963984540054  # 97.5 % point of the normal distribution


class Agreement(Frozen):
    """Two series of labels for the same rows compared.

    `kappa` is None where chance alone explains everything: both gave one and the same label throughout.
    """

    rows: int
    same: int
    share: float
    low: float  # Wilson interval of the share
    high: float
    kappa: float | None = None
    kappa_low: float | None = None
    kappa_high: float | None = None


def agreement(pairs: Sequence[tuple[str, str]]) -> Agreement | None:
    """Compare pairs of labels; None without any.

    Cohen's kappa (Cohen 1960, A coefficient of agreement for nominal scales) with that paper's standard error.
    """
    rows = len(pairs)
    if not rows:
        return None
    same = sum(one == other for one, other in pairs)
    firsts, seconds = Counter(one for one, _ in pairs), Counter(other for _, other in pairs)
    by_chance = sum(count * seconds[label] for label, count in firsts.items()) / rows**2
    share = same / rows
    low, high = wilson(same, rows)
    if by_chance >= 1:
        return Agreement(rows=rows, same=same, share=share, low=low, high=high)
    kappa = (share - by_chance) / (1 - by_chance)
    half = Z * math.sqrt(share * (1 - share) / rows) / (1 - by_chance)
    ends = {"kappa_low": max(-1.0, kappa - half), "kappa_high": min(1.0, kappa + half)}
    return Agreement(rows=rows, same=same, share=share, low=low, high=high, kappa=kappa, **ends)


def wilson(successes: int, rows: int) -> tuple[float, float]:
    """95 % score interval of a share (Wilson 1927; advised by Brown, Cai & DasGupta 2001).

    Unlike the bootstrap it does not shrink to nothing when every row succeeds, or none.
    """
    share = successes / rows
    middle = (share + Z * Z / (2 * rows)) / (1 + Z * Z / rows)
    half = Z / (1 + Z * Z / rows) * math.sqrt(share * (1 - share) / rows + Z * Z / (4 * rows * rows))
    return max(0.0, middle - half), min(1.0, middle + half)
