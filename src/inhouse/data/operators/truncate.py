"""Cut long texts at a number of words or characters."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from inhouse.core.messages import text as say
from inhouse.core.params import Params
from inhouse.data.operators.around import Around

if TYPE_CHECKING:
    import polars as pl

SHAPE = "map"
WORD = re.compile(r"\S+")


class Truncate(Params):
    """Keep the beginning of each text. Answers are never cut: half an answer teaches to stop early."""

    use: Literal["truncate"] = "truncate"
    max_words: int | None = Field(None, ge=1, description="words, separated by white space")
    max_chars: int | None = Field(None, ge=1, description="characters; for text without spaces, such as Chinese")

    @model_validator(mode="after")
    def _has_a_limit(self) -> Truncate:
        if self.max_words is None and self.max_chars is None:
            raise ValueError(say("problem.truncate_limit"))
        return self


def change(pieces: pl.DataFrame, params: Truncate, around: Around) -> pl.Series:
    """The texts, cut after the last whole word or character that fits."""
    import polars as pl

    cut = [
        text if answer else _cut(text, params)
        for text, answer in zip(pieces["text"].to_list(), pieces["answer"].to_list(), strict=True)
    ]
    return pl.Series("text", cut, dtype=pl.String)


def _cut(text: str, params: Truncate) -> str:
    if params.max_words is not None:
        text = _first_words(text, params.max_words)
    if params.max_chars is not None and len(text) > params.max_chars:
        text = text[: params.max_chars].rstrip()
    return text


def _first_words(text: str, limit: int) -> str:
    end = len(text)
    for number, word in enumerate(WORD.finditer(text)):
        if number == limit:
            return text[:end]
        end = word.end()
    return text
