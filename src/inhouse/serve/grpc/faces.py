"""Answers over gRPC: gathered into one message, or sent piece by piece."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc.aio

from inhouse.core.messages import text
from inhouse.core.serving import Delta, Usage
from inhouse.serve.errors import ApiError
from inhouse.serve.grpc.messages import chat_choice, chat_delta, message, text_choice, usage_of
from inhouse.serve.ids import new_id
from inhouse.serve.pipeline import Caller
from inhouse.serve.replies import Choice, Gathered, Reply
from inhouse.serve.requests import Asked

STALLED_S = 30.0  # a piece of an answer that its client does not read


def head_of(asked: Asked, kind: str) -> Any:
    """An empty message with what all messages of an answer share."""
    own = new_id("chatcmpl" if asked.chat else "cmpl")
    return message(kind)(id=own, created=int(time.time()), model=asked.model)


async def tell(context: Any, caller: Caller) -> None:
    """Send the metadata that comes before the answer: request id, release, cache."""
    notes = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in caller.notes]
    await context.send_initial_metadata((("x-request-id", caller.request_id), *notes))


class WholeFace(Reply):
    """Gathers an answer into one message."""

    sent = False

    def __init__(self, context: Any, caller: Caller) -> None:
        self.context = context
        self.caller = caller
        self.made: Any = None
        self._asked: Asked | None = None
        self._gathered = Gathered()

    def begin(self, asked: Asked, release: str) -> Reply:
        """Note which release answers."""
        self.caller.notes.append((b"x-inhouse-release", release.encode()))
        self._asked = asked
        return self

    async def add(self, deltas: list[Delta]) -> None:
        """Keep what arrived."""
        self._gathered.add(deltas)

    async def finish(self, usage: Usage) -> None:
        """Put the message together."""
        asked = self._asked
        assert asked is not None
        self.made = head_of(asked, "ChatCompletion" if asked.chat else "Completion")
        for index in range(asked.ask.sampling.n):
            found = self._gathered.choices.get(index) or Choice()
            if asked.chat:
                self.made.choices.append(chat_choice(index, found))
            else:
                self.made.choices.append(text_choice(index, found.text, found.finish, found.logprobs))
        self.made.usage.CopyFrom(usage_of(usage))
        await tell(self.context, self.caller)

    def reset(self) -> None:
        """Begin again."""
        self._gathered = Gathered()


class StreamFace(Reply):
    """Sends what arrived together as one message."""

    sent = False

    def __init__(self, context: Any, caller: Caller) -> None:
        self.context = context
        self.caller = caller
        self._head: Any = None
        self._chat = True
        self._gone = False

    def begin(self, asked: Asked, release: str) -> Reply:
        """Note which release answers."""
        self.caller.notes.append((b"x-inhouse-release", release.encode()))
        self._chat = asked.chat
        self._head = head_of(asked, "ChatChunk" if asked.chat else "Completion")
        return self

    async def add(self, deltas: list[Delta]) -> None:
        """Send it, unless nothing is in it but the engine's count of tokens."""
        told = [d for d in deltas if d.text or d.finish or d.tool_calls or d.logprobs or d.reasoning]
        if not told:
            return
        if self._chat:
            made = message("ChatChunk")(deltas=[chat_delta(delta) for delta in told])
        else:
            made = message("Completion")(
                choices=[text_choice(d.index, d.text, d.finish, d.logprobs or ()) for d in told]
            )
        await self._write(made)

    async def finish(self, usage: Usage) -> None:
        """Send the usage."""
        await self._write(message("ChatChunk" if self._chat else "Completion")(usage=usage_of(usage)))

    def reset(self) -> None:
        """Nothing is kept; only called when nothing was sent."""

    async def _write(self, made: Any) -> None:
        made.MergeFrom(self._head)
        if self._gone or self.context.done():  # the answer goes on for those who read along
            return
        try:
            if not self.sent:
                self.sent = True
                await tell(self.context, self.caller)
            async with asyncio.timeout(STALLED_S):
                await self.context.write(made)
        except (grpc.aio.InternalError, grpc.aio.UsageError):  # its client has gone meanwhile
            self._gone = True
        except TimeoutError:
            raise ApiError(408, "request_timeout", text("serve_faces.unread", seconds=int(STALLED_S))) from None
