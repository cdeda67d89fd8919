"""Answers as Ollama's clients read them: lines of JSON while they are made, or one object."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Any

from inhouse.core.serving import Delta, Usage
from inhouse.serve.http import Connection
from inhouse.serve.replies import Choice, Reply
from inhouse.serve.requests import Asked

Json = dict[str, Any]
LINES = b"application/x-ndjson"
NS = 1_000_000_000


def now() -> str:
    """The moment, as Ollama writes it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


class ChatShape:
    """What an answer of /api/chat holds."""

    def said(self, words: str, thoughts: str, calls: list[Json]) -> Json:
        """A piece of it, or all."""
        message: Json = {"role": "assistant", "content": words}
        if thoughts:
            message["thinking"] = thoughts
        if calls:
            message["tool_calls"] = calls
        return {"message": message}


class GenerateShape:
    """What an answer of /api/generate holds."""

    def said(self, words: str, thoughts: str, calls: list[Json]) -> Json:
        """A piece of it, or all."""
        return {"response": words, **({"thinking": thoughts} if thoughts else {})}


Shape = ChatShape | GenerateShape


class Clock:
    """When the parts of an answer began and ended."""

    def __init__(self) -> None:
        self.began = self.last = time.monotonic()
        self.first: float | None = None

    def tick(self) -> None:
        """A piece has come."""
        self.last = time.monotonic()
        self.first = self.first or self.last

    def told(self, usage: Usage, finish: str | None) -> Json:
        """The fields of an answer's end. Where the engine measured nothing: until the first piece, and from there."""
        first = self.first or self.last
        prefill = first - self.began if usage.prefill_s is None else usage.prefill_s
        decode = self.last - first if usage.decode_s is None else usage.decode_s
        total = time.monotonic() - self.began
        if prefill + decode > total:  # from memory: the engine's are those of the answer that was kept
            prefill, decode = first - self.began, self.last - first
        return {
            "done": True,
            "done_reason": "length" if finish == "length" else "stop",
            "total_duration": round(total * NS),
            "load_duration": 0,
            "prompt_eval_count": usage.prompt,
            "prompt_eval_duration": round(prefill * NS),
            "eval_count": usage.answer,
            "eval_duration": round((decode or total - prefill) * NS),  # clients divide by it
        }


class OllamaFace:
    """Sends an answer as Ollama's clients expect it; `name` is the model's, as the client wrote it."""

    def __init__(self, connection: Connection, name: str, shape: Shape) -> None:
        self.connection = connection
        self.name = name
        self.shape = shape

    def begin(self, asked: Asked, release: str) -> Reply:
        """Say in headers which release answers, and which fields were not looked at."""
        self.connection.tell(release, asked.ignored)
        return (LinesReply if asked.stream else ObjectReply)(self)


class LinesReply(Reply):
    """A line of JSON for whatever arrived together. Tool calls are told whole, in a line before the last."""

    def __init__(self, face: OllamaFace) -> None:
        self.face = face
        self.clock = Clock()
        self.calls = Choice()

    @property
    def sent(self) -> bool:
        """Whether the client has seen something."""
        return self.face.connection.status != 0

    async def add(self, deltas: list[Delta]) -> None:
        """Send what arrived together."""
        self.clock.tick()
        piece = Choice()
        for delta in deltas:
            piece.add(delta)
            self.calls.finish = delta.finish or self.calls.finish
            if delta.tool_calls:
                self.calls.add(Delta(tool_calls=delta.tool_calls))
        if piece.text or piece.thoughts or piece.logprobs:
            more: Json = {"logprobs": piece.logprobs} if piece.logprobs else {}
            said = self.face.shape.said(piece.text, "".join(piece.thoughts), [])
            await self._write(said | {"done": False} | more)

    async def finish(self, usage: Usage) -> None:
        """Send the calls, and the line that ends the answer."""
        calls, words = calls_of(self.calls)
        if calls or words:
            await self._write(self.face.shape.said(words, "", calls) | {"done": False})
        await self._write(self.face.shape.said("", "", []) | self.clock.told(usage, self.calls.finish), more=False)

    def reset(self) -> None:
        """Begin again; only called when nothing was sent."""
        self.calls = Choice()

    async def _write(self, told: Json, more: bool = True) -> None:
        connection = self.face.connection
        if not connection.status:
            await connection.start(200, LINES, [(b"cache-control", b"no-cache")])
        line = {"model": self.face.name, "created_at": now(), **told}
        await connection.write((json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8", "replace"), more)


class ObjectReply(Reply):
    """Gather an answer and send it as one object."""

    sent = False

    def __init__(self, face: OllamaFace) -> None:
        self.face = face
        self.clock = Clock()
        self.choice = Choice()

    async def add(self, deltas: list[Delta]) -> None:
        """Keep what arrived."""
        self.clock.tick()
        for delta in deltas:
            self.choice.add(delta)

    async def finish(self, usage: Usage) -> None:
        """Send the object."""
        found = self.choice
        calls, words = calls_of(found)
        said = self.face.shape.said(found.text + words, "".join(found.thoughts), calls)
        more: Json = {"logprobs": found.logprobs} if found.logprobs else {}
        told = {"model": self.face.name, "created_at": now(), **said, **self.clock.told(usage, found.finish), **more}
        await self.face.connection.reply(200, json.dumps(told, ensure_ascii=False).encode("utf-8", "replace"))

    def reset(self) -> None:
        """Begin again."""
        self.choice = Choice()


def calls_of(choice: Choice) -> tuple[list[Json], str]:
    """Tool calls with their arguments as objects; a call that was cut off by the length is told as words."""
    calls: list[Json] = []
    words = ""
    for index, call in enumerate(choice.tool_calls):
        function = call["function"]
        try:
            arguments = json.loads(function["arguments"] or "{}")
        except ValueError:
            words += function["arguments"]
            continue
        named = {"index": index, "name": function["name"], "arguments": arguments}
        calls.append({"id": call["id"], "function": named})
    return calls, words
