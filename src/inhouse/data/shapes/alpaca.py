"""Alpaca: instruction, input, output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import Any, Literal

from inhouse.core.params import Params
from inhouse.core.rows import Message
from inhouse.data.records import Unfit
from inhouse.data.shapes.draft import Draft, conversation, opened, optional_text_of, text_of, text_value
from inhouse.data.shapes.messages import rated

COLUMNS = "instruction, output [, input, system, history]"


class AlpacaShape(Params):
    """Columns instruction and output, with input, system and history ([[question, answer], …]) where there are any."""

    use: Literal["alpaca"] = "alpaca"


def matches(columns: Set[str]) -> bool:
    """Whether a record with these columns has this shape."""
    return {"instruction", "output"} <= columns


def draft(fields: Mapping[str, Any], params: AlpacaShape) -> Draft:
    """The instruction, its input below it, as the question; the output as the answer."""
    question = text_of(fields, "instruction")
    extra = optional_text_of(fields, "input") if "input" in fields else ""
    asked = Message(role="user", content=f"{question}\n\n{extra}" if extra.strip() else question)
    answer = Message(role="assistant", content=text_of(fields, "output"))
    return rated(conversation(opened(fields, [*_history(fields.get("history")), asked, answer])), fields)


def _history(value: object) -> Iterator[Message]:
    """The turns before the instruction."""
    for number, pair in enumerate(_listed(value, "history")):
        place = f"history[{number}]"
        said = [text_value(text, place) for text in _listed(pair, place)]
        if len(said) != 2 or not all(text.strip() for text in said):
            raise Unfit("empty_text" if len(said) == 2 else "wrong_type", place)
        yield Message(role="user", content=said[0])
        yield Message(role="assistant", content=said[1])


def _listed(value: object, place: str) -> list[Any]:
    if value is None or value == "":
        return []
    if not isinstance(value, list):
        raise Unfit("wrong_type", f"{place}: {type(value).__name__}")
    return value
