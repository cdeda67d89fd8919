"""How long a text will take to read, by those that were read."""

from __future__ import annotations

# Powers of the length, what is tried first first: layers read each token, attention each token with all before it,
# and some work is the same for every text. With fewer texts than powers, the first that fits is taken.
POWERS = ((1, 2), (0, 1, 2), (0, 1), (0, 2), (1,), (2,), (0,))
SAME = 1e-9  # relative: no better fit


class Pace:
    """Seconds as a + b x tokens + c x tokens², none of them negative: work without a text, layers, and attention.

    Fitted to every text that was read, by least squares of the relative error (Lawson & Hanson 1974: the best of the
    fits by some of the powers in which nothing is negative; of three powers there are seven).
    """

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
        """For a text of so many tokens: as it took where one was read, else by the fit; 0 before any was read."""
        if tokens in self._seen or not self._seen:
            return self._seen.get(tokens, 0.0)
        longest = max(self._seen)
        return sum(part * (tokens / longest) ** power for power, part in self._fitted(longest).items())

    def _fitted(self, longest: int) -> dict[int, float]:
        """By power: the seconds of its part in the longest text."""
        import numpy as np

        sizes, took = (np.array(column, dtype=float) for column in zip(*self._seen.items(), strict=True))
        took = np.maximum(took, 1e-9)
        best, least = {1: float(took.max())}, np.inf
        for powers in (one for one in POWERS if len(one) <= len(sizes)):
            rows = (sizes[:, None] / longest) ** np.array(powers) / took[:, None]
            parts = np.linalg.lstsq(rows, np.ones(len(sizes)), rcond=None)[0]
            error = float(np.square(rows @ parts - 1).sum())
            if (parts >= 0).all() and error < least - SAME:
                best, least = dict(zip(powers, parts.tolist(), strict=True)), error
        return best
