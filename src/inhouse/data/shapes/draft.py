"""A record understood but not yet a row: texts that the steps may change, and what is needed to finish it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inhouse.core.rows import Message
from inhouse.data.records import Unfit
from inhouse.data.shapes.calls import CALL, mapped, texts_in


@dataclass(frozen=True, slots=True)
class Draft:
    """`names[i]` is the role or column of `texts[i]`, or CALL for a text inside a tool call; no text is blank.

    Conversations keep their `turns`.
    """

    names: tuple[str, ...]
    texts: tuple[str, ...]
    label: str | None = None
    turns: tuple[Message, ...] = ()

    @property
    def answers(self) -> tuple[bool, ...]:
        """Which of the texts the model is to learn to say."""
        return tuple(name in ("assistant", CALL) for name in self.names)


def conversation(turns: Sequence[Message]) -> Draft:
    """A draft whose texts are the contents of the turns, before each those in its tool calls.

    Raises Unfit without a question or a final answer.
    """
    if not turns or turns[-1].role != "assistant" or not turns[-1].content:
        raise Unfit("no_answer", turns[-1].role if turns else "")
    if not any(turn.role == "user" for turn in turns):
        raise Unfit("no_prompt")
    spoken: list[tuple[str, str]] = []
    for turn in turns:
        if turn.tool_calls:
            spoken += [(CALL, text_value(text, "tool_calls")) for text in texts_in(turn.tool_calls)]
        if turn.content is not None:
            spoken.append((turn.role, turn.content))
    return Draft(tuple(role for role, _ in spoken), tuple(content for _, content in spoken), None, tuple(turns))


def retold(draft: Draft, texts: Sequence[str]) -> list[Message]:
    """The turns of a conversation with the texts that the steps left."""
    left: Iterator[str] = iter(texts)
    told = []
    for turn in draft.turns:
        changed: dict[str, Any] = {}
        if turn.tool_calls:
            changed["tool_calls"] = mapped(turn.tool_calls, lambda _: next(left))
        if turn.content is not None:
            changed["content"] = next(left)
        told.append(turn.model_copy(update=changed))
    return told


def text_of(fields: Mapping[str, Any], column: str) -> str:
    """The text in a column. Raises Unfit when it is missing, blank, not text, or not valid Unicode."""
    found = optional_text_of(fields, column)
    if not found.strip():
        raise Unfit("empty_text", column)
    return found


def optional_text_of(fields: Mapping[str, Any], column: str) -> str:
    """The text in a column, "" for null. Raises Unfit when the column is missing or holds something else."""
    if column not in fields:
        raise Unfit("missing_column", column)
    return text_value(fields[column], column)


def text_value(value: object, place: str) -> str:
    """A value as text: null is "", whole numbers and true/false as JSON writes them. Raises Unfit for others."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str):
        raise Unfit("wrong_type", f"{place}: {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # a lone surrogate, as "\ud800" in JSON gives
        raise Unfit("invalid_encoding", f"{place}: U+{ord(value[error.start]):04X}") from None
    return value
