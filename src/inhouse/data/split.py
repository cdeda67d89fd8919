"""Decide which rows are trained on and which are only measured on: by what they say, by group, or by time."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, date, datetime
from math import ceil, inf, isfinite
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from inhouse.core.errors import UserError
from inhouse.core.messages import text as say
from inhouse.core.params import Params
from inhouse.core.plugins import require
from inhouse.data.records import excerpt

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

ALL = 1 << 64


class SplitParams(Params):
    """Shares of the rows whose source states no part. Equal questions always land on the same side.

    With `group` set it is groups that stay together: equal questions of two groups may part, and `leaks` finds them.
    With `time` too, groups must not overlap: a group that is measured on may have no row older than one trained on.
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
            raise ValueError(say("problem.nothing_to_train"))
        return self


def group_key(group: object, split: SplitParams) -> int:
    """The key of a group's rows, which belong together. Raises split.group_value."""
    require("data", "xxhash")
    import xxhash

    return int(xxhash.xxh3_64_intdigest(_group(group), seed=split.seed))


def question_keys(questions: Sequence[str], split: SplitParams) -> list[int]:
    """A key for each question, the same for those that belong together: white space and case do not matter."""
    require("data", "xxhash", "numba")
    import numpy as np
    import polars as pl
    import xxhash

    from inhouse.data.kernels.buffers import flat
    from inhouse.data.kernels.questions import fold_texts, folds

    data, offsets = flat(pl.Series(questions, dtype=pl.String))
    out = np.empty(len(data), np.uint8)
    lengths = fold_texts(data, offsets, folds(), out).tolist()
    folded = memoryview(out)  # type: ignore[arg-type]
    return [
        xxhash.xxh3_64_intdigest(folded[at : at + size] if size >= 0 else _content(question), seed=split.seed)
        for question, at, size in zip(questions, offsets.tolist(), lengths, strict=False)
    ]


def assign(keys: pl.Series, split: SplitParams, moments: pl.Series | None = None) -> pl.Series:
    """A part for each key (u64): more data later moves no row to another part.

    A share too small to be hit by chance still gets the smallest key when there are enough of them. With moments (f64)
    the newest rows are the test part; rows of one key are as new as the newest of them, and rows of one moment stay
    together. Raises split.time_same.
    """
    import polars as pl

    if moments is not None:
        return _by_time(keys, moments, split)
    ordered = keys.unique().sort().to_numpy()
    test = _bound(ordered, 0, split.test)
    valid = _bound(ordered, test, split.valid)
    return pl.select(_part(_below(keys, test), _below(keys, valid)))["part"]


def _part(test: pl.Series, valid: pl.Series) -> pl.Expr:
    import polars as pl

    held_out = pl.when(pl.lit(test)).then(pl.lit("test")).when(pl.lit(valid)).then(pl.lit("valid"))
    return held_out.otherwise(pl.lit("train")).alias("part")


def _below(keys: pl.Series, bound: int) -> pl.Series:
    import polars as pl

    if not bound:
        return pl.repeat(False, len(keys), eager=True)
    return keys <= min(bound, ALL) - 1  # the bound itself may be one more than a key can be


def _group(value: object) -> bytes:
    if not isinstance(value, str | int):
        raise UserError("split.group_value", type=type(value).__name__)
    return f"group:{value}".encode("utf-8", "surrogatepass")


def _by_time(keys: pl.Series, moments: pl.Series, split: SplitParams) -> pl.Series:
    import polars as pl

    rows = pl.DataFrame({"key": keys, "moment": moments})
    newest = rows.select(pl.col("moment").max().over("key"))["moment"]
    ordered = newest.sort(descending=True)
    test, valid = (_since(ordered, share) for share in (split.test, split.test + split.valid))
    if len(ordered) and valid <= ordered[-1]:
        raise UserError("split.time_same", column=str(split.time), rows=len(keys))
    parts = pl.select(_part(newest >= test, newest >= valid))["part"]
    if split.group:
        _refuse_older(rows.with_columns(parts), split)
    return parts


def _refuse_older(rows: pl.DataFrame, split: SplitParams) -> None:
    """Raise split.group_time when rows of a group that is measured on are older than rows that are trained on."""
    import polars as pl

    trained = pl.col("moment").filter(pl.col("part") == "train").max()
    older = rows.filter((pl.col("part") != "train") & (pl.col("moment") < trained))
    if older.height:
        held_out = rows.filter(pl.col("part") != "train")
        raise UserError(
            "split.group_time", group=str(split.group), time=str(split.time), rows=older.height,
            groups=older["key"].n_unique(), of=held_out["key"].n_unique(), held_out=held_out.height,
        )  # fmt: skip


def _since(newest_first: pl.Series, share: float) -> float:
    """The moment from which on the rows make at least the share."""
    count = ceil(round(share * len(newest_first), 6))  # 0.1 + 0.2 of 10 rows are 3, not 4
    return float(newest_first[count - 1]) if count else inf


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


def _bound(ordered: NDArray[np.uint64], start: int, share: float) -> int:
    """Keys from `start` up to the bound make the share; `start` when there are none."""
    import numpy as np

    first = int(ordered.searchsorted(np.uint64(start))) if start < ALL else len(ordered)
    if not share or first == len(ordered):
        return start
    bound, least = start + int(share * ALL), int(ordered[first])
    if least < bound:
        return bound
    return least + 1 if len(ordered) >= ceil(1 / share) else start


def _content(question: str) -> bytes:
    return " ".join(unicodedata.normalize("NFC", question).split()).casefold().encode()
