"""Read a JSON file that holds an array of objects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from inhouse.core.errors import UserError
from inhouse.core.params import Params
from inhouse.data.records import Record, Reject, excerpt

SUFFIXES = (".json",)


class JsonReader(Params):
    """An array of objects, or an object that holds such an array under `key`."""

    use: Literal["json"] = "json"
    key: str | None = Field(None, description="name of the array inside the top object; absent: the file is the array")
    encoding: Literal["utf-8", "gb18030"] = Field("utf-8", description="gb18030 reads GBK and GB2312 files too")


def read(path: Path, params: JsonReader) -> Iterator[Record | Reject]:
    """The objects of the array, in order. Raises data.unreadable when the file as a whole is broken."""
    for offset, value in enumerate(_array(path, params)):
        if isinstance(value, dict):
            yield Record(offset, value)
        else:
            yield Reject(offset, None, "not_an_object", type(value).__name__, excerpt(value))


def _array(path: Path, params: JsonReader) -> list[Any]:
    try:
        value = json.loads(path.read_bytes().decode(params.encoding).removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        hint = "; for one object a line use reader: jsonl" if "Extra data" in str(error) else ""
        raise UserError("data.unreadable", path=path.name, problem=f"{error}{hint}") from None
    if params.key is not None:
        value = value.get(params.key) if isinstance(value, dict) else None
    if not isinstance(value, list):
        keys = ", ".join(sorted(value)[:10]) if isinstance(value, dict) else type(value).__name__
        raise UserError("data.not_an_array", path=path.name, found=keys)
    return value
