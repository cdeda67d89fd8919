"""Read JSON lines: one object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

from inhouse.core.params import Params
from inhouse.data.records import Record, Reject, excerpt, lines

SUFFIXES = (".jsonl", ".ndjson")


class JsonlReader(Params):
    """One JSON object a line; blank lines are skipped."""

    use: Literal["jsonl"] = "jsonl"
    encoding: Literal["utf-8", "gb18030"] = Field("utf-8", description="gb18030 reads GBK and GB2312 files too")


def read(path: Path, params: JsonlReader) -> Iterator[Record | Reject]:
    """The objects of the file, in order."""
    offset = -1
    for number, raw in lines(path):
        if raw is not None and not raw.strip():
            continue
        offset += 1
        yield _parse(raw, offset, number, params.encoding)


def _parse(raw: bytes | None, offset: int, number: int, encoding: str) -> Record | Reject:
    if raw is None:
        return Reject(offset, number, "line_too_long")
    try:
        value = json.loads(raw.decode(encoding))
    except UnicodeDecodeError as error:
        return Reject(offset, number, "invalid_encoding", f"byte {error.start}", excerpt(raw[:200]))
    except (ValueError, RecursionError) as error:
        return Reject(offset, number, "broken_json", str(error), excerpt(raw[:200].decode(encoding, "replace")))
    if not isinstance(value, dict):
        return Reject(offset, number, "not_an_object", type(value).__name__, excerpt(value))
    return Record(offset, value, number)
