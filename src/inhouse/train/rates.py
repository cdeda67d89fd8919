"""Find a learning rate: let it rise over a few real steps and watch the loss (LR range test)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import inf, isfinite, log
from typing import TYPE_CHECKING, Any

from pydantic import Field

from inhouse.core.artifact import Frozen
from inhouse.core.errors import UserError
from inhouse.core.run import Events
from inhouse.train.brief import brief_job, brief_trainer, weights_kept
from inhouse.train.lint import rate_range
from inhouse.train.params import TrainParams
from inhouse.train.privacy import refuse_private

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from inhouse.train.setup import Prepared

# Smith 2017, arXiv:1506.01186, section 3.3; the ramp, the smoothing and the two suggestions as in fastai's lr_find.
SPAN = 100.0  # the ramp begins this far below the lowest rate that is known to work, and ends as far above the highest
SMOOTHING = 0.9  # of 60 steps; fastai has 0.98 over 100 and more
BLOWN_UP = 4.0  # times the best smoothed loss: the ramp ends
LEAST = 8  # points of a curve that says something


class RatePoint(Frozen):
    """One step of the ramp."""

    learning_rate: float
    loss: float
    smooth: float = Field(description="mean of the losses so far, the newer ones weighing more")


class RateFound(Frozen):
    """The curve, and two rates read off it; the smaller one is proposed. `usual` is the range that is known to work."""

    points: tuple[RatePoint, ...]
    steepest: float = Field(description="where the loss falls fastest")
    tenth: float = Field(description="a tenth of the rate with the lowest loss")
    suggestion: float
    usual: tuple[float, float]
    blown_up: bool = Field(description="the loss rose steeply before the ramp ended")


def find_rate(ready: Prepared, params: TrainParams, steps: int, seed: int, events: Events) -> RateFound:
    """Train `steps` steps while the rate rises exponentially; the weights are given back as they were.

    Raises train.rate_flat where the loss never fell, and privacy.no_trials.
    """
    refuse_private(params, "train find-rate")
    usual = rate_range(params)
    low, high = usual[0] / SPAN, usual[1] * SPAN
    ramp = [low * (high / low) ** (step / (steps - 1)) for step in range(steps)]
    losses: list[float] = []
    plain = {"max_steps": steps, "logging_steps": 1, "learning_rate": 1.0, "eval_steps": None, "warmup_ratio": 0.0}
    settings = params.model_copy(update=plain)
    model = ready.loaded.model
    watch = _watch(losses, steps, events)
    with (
        weights_kept(model),
        brief_trainer(model, settings, brief_job(ready, settings, seed), [watch]) as trainer,
    ):
        from torch.optim.lr_scheduler import LambdaLR

        optimizer = trainer.create_optimizer()
        trainer.lr_scheduler = LambdaLR(optimizer, lambda step: ramp[min(step, steps - 1)])
        try:
            trainer.train()
        except UserError as error:
            if error.code != "train.diverged":
                raise
    return read_curve(ramp, losses, usual)


def _watch(losses: list[float], steps: int, events: Events) -> TrainerCallback:
    from transformers import TrainerCallback

    class Watch(TrainerCallback):  # type: ignore[misc]
        """Note every loss; stop where it has risen far above its best."""

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
            if logs and "grad_norm" in logs:
                losses.append(float(logs["loss"]))
                events.progress(len(losses), steps, "steps", loss=losses[-1])
                if blown_up(smoothed(losses)):
                    control.should_training_stop = True

    return Watch()


def smoothed(losses: Sequence[float]) -> list[float]:
    """Exponentially weighted mean, its start corrected (Kingma and Ba 2015, section 3)."""
    mean, found = 0.0, []
    for count, loss in enumerate(losses, 1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        found.append(mean / (1 - SMOOTHING**count))
    return found


def blown_up(smooth: Sequence[float]) -> bool:
    """Whether the last loss lies far above the best, or is no number."""
    return bool(smooth) and not smooth[-1] <= BLOWN_UP * min(smooth)


def read_curve(ramp: Sequence[float], losses: Sequence[float], usual: tuple[float, float]) -> RateFound:
    """The steepest descent and a tenth of the minimum, from the smoothed losses; raise train.rate_flat without any."""
    finite = [loss for loss in losses if isfinite(loss)]
    smooth = smoothed(finite)
    lowest = min(range(len(smooth)), key=smooth.__getitem__, default=0)
    if len(finite) < LEAST or lowest == 0:
        raise UserError("train.rate_flat", steps=len(finite), low=f"{ramp[0]:.1e}", high=f"{ramp[-1]:.1e}")
    points = tuple(
        RatePoint(learning_rate=rate, loss=loss, smooth=mean)
        for rate, loss, mean in zip(ramp, finite, smooth, strict=False)
    )
    steepest, fall = points[lowest].learning_rate, inf
    for before, after in pairwise(points[: lowest + 1]):
        slope = (after.smooth - before.smooth) / log(after.learning_rate / before.learning_rate)
        if slope < fall:
            steepest, fall = after.learning_rate, slope
    tenth = points[lowest].learning_rate / 10
    return RateFound(
        points=points,
        steepest=steepest,
        tenth=tenth,
        suggestion=float(f"{min(steepest, tenth):.1e}"),
        usual=usual,
        blown_up=len(finite) < len(ramp),
    )
