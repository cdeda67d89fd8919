"""Make runs of spaces one space, end every line alike, and remove blank space that nobody sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from inhouse.core.params import Params
from inhouse.core.plugins import require
from inhouse.data.operators.around import Around

if TYPE_CHECKING:
    import polars as pl

SHAPE = "map"


class NormalizeSpace(Params):
    """Tidy white space: one space between words, no space at line ends, at most one blank line.

    What begins a line is kept, for it indents code and lists, and so is U+3000, which Chinese text sets on purpose.
    """

    use: Literal["normalize_space"] = "normalize_space"


def change(pieces: pl.DataFrame, params: NormalizeSpace, around: Around) -> pl.Series:
    """The texts, tidied. Doing it twice changes nothing more."""
    require("data", "numba")
    import numpy as np
    import polars as pl

    from inhouse.data.kernels.buffers import flat
    from inhouse.data.kernels.space import tidy_texts

    texts = pieces["text"]
    data, offsets = flat(texts)
    out = np.empty(len(data), np.uint8)
    lengths, changed = tidy_texts(data, offsets, out)
    places = np.flatnonzero(changed)
    if not len(places):
        return texts
    new = [out[start : start + size].tobytes() for start, size in zip(offsets[places], lengths[places], strict=True)]
    return texts.clone().scatter(places, pl.Series(new, dtype=pl.Binary).cast(pl.String))
