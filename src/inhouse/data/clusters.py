"""Find documents that resemble each other, by MinHash bands and sketches, and gather them in clusters."""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

# Whose copy stays when parts share a text: what is measured on must stay measurable.
FIRST = {"test": 0, "valid": 1, "train": 2}
# Pairs that are exactly as alike as the threshold meet in a band with at least this probability.
RECALL = 0.98
BAND = "band_"


def rows_of_band(threshold: float, hashes: int) -> int:
    """Hashes that make a band: as many as leave pairs at the threshold the probability RECALL to share a band.

    1 - (1 - J^r)^(hashes // r) (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4).
    """
    fitting = [rows for rows in range(1, hashes + 1) if 1 - (1 - threshold**rows) ** (hashes // rows) >= RECALL]
    return max(fitting, default=1)


def least_resemblance(threshold: float) -> float:
    """What two sketches must tell: the threshold less two standard errors, so that pairs at it are not lost."""
    from inhouse.data.kernels.minhash import SKETCH_BINS

    return threshold - 2 * sqrt(threshold * (1 - threshold) / SKETCH_BINS)


def band_table(
    texts: pl.Series, window: tuple[int, int], threshold: float, hashes: int
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """A key for each band (texts, bands), and how many shingles each text has: without any, its keys mean nothing."""
    from inhouse.data.kernels.buffers import flat
    from inhouse.data.kernels.minhash import band_keys, signatures

    signed, counts = signatures(*flat(texts), window, hashes)
    return band_keys(signed, rows_of_band(threshold, hashes)), counts


def band_columns(texts: pl.Series, window: tuple[int, int], threshold: float, hashes: int) -> pl.DataFrame:
    """A column of keys (u32) for each band, null for texts shorter than one shingle."""
    import polars as pl

    keys, counts = band_table(texts, window, threshold, hashes)
    names = [f"{BAND}{n}" for n in range(keys.shape[1])]
    long_enough = pl.Series("long_enough", counts > 0)
    found = pl.DataFrame(keys, schema=dict.fromkeys(names, pl.UInt32))
    return found.select(pl.when(long_enough).then(pl.col(name)).alias(name) for name in names)


def sketch_column(texts: pl.Series, window: tuple[int, int]) -> pl.Series:
    """The sketch of each text (Array of u8), from which the similarity of any two can be told."""
    import polars as pl

    from inhouse.data.kernels.buffers import flat
    from inhouse.data.kernels.minhash import SKETCH_BINS, sketches

    data, offsets = flat(texts)
    return pl.Series("sketch", sketches(data, offsets, window), dtype=pl.Array(pl.UInt8, SKETCH_BINS))


def sharing(emitted: pl.DataFrame) -> pl.Series:
    """The rows that share a band with another row."""
    import polars as pl

    shared = pl.repeat(False, emitted.height, eager=True)
    for name in _bands(emitted):  # one at a time: what a band needs is freed before the next
        keys = emitted[name]
        shared |= keys.is_duplicated() & keys.is_not_null()
    return emitted["row"].filter(shared)


def clusters(candidates: pl.DataFrame, drawn: NDArray[np.uint8], threshold: float, whole: bool) -> NDArray[np.int64]:
    """For each candidate the place of the row that it is one with; a candidate alone is its own.

    `candidates`: bands, and `sketch`, the place of its sketch in `drawn`; ordered so that the row to be kept stands
    first. Pairs are looked for band by band: within a bucket a row is compared with the 64 before it, ordered by the
    next band's key, so that the work is bounded (64 x bands comparisons of 0.3 us per row at worst) and the most alike
    still meet in buckets that a common template fills. Rows already in one cluster are not compared again. With
    `whole` a row is one with its cluster's first, which a chain of alike rows may lead to; without, only with a row
    that it resembles itself and that is its own.
    """
    import numpy as np

    from inhouse.data.kernels.minhash import gather_stars, join_neighbours, root

    sketched = drawn, candidates["sketch"].to_numpy().astype(np.int64)
    parents = np.arange(candidates.height, dtype=np.int64)
    joined = parents, parents.copy()
    names = _bands(candidates)
    least = least_resemblance(threshold)
    for n, name in enumerate(names):
        keys = candidates[name].to_numpy().astype(np.uint64) << np.uint64(32)
        keys |= candidates[names[(n + 1) % len(names)]].to_numpy().astype(np.uint64)
        order = np.argsort(keys, kind="stable")
        join_neighbours(keys[order], order, sketched, joined, least)
    firsts = np.array([root(parents, n) for n in range(candidates.height)], np.int64)
    if not whole:
        gather_stars(joined, sketched, least, firsts)
    return firsts


def _bands(frame: pl.DataFrame) -> list[str]:
    return [name for name in frame.columns if name.startswith(BAND)]
