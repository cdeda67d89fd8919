"""Whether the loss has left for good, and the errors that say so and where the last good checkpoint is."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from pathlib import Path

from inhouse.core.errors import UserError
from inhouse.core.messages import text
from inhouse.train.checkpoint import drop_since, newest_of

SMOOTHING = 0.3  # weight of the newest loss in the smoothed one
LEAST_RISE = 1.0  # nats per token: below it, three times a loss near zero is noise


class Divergence:
    """Whether the loss has left for good: far above its best smoothed value, several points in a row.

    Fed with the whole curve, it judges the same after an interruption. `since` is the step of the first high point,
    `good` that of the last one before.
    """

    def __init__(self, factor: float, patience: int) -> None:
        self.factor, self.patience = factor, patience
        self.smoothed = self.best = inf
        self.high = 0
        self.since: int | None = None
        self.good = 0

    def add(self, step: int, loss: float) -> bool:
        """Take the next point of the curve; True when training should stop."""
        if loss > self.best * self.factor and loss > self.best + LEAST_RISE:
            self.high += 1
            self.since = self.since or step
            return self.high >= self.patience
        self.high, self.since, self.good = 0, None, step
        self.smoothed = loss if self.smoothed == inf else self.smoothed + SMOOTHING * (loss - self.smoothed)
        self.best = min(self.best, self.smoothed)
        return False

    @property
    def unproven(self) -> int | None:
        """The first checkpoint whose weights no good loss has been seen of; None where the loss is not high.

        The loss of a step is that of the weights before it.
        """
        return None if self.since is None else self.good


def diverged(step: int, rate: float, folder: Path, since: int | None = None) -> UserError:
    """The error of a loss or gradient that is no number any more; checkpoints of `since` and later are removed."""
    return UserError("train.diverged", step=step, learning_rate=_short(rate), checkpoint=_last_good(folder, since))


def loss_rose(found: Divergence, facts: Mapping[str, float], folder: Path) -> UserError:
    """The error of a loss that rose and stayed there; checkpoints that no good loss was seen of are removed."""
    assert found.since is not None
    return UserError(
        "train.loss_rose",
        step=found.since,
        loss=round(facts["loss"], 3),
        best=round(found.best, 3),
        learning_rate=_short(facts["learning_rate"]),
        checkpoint=_last_good(folder, found.unproven),
    )


def _short(rate: float) -> float:
    return float(f"{rate:.3g}")


def _last_good(folder: Path, since: int | None) -> str:
    if since is not None:
        drop_since(folder, since)
    return str(newest_of(folder) or text("train.none_saved"))
