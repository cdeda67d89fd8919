"""Shapes: how a source's columns become a conversation. Chat shapes are recognised by themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from inhouse.core.params import Params
from inhouse.core.rows import Message
from inhouse.data.shapes import alpaca, classification, messages, prompt_completion, sharegpt
from inhouse.data.shapes.alpaca import AlpacaShape
from inhouse.data.shapes.classification import ClassificationShape
from inhouse.data.shapes.draft import Draft, retold
from inhouse.data.shapes.messages import MessagesShape
from inhouse.data.shapes.prompt_completion import PromptCompletionShape
from inhouse.data.shapes.sharegpt import ShareGptShape


class AutoShape(Params):
    """Recognise the shape of each source by its columns."""

    use: Literal["auto"] = "auto"


def _short_form(value: Any) -> Any:
    return {"use": value} if isinstance(value, str) else value


Chat = AlpacaShape | ShareGptShape | MessagesShape | PromptCompletionShape
Shape = Annotated[
    AutoShape | ClassificationShape | AlpacaShape | ShareGptShape | MessagesShape | PromptCompletionShape,
    Field(discriminator="use"),
    BeforeValidator(_short_form),
]
CHAT: dict[str, tuple[ModuleType, Chat]] = {
    "messages": (messages, MessagesShape()),
    "sharegpt": (sharegpt, ShareGptShape()),
    "alpaca": (alpaca, AlpacaShape()),
    "prompt_completion": (prompt_completion, PromptCompletionShape()),
}


def recognise(columns: frozenset[str]) -> Chat | None:
    """The chat shape of a record with these columns, or None."""
    return next((shape for module, shape in CHAT.values() if module.matches(columns)), None)


def fits(shape: ClassificationShape | Chat, columns: frozenset[str]) -> bool:
    """Whether a record with these columns can have this shape."""
    if isinstance(shape, ClassificationShape):
        return set(classification.columns_of(shape)) <= columns
    return bool(CHAT[shape.use][0].matches(columns))


def needed_by(shape: ClassificationShape | Chat) -> str:
    """The columns that a shape needs, for a person."""
    if isinstance(shape, ClassificationShape):
        return ", ".join(classification.columns_of(shape))
    return str(CHAT[shape.use][0].COLUMNS)


def expected() -> str:
    """The chat shapes and their columns, for a person."""
    return "; ".join(f"{name} ({module.COLUMNS})" for name, (module, _) in CHAT.items())


def draft_of(fields: Mapping[str, Any], shape: ClassificationShape | Chat) -> Draft:
    """Understand a record. Raises Unfit with the reason when its content does not fit the shape."""
    if isinstance(shape, ClassificationShape):
        return classification.draft(fields, shape)
    found: Draft = CHAT[shape.use][0].draft(fields, shape)
    return found


def finish(draft: Draft, texts: Sequence[str], shape: ClassificationShape | Chat) -> list[Message]:
    """The messages of a row from its draft and the texts that the steps left."""
    if isinstance(shape, ClassificationShape):
        return classification.messages(draft, texts, shape)
    return retold(draft, texts)
