"""A record understood but not yet a row: texts that the steps may change, and what is needed to finish it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from inhouse.core.rows import Message, after_question
from inhouse.core.tool_words import defined
from inhouse.data.records import Unfit
from inhouse.data.shapes.calls import CALL, mapped, texts_in

WORSE = "rejected"  # the name of a text of the worse answer


@dataclass(frozen=True, slots=True)
class Draft:
    """`names[i]` is the role or column of `texts[i]`, or CALL for a text inside a tool call; no text is blank.

    Conversations keep their `turns`. Their texts come first, then those of `rejected`, the turns of the worse answer,
    named WORSE.
    """

    names: tuple[str, ...]
    texts: tuple[str, ...]
    label: str | None = None
    turns: tuple[Message, ...] = ()
    tools: tuple[dict[str, Any], ...] | None = None
    rejected: tuple[Message, ...] | None = None
    desirable: bool | None = None

    @property
    def answers(self) -> tuple[bool, ...]:
        """Which of the texts the model is to learn to say."""
        return tuple(name in ("assistant", CALL, WORSE) for name in self.names)


def conversation(turns: Sequence[Message]) -> Draft:
    """A draft whose texts are the contents of the turns, before each those in its tool calls.

    Raises Unfit without a question or a final answer.
    """
    if not turns or turns[-1].role != "assistant" or not any(turn.learned for turn in turns):
        raise Unfit("no_answer", turns[-1].role if turns else "")
    if not any(turn.role == "user" for turn in turns):
        raise Unfit("no_prompt")
    spoken = list(_spoken(turns))
    return Draft(tuple(role for role, _ in spoken), tuple(content for _, content in spoken), None, tuple(turns))


def preference(better: Sequence[Message], worse: Sequence[Message]) -> Draft:
    """A draft of two conversations that differ after the last question only. Raises Unfit when they do not."""
    draft, other = conversation(better), conversation(worse)
    if not better[-1].learned or not worse[-1].learned:
        raise Unfit("no_answer", "assistant")
    asked = after_question(better)
    if list(better[:asked]) != list(worse[:asked]) or after_question(worse) != asked:
        raise Unfit("turns_differ")
    if list(better) == list(worse):
        raise Unfit("same_answer")
    told = [(CALL if name == CALL else WORSE, text) for name, text in _spoken(other.turns[asked:])]
    return replace(
        draft,
        names=(*draft.names, *(name for name, _ in told)),
        texts=(*draft.texts, *(text for _, text in told)),
        rejected=other.turns[asked:],
    )


def _spoken(turns: Sequence[Message]) -> Iterator[tuple[str, str]]:
    for turn in turns:
        if turn.tool_calls:
            yield from ((CALL, text_value(text, "tool_calls")) for text in texts_in(turn.tool_calls))
        if turn.content is not None:
            yield turn.role, turn.content


def tools_of(value: object) -> tuple[dict[str, Any], ...] | None:
    """Definitions of tools: a list of objects, or JSON of one; None where there are none. Raises Unfit for others.

    They are put as requests have them: functions with name, description and parameters, in this order.
    """
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise Unfit("wrong_type", "tools: not JSON") from None
    if value is None or value in ("", []):
        return None
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tools_of(f"[{','.join(value)}]")  # a definition each, as ms-swift takes them too
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise Unfit("wrong_type", f"tools: {type(value).__name__}")
    text_value(json.dumps(value, ensure_ascii=False), "tools")
    return tuple(defined(without_nulls(item)) for item in value)


def without_nulls(value: Any) -> Any:
    """The same without keys that hold nothing: in a table, each definition has the keys of all."""
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: without_nulls(item) for key, item in value.items() if item is not None}


def retold(draft: Draft, texts: Sequence[str]) -> list[Message]:
    """The turns of a conversation with the texts that the steps left."""
    return _retold(draft.turns, iter(texts))


def worse_told(draft: Draft, texts: Sequence[str]) -> list[Message] | None:
    """The turns of the worse answer with the texts that the steps left."""
    if draft.rejected is None:
        return None
    left = iter(texts)
    _retold(draft.turns, left)
    return _retold(draft.rejected, left)


def _retold(turns: Sequence[Message], left: Iterator[str]) -> list[Message]:
    told = []
    for turn in turns:
        changed: dict[str, Any] = {}
        if turn.tool_calls:
            changed["tool_calls"] = mapped(turn.tool_calls, lambda _: next(left))
        if turn.content is not None:
            changed["content"] = next(left)
        told.append(turn.model_copy(update=changed))
    return told


def opened(fields: Mapping[str, Any], turns: Sequence[Message]) -> list[Message]:
    """Turns behind what a column `system` says, unless they begin with a system turn of their own."""
    system = optional_text_of(fields, "system") if "system" in fields else ""
    if not system.strip() or (turns and turns[0].role == "system"):
        return list(turns)
    return [Message(role="system", content=system), *turns]


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
