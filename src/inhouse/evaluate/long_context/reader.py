"""What reads a prompt, and what comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Read:
    """One prompt, read once. `scored` are natural-log probabilities of the tokens at the places asked for.

    `chosen` are those of whole answers after the prompt, `answer` is what the model writes by itself.
    """

    scored: list[float | None]
    chosen: list[float]
    answer: list[int]
    seconds: float
    kept_bytes: int | None = None


class Reader(Protocol):
    """A loaded model that reads in one way."""

    def read(self, ids: Sequence[int], places: Sequence[int], choices: Sequence[Sequence[int]]) -> Read:
        """Read a prompt; score its tokens at `places` (from 1, in order), and `choices` as what follows it."""
        ...

    def bytes_per_token(self) -> float | None:
        """What the cache takes for each token, as measured; None before anything was read."""
        ...

    def close(self) -> None: ...
