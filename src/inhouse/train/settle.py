"""The settings that a run goes with on this machine: decided once, and kept for when it is resumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inhouse.core.artifact import Frozen
from inhouse.core.store import write_durably
from inhouse.train.batching import resized
from inhouse.train.lint import remarks
from inhouse.train.memory import Held, Split, held_by, logit_bytes, machine, measured_split
from inhouse.train.params import TrainParams
from inhouse.train.planning import cut, plan_training, steps_of
from inhouse.train.probe import shape_of

if TYPE_CHECKING:
    from inhouse.train.setup import Place, Prepared
    from inhouse.train.tokens import Sample

KEPT = "settled.json"
# Activations of a token, in multiples of layers x hidden size x bytes of a number: measured 64 for a 135M Llama with
# LoRA whose layers were not fused. It only says whether measuring is worth its seconds.
GENEROUS = 100
ROOMY = 0.5  # of what is available: a run that stays below is not measured beforehand


class Decision(Frozen):
    """What was decided, for settings that `asked` says. A run that is resumed must not decide again."""

    asked: tuple[int, int, bool, bool | str]
    size: int
    checkpointing: bool
    foretold: Split | None = None


@dataclass(frozen=True)
class Settled:
    """The settings to train with; what stands in memory before the first batch; the bytes of the largest scores."""

    params: TrainParams
    asked: TrainParams
    held: Held
    logits: int
    foretold: Split | None

    @property
    def training(self) -> TrainParams:
        """The settings as they were asked for: a step learns from the same examples however it is cut."""
        asked = {
            name: getattr(self.asked, name) for name in ("per_device_train_batch_size", "gradient_accumulation_steps")
        }
        return self.params.model_copy(update=asked)

    def facts(self) -> dict[str, Any]:
        """How batches were read and the memory of it, right after training; the plan's split where there was one."""
        return {
            "batch_size": self.params.per_device_train_batch_size,
            "parts": self.params.gradient_accumulation_steps,
            "gradient_checkpointing": self.params.gradient_checkpointing is True,
            "measured": measured_split(self.held, self.logits).model_dump(),
            "foretold": self.foretold.model_dump() if self.foretold else None,
        }


def settle(ready: Prepared, params: TrainParams, seed: int, place: Place) -> Settled:
    """What the settings leave open, from the plan; where there is plenty of memory, at once and without measuring.

    Tells of unusual settings. Raises train.does_not_fit.
    """
    steps, loaded = steps_of(ready, params, seed), ready.loaded
    for remark in remarks(params, len(steps)):
        place.events.note(remark.code, **remark.facts)
    held = held_by(loaded.model)
    found = _recall(place.scratch / KEPT, params)
    if found is None:
        found = _decide(ready, params, (held, _largest(ready, params, steps)), seed, place)
        write_durably(place.scratch / KEPT, found.model_dump_json())
    chosen = resized(params, found.size).model_copy(update={"gradient_checkpointing": found.checkpointing})
    config = loaded.model.config.get_text_config()
    scores = logit_bytes(config.vocab_size, max(2, loaded.compute.itemsize))
    logits = scores * shape_of(_largest(ready, chosen, steps), ready).predicted
    return Settled(chosen, params, held, logits, found.foretold)


def _asked(params: TrainParams) -> tuple[int, int, bool, bool | str]:
    """The settings that a decision depends on."""
    size, parts = params.per_device_train_batch_size, params.gradient_accumulation_steps
    return size, parts, params.auto_find_batch_size, params.gradient_checkpointing


def _recall(path: Path, params: TrainParams) -> Decision | None:
    """The decision of the run that is resumed, if the settings are the same."""
    if not path.exists():
        return None
    found = Decision.model_validate_json(path.read_text(encoding="utf-8"))
    return found if found.asked == _asked(params) else None


def _decide(
    ready: Prepared, params: TrainParams, known: tuple[Held, Sequence[Sample]], seed: int, place: Place
) -> Decision:
    held, largest = known
    asked, loaded = _asked(params), ready.loaded
    config = loaded.model.config.get_text_config()
    token = GENEROUS * config.num_hidden_layers * config.hidden_size * max(2, loaded.compute.itemsize)
    needed = held.resting + held.gradients + token * sum(len(sample.ids) for sample in largest)
    if needed < ROOMY * machine().available:
        return Decision(asked=asked, size=asked[0], checkpointing=params.gradient_checkpointing is True)
    plan = plan_training(ready, params, seed, place.scratch)
    return Decision(asked=asked, size=plan.batch_size, checkpointing=plan.gradient_checkpointing, foretold=plan.split)


def _largest(ready: Prepared, params: TrainParams, steps: Sequence[Sequence[Sample]]) -> Sequence[Sample]:
    """The batch with the most tokens."""
    batches = cut(steps, params.per_device_train_batch_size * ready.learning.unit)
    return max(batches, key=lambda batch: sum(len(sample.ids) for sample in batch))
