"""Tables that take a while to make, kept on the disk beside the compiled code."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache, wraps
from typing import TYPE_CHECKING, Any

import numpy as np

from inhouse.core.compiled import place_beside

if TYPE_CHECKING:
    from numpy.typing import NDArray


def table(make: Callable[[], NDArray[Any]]) -> Callable[[], NDArray[Any]]:
    """A table that depends on nothing but the code beside it and Python's tables of characters: made once and kept."""

    @cache
    @wraps(make)
    def found() -> NDArray[Any]:
        return kept(make.__code__.co_filename, make.__name__, "", lambda: {"table": make()})["table"]

    return found


def kept(file: str, name: str, depends_on: str, make: Callable[[], dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """The tables that `make` computes, kept on the disk beside the compiled code of the folder that `file` is in.

    `depends_on` is what they depend on besides that code and Python's own tables of characters.
    """
    place = place_beside(file)
    if place is None:
        return make()
    path = place / f"{name}-{hashlib.sha256(depends_on.encode()).hexdigest()[:16]}.npz"
    try:
        with np.load(path, allow_pickle=False) as found:
            return dict(found)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        made = make()
    draft = path.with_suffix(f".{os.getpid()}.npz")
    with suppress(OSError):
        np.savez(draft, **made)  # type: ignore[arg-type]
        draft.replace(path)
    return made
