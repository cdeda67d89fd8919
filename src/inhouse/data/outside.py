"""Read evaluation sets that are no part of the dataset, text by text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from inhouse.core.errors import UserError

MOST_JOINED = 8  # texts of a row that are compared as one: more turns than a benchmark's rows have
SOME_CHARS = 2**20  # of a set that are described at once


def rows_of(path: Path, columns: frozenset[str]) -> Iterator[list[str]]:
    """The texts of each row of an evaluation set. Raises data.leak_file and data.leak_columns."""
    return (values for _, values in lines_of(path, columns))


def lines_of(path: Path, columns: frozenset[str]) -> Iterator[tuple[int, list[str]]]:
    """The number (from 1) and the texts of each line that is not blank: of a .jsonl those in its object, else itself.

    Raises data.leak_file, and data.leak_columns when no row has any of the columns.
    """
    found = False
    with path.open("rb") as f:
        for number, line in enumerate(f, 1):
            if not line.strip():
                continue
            try:
                text = line.decode("utf-8-sig")
                values = list(_strings(json.loads(text), columns)) if path.suffix == ".jsonl" else [text.strip()]
            except (ValueError, RecursionError) as error:
                raise UserError("data.leak_file", path=path, line=number, problem=error) from None
            found |= bool(values)
            yield number, values
    if columns and not found:
        raise UserError("data.leak_columns", path=path, columns=", ".join(sorted(columns)))


def _strings(value: object, columns: frozenset[str]) -> Iterator[str]:
    """The texts in a value, those of some fields only if any are named; who speaks in a conversation is no text."""
    if isinstance(value, str):
        if not columns:
            yield value.encode("utf-8", "replace").decode()
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item, columns)
    elif isinstance(value, dict):
        spoken = bool(value.keys() & {"content", "value"})
        for key, item in value.items():
            if not (spoken and key in ("role", "from")):
                yield from _strings(item, frozenset() if key in columns else columns)


def neighbours(values: Sequence[str]) -> Iterator[str]:
    """Every run of two to MOST_JOINED values, joined by line ends."""
    for start in range(len(values)):
        for end in range(start + 2, min(start + MOST_JOINED, len(values)) + 1):
            yield "\n".join(values[start:end])


def some(rows: Iterator[list[str]]) -> Iterator[list[list[str]]]:
    """The rows in batches of about SOME_CHARS characters."""
    batch: list[list[str]] = []
    size = 0
    for values in rows:
        batch.append(values)
        size += sum(map(len, values))
        if size > SOME_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
