"""What articles claim of LoRA and of activation checkpointing, beside what was measured here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from inhouse.core.artifact import Frozen
from inhouse.train.compare import Measured, reached
from inhouse.train.memory import Split
from inhouse.train.rivals import CHECKPOINTED

About = Literal["memory", "training_memory", "speed", "share", "hours", "checkpointing", "checkpointing_time"]


class Claim(Frozen):
    """A claim of an article and the same figure here; None: it could not be measured, or never came to it."""

    about: About
    row: str  # of the list of what articles say
    claimed: float | None
    here: float | None
    unit: Literal["share", "times"]


def claims(measured: Mapping[str, Measured]) -> tuple[Claim, ...]:
    """Every claim whose two sides were trained here."""
    lora, full, saved = (measured.get(name) for name in ("lora", "full", CHECKPOINTED))
    found: list[Claim] = []
    if lora is None:
        return ()
    if full is not None:
        held = 1 - _ratio(_trained(lora), _trained(full))
        found += [
            Claim(about="memory", row="S58", claimed=0.92, here=1 - _ratio(_peak(lora), _peak(full)), unit="share"),
            Claim(about="training_memory", row="S58", claimed=0.92, here=held, unit="share"),
            Claim(about="speed", row="S58", claimed=3, here=_speed(lora, full), unit="times"),
        ]
    found.append(Claim(about="share", row="S59", claimed=0.01, here=lora.trainable / lora.total, unit="share"))
    if full is not None:
        found.append(Claim(about="hours", row="S60", claimed=0.8, here=_hours_saved(lora, full), unit="share"))
    if saved is not None:
        less, longer = 1 - _ratio(_peak(saved), _peak(lora)), _speed(lora, saved)
        found.append(Claim(about="checkpointing", row="S74", claimed=0.3, here=less, unit="share"))
        found.append(Claim(about="checkpointing_time", row="S74", claimed=None, here=longer, unit="times"))
    return tuple(found)


def _peak(measured: Measured) -> int:
    return measured.split.peak if measured.split else 0


def _trained(measured: Measured) -> int:
    """Bytes of gradients and of the optimiser's state: what is proportional to what is trained."""
    split: Split | None = measured.split
    return split.gradients + split.optimizer if split else 0


def _ratio(one: float, two: float) -> float:
    return one / two if two else 0.0


def _speed(one: Measured, two: Measured) -> float | None:
    if not one.tokens_per_s or not two.tokens_per_s:
        return None
    return one.tokens_per_s / two.tokens_per_s


def _hours_saved(lora: Measured, full: Measured) -> float | None:
    """The share of full tuning's time that LoRA saves on the way to equal quality: the loss that both came to."""
    if not lora.looks or not full.looks:
        return None
    both = max(lora.looks[-1].loss, full.looks[-1].loss)
    mine, theirs = reached(lora.looks, both), reached(full.looks, both)
    return 1 - mine / theirs if mine is not None and theirs else None
