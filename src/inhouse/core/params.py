"""Settings as frozen models, and fields that hold one operator out of those installed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, GetCoreSchemaHandler, Tag
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from inhouse.core.messages import text
from inhouse.core.plugins import operators


class Params(BaseModel):
    """Frozen settings; an unknown key is an error. YAML, CLI, schema and docs derive from these models."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class OnlyHow:
    """Field marker: says how a result is reached and never which. Recipes leave the field out."""


def _off(value: Any) -> Any:
    return "off" if value is False else value


SAYS_OFF = BeforeValidator(_off)  # of a choice with `off`: without quotes, YAML 1.1 reads that as false


def deciding(params: BaseModel) -> dict[str, Any]:
    """The settings that a result may depend on, as JSON values."""
    return params.model_dump(mode="json", exclude=_only_how(params))


def _only_how(value: Any) -> dict[Any, Any]:
    """Where fields marked OnlyHow stand below a value, as pydantic's `exclude`."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        marked: dict[Any, Any] = {
            name: True for name, field in fields.items() if any(isinstance(m, OnlyHow) for m in field.metadata)
        }
        below = {name: _only_how(getattr(value, name)) for name in fields if name not in marked}
        return marked | {name: found for name, found in below.items() if found}
    members = enumerate(value) if isinstance(value, tuple | list) else value.items() if isinstance(value, dict) else ()
    return {key: found for key, member in members if (found := _only_how(member))}


@dataclass(frozen=True)
class Needs:
    """Field marker: the setting names what another step makes; its artifact is handed over as the input `role`.

    A "dataset" is named as in the project file (`data`, or a key of `extra_data`), a "model" by its own ModelParams.
    """

    role: str
    kind: Literal["dataset", "model"]


def needs(params: BaseModel) -> Iterator[tuple[Needs, Any]]:
    """Every input that settings name, at any depth, with the setting's value. What is OnlyHow names none."""
    for name, field in type(params).model_fields.items():
        value = getattr(params, name)
        if value is None or any(isinstance(m, OnlyHow) for m in field.metadata):
            continue
        marks = [m for m in field.metadata if isinstance(m, Needs)]
        for mark in marks:
            yield mark, value
        if not marks:
            yield from _needs_inside(value)


def _needs_inside(value: Any) -> Iterator[tuple[Needs, Any]]:
    if isinstance(value, BaseModel):
        yield from needs(value)
    elif isinstance(value, tuple | list | dict):
        for member in value.values() if isinstance(value, dict) else value:
            yield from _needs_inside(member)


@dataclass(frozen=True)
class OneOf:
    """Field marker: one operator of `kind`, tagged by its `use` key.

    `steps: tuple[Annotated[Params, OneOf("cleaner")], ...]` accepts `{use: length, min_words: 3}`, and the
    short form `length` for an operator used with its defaults. `default` is the operator that is meant
    when `use` is left out; None makes `use` obligatory.
    """

    kind: str
    default: str | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        found = operators(self.kind)
        members = tuple(Annotated[op.params, Tag(name)] for name, op in found.items())
        union: Any = Annotated[Union[members], Discriminator(_tag)]  # noqa: UP007 (built from a list)
        return core_schema.no_info_before_validator_function(self._expand, handler.generate_schema(union))

    def _expand(self, value: Any) -> Any:
        if isinstance(value, BaseModel):
            return value
        if isinstance(value, str):
            value = {"use": value}
        if not isinstance(value, dict):
            raise PydanticCustomError("operator_shape", _literal("problem.operator_shape"))
        use = value.get("use", self.default)
        names = sorted(operators(self.kind))
        if use is None:
            raise PydanticCustomError("operator_use", _literal("problem.operator_use", names=", ".join(names)))
        if use not in names:
            near = get_close_matches(str(use), names, n=1)
            said = _literal("problem.operator_unknown", kind=self.kind, use=use, names=", ".join(names))
            raise PydanticCustomError("operator_unknown", said, {"near": near[0] if near else ""})
        return {**value, "use": use}


def _literal(code: str, **facts: Any) -> Any:
    """A text as pydantic's message template, which must be typed as a literal."""
    return text(code, **facts)


def _tag(value: Any) -> str:
    return str(value["use"] if isinstance(value, dict) else value.use)
