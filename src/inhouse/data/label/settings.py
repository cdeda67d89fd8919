"""The `label:` section of a project file: how rows without a label get one."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from inhouse.core.messages import text as say
from inhouse.core.params import OneOf, Params
from inhouse.data.source import SourceParams
from inhouse.remote.endpoint import Endpoint

PROMPT = "Choose the label that fits the text best. Labels: {labels}"


class AskModel(Params):
    """A model that labels what the rules leave open."""

    endpoint: Endpoint = Field(description="where the model answers, and what asking may cost")
    prompt: str = Field(
        PROMPT, min_length=1, description="instruction; {labels} stands for the labels. The text follows"
    )
    explain: bool = Field(False, description="also ask for a reason in one sentence, kept beside the label")
    confidence: bool = Field(False, description="also ask how sure the model is, from 0 to 1")
    at_least: float = Field(0.0, ge=0, le=1, description="stated confidence below which a row stays without a label")
    check: int = Field(100, ge=0, description="rows with a given label that are asked too, to measure agreement")
    max_chars: int = Field(8000, ge=1, description="beginning of a text that the model gets to see")

    @field_validator("prompt")
    @classmethod
    def _names_the_labels(cls, prompt: str) -> str:
        if "{labels}" not in prompt:
            raise ValueError(say("problem.prompt_without_labels"))
        return prompt

    @model_validator(mode="after")
    def _confidence_is_known(self) -> AskModel:
        if self.at_least and not self.confidence:
            raise ValueError(say("problem.needs_confidence"))
        return self


class LabelParams(Params):
    """Label rows by rules and by a model; rows that have a label keep it and are what both are measured on."""

    sources: tuple[SourceParams, ...] = Field((), description="where the rows come from; absent: those of `data`")
    text_column: str = Field("text", min_length=1, description="column that is labelled")
    label_column: str = Field("label", min_length=1, description="column of given labels; blank or absent: none given")
    labels: tuple[str, ...] | None = Field(
        None, min_length=2, description="the labels there are; absent: those of data.shape, of the rules and given ones"
    )
    rules: tuple[Annotated[Params, OneOf("rule")], ...] = Field((), description="rules that vote, in order")
    decide: Literal["majority", "first", "weights"] = Field(
        "majority",
        description="of several votes: the most, the first rule's, the most by the rules' weights. A tie: none",
    )
    ask: AskModel | None = Field(None, description="a model for the rows that the rules leave without a label")

    @field_validator("sources", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return [value] if isinstance(value, str | dict) else value

    @model_validator(mode="after")
    def _labels_differ(self) -> LabelParams:
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            raise ValueError(say("problem.label_twice"))
        return self
