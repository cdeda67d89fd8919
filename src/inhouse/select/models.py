"""The rows of `inhouse models list`: every model of the catalogue, and whether this machine can serve and train it."""

from __future__ import annotations

from inhouse.core.artifact import Frozen
from inhouse.select import memory
from inhouse.select.hardware import Hardware
from inhouse.select.known import KnownModel, catalogue
from inhouse.select.memory import Verdict
from inhouse.sources.licences import Use, use_of

SERVED_TOKENS = 4096
TRAINED_BATCH, TRAINED_TOKENS = 1, 512
SMALL = 500_000_000  # below this Q8_0 is the better trade (q4_k_m costs too much quality), above it q4_k_m


class ModelRow(Frozen):
    """A model of the catalogue on this machine. Sizes in bytes, as estimated by memory.py."""

    name: str
    source: str
    parameters: int
    active_parameters: int | None
    languages: tuple[str, ...]
    context_length: int
    licence: str
    use: Use
    page: str
    served_as: str
    serve_bytes: int
    serve: Verdict
    train_bytes: int
    train: Verdict


def list_models(hardware: Hardware) -> tuple[ModelRow, ...]:
    """Every known model, smallest first, judged against this machine's memory (the largest card's, if there is one)."""
    available = max([hardware.memory_bytes, *(g.memory_bytes for g in hardware.gpus)])
    return tuple(_row(model, available) for model in catalogue().values())


def _row(model: KnownModel, available: int) -> ModelRow:
    served_as = "q8_0" if model.parameters < SMALL else "q4_k_m"
    cache = memory.kv_cache_bytes(model.layers, model.kv_heads, model.head_size, SERVED_TOKENS)
    serve = memory.serving_bytes(memory.weights_bytes(model.parameters, served_as), cache)
    train = memory.training_bytes(shape_of(model), "lora", TRAINED_BATCH, TRAINED_TOKENS)
    return ModelRow(
        name=model.name,
        source=model.uri,
        parameters=model.parameters,
        active_parameters=model.active_parameters,
        languages=model.languages,
        context_length=model.context_length,
        licence=model.licence,
        use=use_of(model.licence),
        page=model.page,
        served_as=served_as,
        serve_bytes=serve,
        serve=memory.verdict(serve, available),
        train_bytes=train,
        train=memory.verdict(train, available),
    )


def shape_of(model: KnownModel) -> memory.Shape:
    """The numbers that the training formula needs."""
    return memory.Shape(
        parameters=model.parameters,
        layers=model.layers,
        kv_heads=model.kv_heads,
        head_size=model.head_size,
        hidden=model.hidden,
        heads=model.heads,
        vocabulary=model.vocabulary,
    )
