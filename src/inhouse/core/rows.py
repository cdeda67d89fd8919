"""Rows of a dataset: conversations in OpenAI's `messages` shape. How they are stored: inhouse.dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from inhouse.core.tool_words import said

Role = Literal["system", "user", "assistant", "tool"]
Part = Literal["train", "valid", "test"]
PARTS: tuple[Part, ...] = get_args(Part)


class Message(BaseModel):
    """One turn. `content` is null for an assistant turn that only calls tools, and for a tool that says nothing."""

    model_config = ConfigDict(frozen=True)

    role: Role
    content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    weight: Literal[0] | None = Field(None, description="0: a turn of the assistant that is read and not learned")

    @property
    def learned(self) -> bool:
        """Whether a model learns to write this turn."""
        return self.role == "assistant" and self.weight != 0

    def as_dict(self) -> dict[str, Any]:
        """The turn as chat templates and HTTP clients expect it, absent keys left out."""
        told = self.model_dump(exclude={"weight"}, exclude_none=True)
        return {"content": "", **told} if self.role == "tool" else told


class Row(BaseModel):
    """One example. The last message is the wanted answer; `label` is set for classification.

    A plain document, as continued pre-training takes it, is one answer without a question.
    """

    model_config = ConfigDict(frozen=True)

    id: str = Field(description="16 hex digits of H(source hash, place); '#2' and on when a mix repeats the row")
    messages: list[Message]
    tools: list[dict[str, Any]] | None = Field(None, description="tools that may be called, as OpenAI's API takes them")
    rejected: list[Message] | None = Field(None, description="the worse answer: other turns after the last question")
    desirable: bool | None = Field(None, description="whether the answer was liked (thumbs up or down)")
    label: str | None = None
    source: str = Field(description="name of the source it came from")
    file: str = Field("", description="file of that source")
    offset: int = Field(description="row number in that file, from 0")
    parent: str | None = Field(None, description="id of the row it was made from by augmentation")

    @property
    def prompt(self) -> list[Message]:
        """Everything before the answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The wanted answer as text; calls of tools in the words that models without a template for them write."""
        last = self.messages[-1]
        return said(last.content, last.tool_calls or ())

    @property
    def asked(self) -> int:
        """How many turns stand up to the last question: what follows is the answer, tool calls included."""
        return after_question(self.messages)

    @property
    def worse(self) -> list[Message]:
        """The conversation with the worse answer; only where there is one."""
        return [*self.messages[: self.asked], *(self.rejected or ())]


def after_question(messages: Sequence[Message]) -> int:
    """The place after the last user turn; 0 where there is none."""
    return max((at for at, message in enumerate(messages, 1) if message.role == "user"), default=0)
