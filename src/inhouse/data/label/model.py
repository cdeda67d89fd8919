"""Let a model behind an endpoint label what the rules left open, and measure it on rows with a given label."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inhouse.core.agreement import Agreement, agreement
from inhouse.core.artifact import Frozen
from inhouse.core.rows import Message
from inhouse.core.run import Events
from inhouse.data.label.items import Item
from inhouse.data.label.settings import AskModel
from inhouse.remote.endpoint import Answer, ask_many


@dataclass(frozen=True, slots=True)
class Opinion:
    """What the model says of one row."""

    label: str
    confidence: float | None = None
    why: str | None = None


class ModelFigures(Frozen):
    """How the model did. `agreement` compares it with given labels on the rows that were asked for this."""

    asked: int
    labelled: int
    unsure: int  # below at_least
    failed: int
    problem: str | None = None  # the first failure
    agreement: Agreement | None = None


@dataclass(frozen=True)
class Asked:
    """Opinions by row number; rows that were only asked to measure agreement are not among them."""

    opinions: dict[int, Opinion]
    figures: ModelFigures


@dataclass(frozen=True)
class Place:
    """Where answers are kept, whether asking is allowed, and who is told of progress."""

    cache: Path
    offline: bool
    events: Events


def ask_model(
    items: Sequence[Item], open_rows: Sequence[int], labels: Sequence[str], ask: AskModel, place: Place
) -> Asked:
    """Label the open rows. Raises what concerns every row: an endpoint that fails, or a spent budget."""
    checks = checked_rows(items, ask.check)
    rows = [*open_rows, *checks]
    done = 0

    def tick(count: int) -> None:
        nonlocal done
        done += count
        place.events.progress(done, len(rows), "rows")

    talks = [conversation(items[row].text, labels, ask) for row in rows]
    answers = ask_many(
        ask.endpoint, talks, schema=schema_of(labels, ask), cache=place.cache, offline=place.offline, tick=tick
    )
    problems = [answer.problem for answer in answers if answer.problem is not None]
    if rows and len(problems) == len(rows):
        raise problems[0]
    opinions = {row: opinion(answer) for row, answer in zip(rows, answers, strict=True) if answer.problem is None}
    judged = [(items[row].label or "", opinions[row].label) for row in checks if row in opinions]
    sure = {row: opinions[row] for row in open_rows if row in opinions and _sure(opinions[row], ask)}
    return Asked(
        sure,
        ModelFigures(
            asked=len(rows),
            labelled=len(sure),
            unsure=sum(row in opinions for row in open_rows) - len(sure),
            failed=len(problems),
            problem=str(problems[0]) if problems else None,
            agreement=agreement(judged),
        ),
    )


def checked_rows(items: Sequence[Item], most: int) -> list[int]:
    """Rows with a given label, as good as drawn at random: those whose texts have the smallest hashes."""
    given = sorted((item.id, row) for row, item in enumerate(items) if item.label is not None)
    return sorted(row for _, row in given[:most])


def conversation(text: str, labels: Sequence[str], ask: AskModel) -> list[Message]:
    """The instruction and the beginning of the text."""
    told = ask.prompt.replace("{labels}", ", ".join(labels))
    return [Message(role="system", content=told), Message(role="user", content=text[: ask.max_chars])]


def schema_of(labels: Sequence[str], ask: AskModel) -> dict[str, Any]:
    """What a reply must look like. The reason stands first: a model that explains afterwards explains its guess."""
    properties: dict[str, Any] = {"why": {"type": "string"}} if ask.explain else {}
    properties["label"] = {"type": "string", "enum": list(labels)}
    if ask.confidence:
        properties["confidence"] = {"type": "number", "minimum": 0, "maximum": 1}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def opinion(answer: Answer) -> Opinion:
    """The reply understood; its form was checked when it came."""
    assert answer.text is not None
    value = json.loads(answer.text)
    return Opinion(value["label"], value.get("confidence"), value.get("why"))


def _sure(found: Opinion, ask: AskModel) -> bool:
    return found.confidence is None or found.confidence >= ask.at_least
