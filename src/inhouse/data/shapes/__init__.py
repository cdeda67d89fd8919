"""Shapes: how a source's columns become a conversation. Chat shapes are recognised by themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from inhouse.core.params import Params
from inhouse.core.rows import Message
from inhouse.data.shapes import alpaca, classification, document, messages, prompt_completion, sharegpt
from inhouse.data.shapes.alpaca import AlpacaShape
from inhouse.data.shapes.classification import ClassificationShape
from inhouse.data.shapes.document import TextShape
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
Understood = ClassificationShape | TextShape | Chat
Shape = Annotated[
    AutoShape | ClassificationShape | TextShape | AlpacaShape | ShareGptShape | MessagesShape | PromptCompletionShape,
    Field(discriminator="use"),
    BeforeValidator(_short_form),
]
CHAT: dict[str, tuple[ModuleType, Chat]] = {
    "messages": (messages, MessagesShape()),
    "sharegpt": (sharegpt, ShareGptShape()),
    "alpaca": (alpaca, AlpacaShape()),
    "prompt_completion": (prompt_completion, PromptCompletionShape()),
}


def recognise(columns: frozenset[str]) -> Chat | TextShape | None:
    """The chat shape of a record with these columns, a document where there is only a text, or None."""
    if chat := next((shape for module, shape in CHAT.values() if module.matches(columns)), None):
        return chat
    return TextShape() if document.matches(columns) else None


def fits(shape: Understood, columns: frozenset[str]) -> bool:
    """Whether a record with these columns can have this shape."""
    if isinstance(shape, TextShape):
        return shape.column in columns
    if isinstance(shape, ClassificationShape):
        return set(classification.columns_of(shape)) <= columns
    return bool(CHAT[shape.use][0].matches(columns))


def needed_by(shape: Understood) -> str:
    """The columns that a shape needs, for a person."""
    if isinstance(shape, TextShape):
        return shape.column
    if isinstance(shape, ClassificationShape):
        return ", ".join(classification.columns_of(shape))
    return str(CHAT[shape.use][0].COLUMNS)


def expected() -> str:
    """The shapes that are recognised and their columns, for a person."""
    known = {name: module.COLUMNS for name, (module, _) in CHAT.items()} | {"text": document.COLUMNS}
    return "; ".join(f"{name} ({columns})" for name, columns in known.items())


def draft_of(fields: Mapping[str, Any], shape: Understood) -> Draft:
    """Understand a record. Raises Unfit with the reason when its content does not fit the shape."""
    if isinstance(shape, TextShape):
        return document.draft(fields, shape)
    if isinstance(shape, ClassificationShape):
        return classification.draft(fields, shape)
    found: Draft = CHAT[shape.use][0].draft(fields, shape)
    return found


def finish(draft: Draft, texts: Sequence[str], shape: Understood) -> list[Message]:
    """The messages of a row from its draft and the texts that the steps left."""
    if isinstance(shape, TextShape):
        return [Message(role="assistant", content=texts[0])]
    if isinstance(shape, ClassificationShape):
        return classification.messages(draft, texts, shape)
    return retold(draft, texts)
