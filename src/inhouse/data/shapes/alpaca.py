"""Alpaca: instruction, input, output."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any, Literal

from inhouse.core.params import Params
from inhouse.core.rows import Message
from inhouse.data.shapes.draft import Draft, conversation, optional_text_of, text_of

COLUMNS = "instruction, output [, input, system]"


class AlpacaShape(Params):
    """Columns instruction and output, with input and system where there are any."""

    use: Literal["alpaca"] = "alpaca"


def matches(columns: Set[str]) -> bool:
    """Whether a record with these columns has this shape."""
    return {"instruction", "output"} <= columns


def draft(fields: Mapping[str, Any], params: AlpacaShape) -> Draft:
    """The instruction, its input below it, as the question; the output as the answer."""
    question = text_of(fields, "instruction")
    extra = optional_text_of(fields, "input") if "input" in fields else ""
    system = optional_text_of(fields, "system") if "system" in fields else ""
    turns = [Message(role="system", content=system)] if system.strip() else []
    turns.append(Message(role="user", content=f"{question}\n\n{extra}" if extra.strip() else question))
    turns.append(Message(role="assistant", content=text_of(fields, "output")))
    return conversation(turns)
