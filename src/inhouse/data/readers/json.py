"""Read a JSON file that holds an array of objects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from inhouse.core.params import Params
from inhouse.data.readers.bytes import joined
from inhouse.data.readers.encoding import ABOUT, Encoding, decoded
from inhouse.data.records import Damaged, Record, Reject, excerpt

SUFFIXES = (".json",)


class JsonReader(Params):
    """An array of objects, or an object that holds such an array under `key`."""

    use: Literal["json"] = "json"
    key: str | None = Field(None, description="name of the array inside the top object; absent: the file is the array")
    encoding: Encoding = Field("auto", description=ABOUT)


def read(path: Path, params: JsonReader) -> Iterator[Record | Reject]:
    """The objects of the array, in order; one reject when the file as a whole is broken."""
    try:
        found = _array(path, params)
    except Damaged as damage:
        yield damage.at(0)
        return
    for offset, value in enumerate(found):
        if isinstance(value, dict):
            yield Record(offset, value)
        else:
            yield Reject(offset, None, "not_an_object", type(value).__name__, excerpt(value))


def _array(path: Path, params: JsonReader) -> list[Any]:
    codec, pieces = decoded(path, params.encoding)
    raw = joined(pieces)
    if not raw.strip():
        return []
    try:
        value = json.loads(raw.decode(codec))
    except UnicodeDecodeError as error:
        raise Damaged("invalid_encoding", f"byte {error.start}") from None
    except (ValueError, RecursionError) as error:
        hint = "one object a line? use reader: jsonl; " if "Extra data" in str(error) else ""
        raise Damaged("broken_json", f"{hint}{error}") from None
    if params.key is not None:
        value = value.get(params.key) if isinstance(value, dict) else None
    if not isinstance(value, list):
        keys = ", ".join(sorted(value)[:10]) if isinstance(value, dict) else type(value).__name__
        raise Damaged("no_array", keys)
    return value
