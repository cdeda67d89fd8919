"""The `data:` section of a project file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from inhouse.core.messages import text as say
from inhouse.core.params import OneOf, OnlyHow, Params
from inhouse.data.mix import MixParams
from inhouse.data.operators.exact_dedup import ExactDedup
from inhouse.data.operators.fix_text import FixText
from inhouse.data.operators.leaks import Leaks
from inhouse.data.operators.normalize_space import NormalizeSpace
from inhouse.data.shapes import AutoShape, Shape
from inhouse.data.source import SourceParams
from inhouse.data.split import SplitParams


class DataParams(Params):
    """Where rows come from, how they are cleaned, and what they become."""

    sources: tuple[SourceParams, ...] = Field(min_length=1, description="files, folders, globs and URIs")
    steps: tuple[Annotated[Params, OneOf("cleaner")], ...] = Field(
        (FixText(), NormalizeSpace(), ExactDedup(), Leaks()), description="cleaning steps, in order"
    )
    shape: Shape = Field(AutoShape(), description="how columns become a conversation")
    split: SplitParams | None = Field(
        None,
        description="shares for rows whose source states no part; absent: 10 % test, none if a source is the test part",
    )
    mix: MixParams | None = Field(None, description="proportion of the sources in the training part")
    engine: Annotated[Literal["local", "ray"], OnlyHow()] = Field(
        "local", description="who works on the shards: processes of this machine, or a Ray cluster (extra distributed)"
    )
    fail_above: float = Field(
        0.05, ge=0, le=1, strict=True, description="largest share of unusable rows of a source; more stops the run"
    )

    @field_validator("sources", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return [value] if isinstance(value, str | dict) else value

    @field_validator("sources")
    @classmethod
    def _names_differ(cls, sources: tuple[SourceParams, ...]) -> tuple[SourceParams, ...]:
        names = [source.name for source in sources]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(say("problem.sources_alike", name=twice[0]))
        return sources

    @model_validator(mode="after")
    def _mix_names_sources(self) -> DataParams:
        names = sorted(source.name for source in self.sources)
        if self.mix and (unknown := sorted(set(self.mix.shares) - set(names))):
            raise ValueError(say("problem.mix_unknown", name=unknown[0], known=", ".join(names)))
        return self
