"""Rows of a dataset artifact: conversations in OpenAI's `messages` shape, one JSON object a line.

A dataset artifact holds `train.jsonl`, `test.jsonl` and, when asked for, `valid.jsonl`; `dataset.json` holds counts,
labels and drop reasons.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Role = Literal["system", "user", "assistant", "tool"]
Part = Literal["train", "valid", "test"]


class Message(BaseModel):
    """One turn. `content` is null only for an assistant turn that calls tools."""

    model_config = ConfigDict(frozen=True)

    role: Role
    content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The turn as chat templates and HTTP clients expect it, absent keys left out."""
        return self.model_dump(exclude_none=True)


class Row(BaseModel):
    """One example. The last message is the wanted answer; `label` is set for classification."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(description="16 hex digits of H(source hash, offset)")
    messages: list[Message]
    label: str | None = None
    source: str = Field(description="name of the source it came from")
    offset: int = Field(description="row number in that source, from 0")

    @property
    def prompt(self) -> list[Message]:
        """Everything before the answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The wanted answer."""
        return self.messages[-1].content or ""


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    """Write rows as JSON lines (UTF-8, absent keys left out); returns how many."""
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as f:
        for row in rows:
            f.write(json.dumps(row.model_dump(exclude_none=True), ensure_ascii=False) + "\n")
            count += 1
    return count


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file that `write_rows` wrote."""
    with path.open(encoding="utf-8") as f:
        for line in f:
            yield Row.model_validate_json(line)
