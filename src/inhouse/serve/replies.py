"""Answers in OpenAI's shape: sent chunk by chunk, or gathered and sent whole."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol

from inhouse.serve.errors import ApiError
from inhouse.serve.metrics import Measured
from inhouse.serve.requests import Asked

Send = Callable[[dict[str, Any]], Awaitable[None]]
Header = tuple[bytes, bytes]
Chunk = dict[str, Any]


class Connection:
    """The client's side of one request: what was sent, and with which headers."""

    def __init__(self, send: Send, request_id: str) -> None:
        self.send = send
        self.headers: list[Header] = [(b"x-request-id", request_id.encode())]
        self.status = 0

    async def start(self, status: int, content_type: bytes, extra: Iterable[Header] = ()) -> None:
        """Send status and headers."""
        self.status = status
        headers = [(b"content-type", content_type), *self.headers, *extra]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, body: bytes, more: bool = True) -> None:
        """Send a piece of the body."""
        await self.send({"type": "http.response.body", "body": body, "more_body": more})

    async def reply(
        self, status: int, body: bytes, content_type: bytes = b"application/json", extra: Iterable[Header] = ()
    ) -> None:
        """Send a whole answer."""
        await self.start(status, content_type, [(b"content-length", str(len(body)).encode()), *extra])
        await self.write(body, more=False)

    async def refuse(self, error: ApiError) -> None:
        """Send an error: as a reply, or as the last event of a stream that has begun."""
        if self.status:
            await self.write(b"data: " + error.body() + b"\n\n", more=False)
        else:
            await self.reply(error.status, error.body(), extra=error.headers)


class Reply(Protocol):
    """What gathers the engine's chunks."""

    async def add(self, chunk: Chunk) -> None: ...

    async def finish(self) -> None: ...

    def reset(self) -> None: ...


class Usage:
    """Token counts; with several choices the engine reports each by itself, with the prompt in every report."""

    def __init__(self) -> None:
        self.prompt = 0
        self.answer = 0

    def add(self, usage: dict[str, Any]) -> None:
        """Count one report."""
        self.prompt = int(usage["prompt_tokens"])
        self.answer += int(usage["completion_tokens"])

    def as_dict(self) -> dict[str, int]:
        """As clients get it."""
        total = self.prompt + self.answer
        return {"prompt_tokens": self.prompt, "completion_tokens": self.answer, "total_tokens": total}


class StreamReply:
    """Pass an answer on as server-sent events while it is made."""

    def __init__(self, connection: Connection, asked: Asked, seen: Measured) -> None:
        self.connection = connection
        self.asked = asked
        self.seen = seen
        self.usage = Usage()
        kind = "chat.completion.chunk" if asked.chat else "text_completion"
        head = {"id": new_id(asked.chat), "object": kind, "created": int(time.time()), "model": asked.model}
        self.spoken: set[int] = set()
        # The part that all events share is encoded once.
        self.prefix = b"data: " + json.dumps(head, ensure_ascii=False).encode()[:-1] + b', "choices": '

    async def add(self, chunk: Chunk) -> None:
        """Send one chunk. Each event is whole JSON, so no character is ever split."""
        if usage := chunk.get("usage"):
            self.usage.add(usage)
        choices = [_choice(c, self.asked.chat, self.seen) for c in chunk["choices"]]
        if not choices:
            return
        if self.asked.chat:
            self._say_role(choices)
        if not self.connection.status:
            await self.connection.start(200, b"text/event-stream; charset=utf-8", [(b"cache-control", b"no-cache")])
        await self.connection.write(self.prefix + json.dumps(choices, ensure_ascii=False).encode() + b"}\n\n")

    async def finish(self) -> None:
        """Send the usage when it was asked for, and the end mark."""
        self.seen.prompt_tokens, self.seen.answer_tokens = self.usage.prompt, self.usage.answer
        last = b""
        if self.asked.usage:
            last = self.prefix + b'[], "usage": ' + json.dumps(self.usage.as_dict()).encode() + b"}\n\n"
        await self.connection.write(last + b"data: [DONE]\n\n", more=False)

    def reset(self) -> None:
        """Begin again; only called when nothing was sent."""
        self.usage = Usage()
        self.spoken = set()

    def _say_role(self, choices: list[Chunk]) -> None:
        """Put the role into the first delta of each choice: llama.cpp leaves it out when that is a split character."""
        for choice in choices:
            if choice["index"] not in self.spoken:
                self.spoken.add(choice["index"])
                choice["delta"] = {"role": "assistant", "content": choice["delta"].get("content") or ""}


class WholeReply:
    """Gather an answer and send it as one JSON object."""

    def __init__(self, connection: Connection, asked: Asked, seen: Measured) -> None:
        self.connection = connection
        self.asked = asked
        self.seen = seen
        self.reset()

    def reset(self) -> None:
        """Begin again, after an engine was lost on the way."""
        self.usage = Usage()
        self.texts: dict[int, list[str]] = {}
        self.finishes: dict[int, str] = {}
        self.logprobs: dict[int, list[Any]] = {}

    async def add(self, chunk: Chunk) -> None:
        """Keep one chunk."""
        if usage := chunk.get("usage"):
            self.usage.add(usage)
        for raw in chunk["choices"]:
            choice = _choice(raw, self.asked.chat, self.seen)
            index = choice["index"]
            piece = choice["delta"].get("content") if self.asked.chat else choice["text"]
            self.texts.setdefault(index, []).append(piece or "")
            if choice["logprobs"]:
                self.logprobs.setdefault(index, []).extend(choice["logprobs"]["content"])
            if choice["finish_reason"]:
                self.finishes[index] = choice["finish_reason"]

    async def finish(self) -> None:
        """Send the object."""
        self.seen.prompt_tokens, self.seen.answer_tokens = self.usage.prompt, self.usage.answer
        body = {
            "id": new_id(self.asked.chat),
            "object": "chat.completion" if self.asked.chat else "text_completion",
            "created": int(time.time()),
            "model": self.asked.model,
            "choices": [self._whole(index) for index in sorted(self.texts)],
            "usage": self.usage.as_dict(),
        }
        await self.connection.reply(200, json.dumps(body, ensure_ascii=False).encode())

    def _whole(self, index: int) -> dict[str, Any]:
        text = "".join(self.texts[index])
        found = self.logprobs.get(index)
        ends = {"logprobs": {"content": found} if found else None, "finish_reason": self.finishes.get(index)}
        if self.asked.chat:
            return {"index": index, "message": {"role": "assistant", "content": text}, **ends}
        return {"index": index, "text": text, **ends}


def new_id(chat: bool) -> str:
    """An id for an answer; the engine's own is not passed on."""
    return ("chatcmpl-" if chat else "cmpl-") + secrets.token_hex(12)


def _choice(raw: dict[str, Any], chat: bool, seen: Measured) -> dict[str, Any]:
    """One choice of a chunk, in OpenAI's fields and no others."""
    finish = raw.get("finish_reason")
    seen.finish = finish or seen.finish
    ends = {"logprobs": raw.get("logprobs"), "finish_reason": finish}
    if not chat:
        return {"index": raw["index"], "text": raw["text"], **ends}
    content = raw["delta"].get("content")
    return {"index": raw["index"], "delta": {} if content is None else {"content": content}, **ends}
