"""How many conversations make an optimiser step, and into how many parts memory cuts it."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import Field, WithJsonSchema, model_validator

from inhouse.core.errors import UserError
from inhouse.core.params import OnlyHow, Params
from inhouse.core.run import Events, release_memory

if TYPE_CHECKING:
    from inhouse.train.params import TrainParams

T = TypeVar("T")
AUTO, AUTO_SIZE = "auto", 8
OUT_OF_MEMORY = ("not enough memory", "out of memory")  # torch's CPU allocator; CUDA libraries beside torch's own


class BatchingParams(Params):
    """The batch, and what may be done so that it fits into memory."""

    per_device_train_batch_size: Annotated[
        int, WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"const": AUTO}], "default": AUTO_SIZE})
    ] = Field(
        AUTO_SIZE,
        ge=1,
        description="conversations read together; auto: 8 a step, read together as far as memory allows",
    )
    gradient_accumulation_steps: int = Field(1, ge=1, description="batches per optimiser step")
    auto_find_batch_size: bool = Field(
        False,
        description="read fewer conversations together where memory is short, in more parts; a step learns from as "
        "many as before",
    )
    gradient_checkpointing: Annotated[bool | Literal["auto"], OnlyHow()] = Field(
        "auto",
        description="compute activations twice instead of keeping them, a third slower; auto: where nothing else fits",
    )

    @model_validator(mode="before")
    @classmethod
    def _auto_size(cls, given: Any) -> Any:
        """`per_device_train_batch_size: auto` is short for 8 of them with auto_find_batch_size."""
        if isinstance(given, dict) and given.get("per_device_train_batch_size") == AUTO:
            return given | {"per_device_train_batch_size": AUTO_SIZE, "auto_find_batch_size": True}
        return given

    @property
    def step_size(self) -> int:
        """Conversations per optimiser step."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps


def sizes_of(params: BatchingParams) -> list[int]:
    """Sizes into which a step may be cut, largest first: the one that is set and its halves."""
    sizes = [params.per_device_train_batch_size]
    while sizes[-1] > 1:
        sizes.append(ceil(sizes[-1] / 2))
    return sizes


def read_by(params: TrainParams, size: int) -> TrainParams:
    """The settings of a reading of `size` conversations at a time that is no step: nothing is made up for in parts."""
    return params.model_copy(update={"per_device_train_batch_size": size, "gradient_accumulation_steps": 1})


def resized(params: TrainParams, size: int) -> TrainParams:
    """The same optimiser steps read `size` conversations at a time."""
    parts = ceil(params.step_size / size)
    return params.model_copy(update={"per_device_train_batch_size": size, "gradient_accumulation_steps": parts})


def told_of_step(events: Events, before: int, params: TrainParams) -> None:
    """Say that the parts of a step have become smaller."""
    size, parts = params.per_device_train_batch_size, params.gradient_accumulation_steps
    events.note("train.backed_off", before=before, size=size, parts=parts)


def told_of_evaluation(events: Events, before: int, params: TrainParams) -> None:
    """Say that fewer rows held back are read together."""
    events.note("train.eval_backed_off", before=before, size=params.per_device_train_batch_size)


def as_it_is(run_once: Callable[[TrainParams], T], params: TrainParams) -> T:
    """What `run_once` gives; nothing is cut where memory runs out (train.out_of_memory).

    For ranks that train together: they must run the model equally often.
    """
    try:
        return run_once(params)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError("train.out_of_memory", max_length=params.max_length) from error


def backing_off(
    train_once: Callable[[TrainParams], T],
    params: TrainParams,
    events: Events,
    told: Callable[[Events, int, TrainParams], None] = told_of_step,
) -> tuple[T, TrainParams]:
    """What `train_once` gives, with batches halved as often as memory runs out; and the settings that went through.

    `train_once` is one optimiser step (or a whole run): it begins without gradients and reads
    `per_device_train_batch_size` conversations at a time. Weights change after its last part only, so nothing is lost
    or learned twice. Raises train.out_of_memory where a single conversation is too much.
    """
    while True:
        try:
            return train_once(params), params
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            size = params.per_device_train_batch_size
            if size == 1:
                raise UserError("train.out_of_memory", max_length=params.max_length) from error
        # Outside of the handler: the error's traceback holds the tensors of the step that failed.
        params = resized(params, ceil(size / 2))
        _free()
        told(events, size, params)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: torch.OutOfMemoryError and its relatives are RuntimeErrors."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in OUT_OF_MEMORY)


def _free() -> None:
    import torch

    release_memory()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
