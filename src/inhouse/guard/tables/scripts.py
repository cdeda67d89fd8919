"""Other ways to write what the rules know: traditional characters, and letters as wide as characters."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WIDE = {0xFF01 + n: 0x21 + n for n in range(94)}  # full-width ASCII


@cache
def simplified() -> NDArray[np.uint16]:
    """For each character of kernels/fold.py's block its simplified one, 0 where it is that itself."""
    import numpy as np

    from inhouse.guard.kernels.fold import FIRST, LAST

    lines = (Path(__file__).parent / "traditional.txt").read_text(encoding="utf-8").splitlines()
    pairs = "".join(line for line in lines if not line.startswith("#"))
    found = np.zeros(LAST + 1 - FIRST, np.uint16)
    for one, other in zip(pairs[::2], pairs[1::2], strict=True):
        found[ord(one) - FIRST] = ord(other)
    return found
