"""Texts of a column as one buffer of UTF-8 bytes, as compiled loops want them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray


def flat(texts: pl.Series) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The bytes of all texts without gaps, and where each begins: offsets (n + 1); null counts as empty."""
    import polars as pl

    texts = texts.fill_null("")
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum(texts.str.len_bytes().to_numpy(), out=offsets[1:])
    # By a list of bytes and not str.join: measured 4-10 times faster (no checks for valid Unicode on the way).
    return np.frombuffer(b"".join(texts.cast(pl.Binary).to_list()), np.uint8), offsets
