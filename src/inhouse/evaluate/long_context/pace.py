"""How long a text will take to read, by those that were read."""

from __future__ import annotations


class Pace:
    """Seconds as a x tokens + b x tokens²: layers, and attention of each token to all before it."""

    def __init__(self) -> None:
        self._seen: dict[int, float] = {}

    def add(self, tokens: int, seconds: float) -> None:
        """A text that was read."""
        self._seen[tokens] = seconds

    @property
    def known(self) -> bool:
        """Whether anything can be foretold."""
        return bool(self._seen)

    def seconds(self, tokens: int) -> float:
        """For a text of so many tokens, by the two longest that were read; 0 before any was."""
        if not self._seen:
            return 0.0
        *_, (small, small_s), (large, large_s) = [(0, 0.0), *sorted(self._seen.items())]
        if not small:
            return large_s * tokens / large
        # a + b x tokens goes through both; neither part is negative.
        square = max(0.0, (large_s / large - small_s / small) / (large - small))
        plain = max(0.0, large_s / large - square * large)
        return plain * tokens + square * tokens**2
