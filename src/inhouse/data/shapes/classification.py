"""Classification: a text and its label become a question and a one-word answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal

from pydantic import Field, field_validator

from inhouse.core.messages import text as say
from inhouse.core.params import Params
from inhouse.core.rows import Message
from inhouse.data.records import Unfit
from inhouse.data.shapes.draft import Draft, optional_text_of, text_of

PLACE = re.compile(r"\{(\w+)\}")


class ClassificationShape(Params):
    """A text column and a label column, asked through a prompt of your own."""

    use: Literal["classification"] = "classification"
    labels: tuple[str, ...] | None = Field(
        None, min_length=2, description="the labels there are; absent: those found in the data"
    )
    prompt: str = Field("{text}", description="question to the model; {text} and {column} stand for the row's columns")
    system: str | None = Field(None, min_length=1, description="system message before the question")
    text_column: str = Field("text", description="column that {text} stands for")
    label_column: str = Field("label", description="column that holds the label")

    @field_validator("prompt")
    @classmethod
    def _has_a_place(cls, prompt: str) -> str:
        if not PLACE.search(prompt):
            raise ValueError(say("problem.prompt_without_text"))
        return prompt

    @field_validator("labels")
    @classmethod
    def _named_once(cls, labels: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if labels is not None and len(set(labels)) != len(labels):
            raise ValueError(say("problem.label_twice"))
        return labels


def columns_of(params: ClassificationShape) -> tuple[str, ...]:
    """The columns that a record must have."""
    return (*_columns(params.prompt, params.text_column), params.label_column)


@cache
def _columns(prompt: str, text_column: str) -> tuple[str, ...]:
    """Columns that the prompt shows, in order, each once."""
    names = [text_column if name == "text" else name for name in PLACE.findall(prompt)]
    return tuple(dict.fromkeys(names))


def draft(fields: Mapping[str, Any], params: ClassificationShape) -> Draft:
    """The columns that the prompt shows, and the label. Only the text column must hold something."""
    label = text_of(fields, params.label_column).strip()
    if params.labels is not None and label not in params.labels:
        raise Unfit("unknown_label", label)
    names, texts = [], []
    for column in _columns(params.prompt, params.text_column):
        take = text_of if column == params.text_column else optional_text_of
        if (text := take(fields, column)).strip():
            names.append(column)
            texts.append(text)
    if not texts:
        raise Unfit("empty_text", ", ".join(_columns(params.prompt, params.text_column)))
    return Draft(tuple(names), tuple(texts), label)


def messages(draft: Draft, texts: Sequence[str], params: ClassificationShape) -> list[Message]:
    """The prompt with the row's texts in place, and the label as the answer."""
    shown = dict(zip(draft.names, texts, strict=True))
    question = PLACE.sub(
        lambda place: shown.get(params.text_column if place[1] == "text" else place[1], ""), params.prompt
    )
    turns = [Message(role="system", content=params.system)] if params.system else []
    return [*turns, Message(role="user", content=question), Message(role="assistant", content=draft.label)]
