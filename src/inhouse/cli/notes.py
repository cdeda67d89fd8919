"""What a job tells beside its progress, as a person reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from inhouse.cli.table import size
from inhouse.core.messages import text


def note(code: str, facts: dict[str, Any]) -> str:
    """The text of a note."""
    if code != "data.look":
        return text(code, **facts)
    rows = facts["rows"]
    return text(code, source=facts["source"], rows=rows, found=text("cell.look.join").join(_look(facts)))


def _look(facts: dict[str, Any]) -> Iterator[str]:
    """What a first look found, without what it cannot know."""
    if facts["files"] > 1:
        yield text("cell.look.files", files=facts["files"])
    yield size(facts["bytes"])
    if facts["shape"] is not None:
        yield text("cell.look.shape", shape=facts["shape"])
    if facts["chars"] is not None:
        yield text("cell.look.chars", chars=f"{facts['chars']:,}")
    if facts["repeated"]:
        yield text("cell.look.repeated", count=facts["repeated"])
    if facts["rejected"]:
        yield text("cell.look.rejected", count=facts["rejected"])
    if facts["labels"]:
        yield text("cell.look.labels", labels=facts["labels"])
