"""Shapes: how a source's columns become a conversation. Chat shapes are recognised by themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from inhouse.core.params import Params
from inhouse.core.rows import Message
from inhouse.data.shapes import (
    alpaca,
    classification,
    document,
    messages,
    preference,
    prompt_completion,
    sharegpt,
    unpaired,
)
from inhouse.data.shapes.alpaca import AlpacaShape
from inhouse.data.shapes.classification import ClassificationShape
from inhouse.data.shapes.document import TextShape
from inhouse.data.shapes.draft import Draft, retold, tools_of, worse_told
from inhouse.data.shapes.messages import MessagesShape
from inhouse.data.shapes.preference import PreferenceShape
from inhouse.data.shapes.prompt_completion import PromptCompletionShape
from inhouse.data.shapes.sharegpt import ShareGptShape
from inhouse.data.shapes.unpaired import UnpairedShape


class AutoShape(Params):
    """Recognise the shape of each source by its columns."""

    use: Literal["auto"] = "auto"


def _short_form(value: Any) -> Any:
    return {"use": value} if isinstance(value, str) else value


Chat = AlpacaShape | ShareGptShape | MessagesShape | PreferenceShape | UnpairedShape | PromptCompletionShape
Understood = ClassificationShape | TextShape | Chat
Shape = Annotated[
    AutoShape
    | ClassificationShape
    | TextShape
    | AlpacaShape
    | ShareGptShape
    | MessagesShape
    | PromptCompletionShape
    | PreferenceShape
    | UnpairedShape,
    Field(discriminator="use"),
    BeforeValidator(_short_form),
]
CHAT: dict[str, tuple[ModuleType, Chat]] = {
    "messages": (messages, MessagesShape()),
    "sharegpt": (sharegpt, ShareGptShape()),
    "alpaca": (alpaca, AlpacaShape()),
    "preference": (preference, PreferenceShape()),
    "unpaired": (unpaired, UnpairedShape()),
    "prompt_completion": (prompt_completion, PromptCompletionShape()),
}


def recognise(fields: Mapping[str, Any]) -> Chat | TextShape | None:
    """The chat shape of a record with these columns, a document where there is only a text, or None."""
    columns = frozenset(fields)
    liked = isinstance(fields.get("label"), bool)  # any other label says nothing of liking
    named = (item for name, item in CHAT.items() if liked or name != "unpaired")
    if chat := next((shape for module, shape in named if module.matches(columns)), None):
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
    given = fields.get("tools") or fields.get("functions")  # OpenAI's old name
    return replace(found, tools=tools_of(given)) if given else found


def finish(draft: Draft, texts: Sequence[str], shape: Understood) -> list[Message]:
    """The messages of a row from its draft and the texts that the steps left."""
    if isinstance(shape, TextShape):
        return [Message(role="assistant", content=texts[0])]
    if isinstance(shape, ClassificationShape):
        return classification.messages(draft, texts, shape)
    return retold(draft, texts)


def finish_worse(draft: Draft, texts: Sequence[str]) -> list[Message] | None:
    """The turns of a row's worse answer, where it has one."""
    return worse_told(draft, texts)
