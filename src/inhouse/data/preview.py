"""Look at data before building it: how rows will read, and what a build would say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inhouse.core.plugins import operator_of, require
from inhouse.core.rows import Row
from inhouse.core.run import Events
from inhouse.data.build import build, rows_of, without_blank
from inhouse.data.gather import gather, to_table
from inhouse.data.settings import DataParams
from inhouse.data.source import Located
from inhouse.data.split import SplitParams
from inhouse.data.summary import summary
from inhouse.data.table import apply_steps


def preview(params: DataParams, located: Sequence[Located], rows: int, events: Events) -> list[Row]:
    """The first rows of each source as the model will see them, in reading order.

    Steps that change texts are applied; steps that drop rows are not, for some of them need all the data.
    """
    require("data", "polars", "xxhash")
    lenient = params.model_copy(update={"fail_above": 1.0})  # a share of a few rows says nothing
    sources = gather(lenient, located, events, limit=rows)
    maps = [step for step in params.steps if operator_of("cleaner", step).function("SHAPE") == "map"]
    table = apply_steps(to_table(sources, SplitParams(test=0.0)), maps, 0, events)
    return sorted(rows_of(sources, without_blank(table)), key=lambda row: (row.source, row.offset))


def check(params: DataParams, located: Sequence[Located], seed: int, events: Events) -> dict[str, Any]:
    """What dataset.json would say, without writing anything. Raises what the build raises."""
    return summary(build(params, located, seed, events))
