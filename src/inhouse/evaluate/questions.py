"""Which test rows a model is asked, and a hash that shows two models saw the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from inhouse.core.errors import UserError
from inhouse.core.fingerprint import hash_json
from inhouse.core.protocols import Engine, prompt_of
from inhouse.core.rows import Part, Row
from inhouse.dataset import FACTS, read_rows

TEST: Part = "test"


def asked_rows(dataset: Path, limit: int | None) -> list[Row]:
    """The rows to ask, in the file's order; with `limit` those with the smallest ids.

    Ids are hashes, so a limit draws evenly from a file that is sorted by label, and always the same rows.
    """
    rows = list(read_rows(dataset, TEST))
    if not rows:
        raise UserError("evaluate.no_rows", path=dataset)
    if limit is None or limit >= len(rows):
        return rows
    kept = set(sorted(row.id for row in rows)[:limit])
    return [row for row in rows if row.id in kept]


def labels_of(dataset: Path, rows: Sequence[Row]) -> tuple[str, ...]:
    """The labels that an answer may name, in the dataset's order; empty for a dataset without labels."""
    if all(row.label is None for row in rows):
        return ()
    listed = json.loads((dataset / FACTS).read_text(encoding="utf-8")).get("labels", [])
    found = tuple(listed) or tuple(sorted({row.label for row in rows if row.label is not None}))
    alike: dict[str, str] = {}
    for label in found:
        other = alike.setdefault(label.strip().casefold(), label)
        if other != label:
            raise UserError("evaluate.labels_alike", one=other, other=label)
    return found


def rows_hash(rows: Sequence[Row]) -> str:
    """Hash of ids, questions and wanted answers, in order."""
    return hash_json([[row.id, [message.as_dict() for message in row.messages]] for row in rows])


def tokens_hash(rows: Sequence[Row], engine: Engine) -> str:
    """Hash of ids and the token ids that the engine reads for each question."""
    return hash_json([[row.id, engine.token_ids(prompt_of(row))] for row in rows])


def question_of(row: Row) -> str:
    """The last user turn."""
    return next((m.content or "" for m in reversed(row.prompt) if m.role == "user"), "")
