"""Decide which rows are trained on and which are only measured on, by what they say."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from math import ceil

from pydantic import Field, model_validator

from inhouse.core.params import Params
from inhouse.core.rows import Part

SPACE = re.compile(r"\s+")
ALL = 1 << 64


class SplitParams(Params):
    """Shares of the rows whose source states no part. Equal questions always land on the same side."""

    test: float = Field(0.1, ge=0, lt=1, description="share that is only measured on")
    valid: float = Field(0.0, ge=0, lt=1, description="share that is measured on while training")
    group: str | None = Field(None, description="rows that are equal in this column stay together on one side")
    time: str | None = Field(None, description="column with a time: the newest rows are measured on")
    seed: int = Field(0, description="another number, another split; apart from the project's seed on purpose")

    @model_validator(mode="after")
    def _leaves_training_rows(self) -> SplitParams:
        if self.test + self.valid >= 1:
            raise ValueError("test and valid together leave nothing to train on")
        return self


def key_of(question: str, split: SplitParams) -> int:
    """A hash of what a question says; order, white space and case do not matter."""
    import xxhash

    return int(xxhash.xxh3_64_intdigest(_content(question), seed=split.seed))


def assign_keys(keys: Sequence[int], split: SplitParams, times: Sequence[str | None]) -> list[Part]:
    """A part for each key: more data later moves no row to another part.

    A share too small to be hit by chance still gets the question with the
    smallest hash when there are enough of them.
    """
    ordered = sorted(set(keys))
    test = _bound(ordered, 0, split.test)
    valid = _bound(ordered, test, split.valid)
    return ["test" if key < test else "valid" if key < valid else "train" for key in keys]


def _bound(ordered: list[int], start: int, share: float) -> int:
    """Keys from `start` up to the bound make the share; `start` when there are none."""
    inside = [key for key in ordered if key >= start]
    bound = start + int(share * ALL)
    if not share or not inside:
        return start
    if inside[0] < bound:
        return bound
    return inside[0] + 1 if len(ordered) >= ceil(1 / share) else start


def _content(question: str) -> bytes:
    return SPACE.sub(" ", unicodedata.normalize("NFC", question)).strip().casefold().encode()
