"""Decide which rows are trained on and which are only measured on: by what they say, by group, or by time."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, date, datetime
from math import ceil, inf, isfinite

from pydantic import Field, model_validator

from inhouse.core.errors import UserError
from inhouse.core.params import Params
from inhouse.core.plugins import require
from inhouse.core.rows import Part
from inhouse.data.records import excerpt

SPACE = re.compile(r"\s+")
ALL = 1 << 64


class SplitParams(Params):
    """Shares of the rows whose source states no part. Equal questions always land on the same side.

    With `group` set it is groups that stay together: equal questions of two groups may part, and `leaks` finds them.
    """

    test: float = Field(0.1, ge=0, lt=1, description="share that is only measured on")
    valid: float = Field(0.0, ge=0, lt=1, description="share that is measured on while training")
    seed: int = Field(0, description="another number, another split; apart from the project's seed on purpose")
    group: str | None = Field(
        None, description="column whose equal values stay on one side, such as a person's id; the shares are of groups"
    )
    time: str | None = Field(
        None, description="column of ISO dates or numbers: the newest rows are the test part, those before them valid"
    )

    @model_validator(mode="after")
    def _leaves_training_rows(self) -> SplitParams:
        if self.test + self.valid >= 1:
            raise ValueError("test and valid together leave nothing to train on")
        return self


def key_of(question: str, split: SplitParams, group: object = None) -> int:
    """Rows with the same key belong together: those of a group, else those that ask the same.

    Order, white space and case do not matter. Raises split.group_value.
    """
    require("data", "xxhash")
    import xxhash

    content = _content(question) if group is None else _group(group)
    return int(xxhash.xxh3_64_intdigest(content, seed=split.seed))


def assign(keys: Sequence[int], split: SplitParams, moments: Sequence[float] | None = None) -> list[Part]:
    """A part for each key: more data later moves no row to another part.

    A share too small to be hit by chance still gets the smallest key when there are enough of them. With moments the
    newest rows are the test part; rows of one key are as new as the newest of them, and rows of one moment stay
    together. Raises split.time_same.
    """
    if moments is not None:
        return _by_time(keys, moments, split)
    ordered = sorted(set(keys))
    test = _bound(ordered, 0, split.test)
    valid = _bound(ordered, test, split.valid)
    return ["test" if key < test else "valid" if key < valid else "train" for key in keys]


def _group(value: object) -> bytes:
    if not isinstance(value, str | int):
        raise UserError("split.group_value", type=type(value).__name__)
    return f"group:{value}".encode("utf-8", "surrogatepass")


def _by_time(keys: Sequence[int], moments: Sequence[float], split: SplitParams) -> list[Part]:
    newest: dict[int, float] = {}
    for key, moment in zip(keys, moments, strict=True):
        newest[key] = max(moment, newest.get(key, moment))
    ordered = sorted((newest[key] for key in keys), reverse=True)
    test, valid = (_since(ordered, share) for share in (split.test, split.test + split.valid))
    if ordered and valid <= ordered[-1]:
        raise UserError("split.time_same", column=str(split.time), rows=len(keys))
    return ["test" if newest[key] >= test else "valid" if newest[key] >= valid else "train" for key in keys]


def _since(newest_first: Sequence[float], share: float) -> float:
    """The moment from which on the rows make at least the share."""
    count = ceil(round(share * len(newest_first), 6))  # 0.1 + 0.2 of 10 rows are 3, not 4
    return newest_first[count - 1] if count else inf


def moment_of(value: object, column: str) -> float:
    """A number as it is, a date as seconds since 1970; without a time zone it is UTC. Raises split.time_value."""
    with suppress(ValueError, OverflowError):
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            moment = _number_or_date(value)
            if isfinite(moment):
                return moment
        if isinstance(value, date):  # as parquet gives them
            return _number_or_date(value.isoformat())
    raise UserError("split.time_value", column=column, value=excerpt(value))


def _number_or_date(value: str | float) -> float:
    try:
        return float(value)
    except ValueError:
        moment = datetime.fromisoformat(str(value).strip())
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


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
