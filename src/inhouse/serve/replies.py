"""Answers in OpenAI's shape: sent piece by piece, or gathered and sent whole."""

from __future__ import annotations

import json
import time
from json.encoder import encode_basestring
from typing import Any, Protocol

from inhouse.core.serving import Delta, Usage
from inhouse.serve.http import Connection
from inhouse.serve.ids import new_id
from inhouse.serve.requests import Asked

Json = dict[str, Any]


class Reply(Protocol):
    """What makes of an answer's pieces what one kind of client expects."""

    @property
    def sent(self) -> bool:
        """Whether the client has seen something: then the answer cannot be begun again."""
        ...

    async def add(self, deltas: list[Delta]) -> None:
        """Take what arrived together."""
        ...

    def push(self, deltas: list[Delta]) -> bool:
        """Take it without waiting for the client, if that can be; False: nothing was taken, `add` it."""
        return False

    async def finish(self, usage: Usage) -> None:
        """The answer is whole."""
        ...

    def reset(self) -> None:
        """Begin again, after an engine was lost on the way; only called when nothing was sent."""
        ...


def usage_dict(usage: Usage) -> Json:
    """As clients get it."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.answer,
        "total_tokens": usage.prompt + usage.answer,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
    }


class StreamReply(Reply):
    """Pass an answer on as server-sent events while it is made."""

    def __init__(self, connection: Connection, asked: Asked) -> None:
        self.connection = connection
        self.asked = asked
        self.chat = asked.chat
        kind = "chat.completion.chunk" if asked.chat else "text_completion"
        head = {
            "id": new_id("chatcmpl" if asked.chat else "cmpl"),
            "object": kind,
            "created": int(time.time()),
            "model": asked.model,
        }
        self._spoken: set[int] = set()
        self._offsets: dict[int, int] = {}
        # The part that all events share is encoded once.
        self._prefix = "data: " + json.dumps(head, ensure_ascii=False)[:-1] + ', "choices": ['
        gained, end = ('"delta": {"content": ', "}") if asked.chat else ('"text": ', "")
        self._before = f'{self._prefix}{{"index": 0, {gained}'
        self._after = f'{end}, "logprobs": null, "finish_reason": null}}]}}\n\n'

    @property
    def sent(self) -> bool:
        """Whether the client has seen something of the answer."""
        return bool(self._spoken)

    async def add(self, deltas: list[Delta]) -> None:
        """Send what arrived together in one write. Each event is whole JSON, so no character is ever split."""
        if events := self._events(deltas):
            await self.connection.open_events()
            await self.connection.write(events)

    def push(self, deltas: list[Delta]) -> bool:
        """The same, once the answer has begun and while the client reads it."""
        exchange = self.connection.exchange
        if exchange is None or not exchange.flows:
            return False
        if events := self._events(deltas):
            self.connection.wrote_at = time.monotonic()
            exchange.write(events)
        return True

    async def finish(self, usage: Usage) -> None:
        """Send the usage when it was asked for, and the end mark."""
        last = ""
        if self.asked.usage:
            last = self._prefix + '], "usage": ' + json.dumps(usage_dict(usage)) + "}\n\n"
        await self.connection.open_events()
        await self.connection.write(last.encode() + b"data: [DONE]\n\n", more=False)

    def reset(self) -> None:
        """Begin again; only called when nothing was sent."""
        self._spoken.clear()
        self._offsets.clear()

    def _events(self, deltas: list[Delta]) -> bytes:
        events = self._event(deltas[0]) if len(deltas) == 1 else "".join([self._event(delta) for delta in deltas])
        return events.encode("utf-8", "replace")

    def _event(self, delta: Delta) -> str:
        """One event; the usual one, a piece of text and nothing else, is put together without a JSON encoder."""
        index = delta.index
        first = index not in self._spoken
        if not (first or index or delta.finish or delta.logprobs or delta.tool_calls or delta.reasoning):
            return f"{self._before}{encode_basestring(delta.text)}{self._after}" if delta.text else ""
        if delta.usage is not None and not (delta.text or delta.finish or delta.tool_calls or delta.logprobs):
            return ""
        # Choices begin in their order, as OpenAI's do: its client's own accumulator takes that for granted.
        begun = [self._event(Delta(index=at, tokens=0)) for at in range(index) if first and at not in self._spoken]
        self._spoken.add(index)
        choice: Json = {"index": index}
        if self.chat:
            choice["delta"] = told = chat_delta(delta, first)
            if self.asked.old_calls:
                old_call(told)
            choice["logprobs"] = {"content": delta.logprobs} if delta.logprobs else None
        else:
            choice["text"] = delta.text
            choice["logprobs"] = self._legacy(delta)
        choice["finish_reason"] = old_finish(delta.finish) if self.asked.old_calls else delta.finish
        return "".join(begun) + self._prefix + json.dumps(choice, ensure_ascii=False) + "]}\n\n"

    def _legacy(self, delta: Delta) -> Json | None:
        if not delta.logprobs:
            return None
        begin = self._offsets.get(delta.index, 0)
        self._offsets[delta.index] = begin + len(delta.text)
        return legacy_logprobs(delta.logprobs, begin)


class WholeReply(Reply):
    """Gather an answer and send it as one JSON object."""

    def __init__(self, connection: Connection, asked: Asked) -> None:
        self.connection = connection
        self.asked = asked
        self.gathered = Gathered()
        self.body = b""  # what was sent

    @property
    def sent(self) -> bool:
        """Nothing is sent before the end."""
        return False

    async def add(self, deltas: list[Delta]) -> None:
        """Keep what arrived."""
        self.gathered.add(deltas)

    def push(self, deltas: list[Delta]) -> bool:
        """Keep it: nobody has to be waited for."""
        self.gathered.add(deltas)
        return True

    async def finish(self, usage: Usage) -> None:
        """Send the object."""
        self.body = self._plain(usage) or json.dumps(self.whole(usage), ensure_ascii=False).encode("utf-8", "replace")
        await self.connection.reply(200, self.body)

    def _plain(self, usage: Usage) -> bytes | None:
        """The usual answer, one text and nothing else, put together without a JSON encoder; None for any other."""
        found = self.gathered.choices.get(0)
        if found is None or len(self.gathered.choices) != 1 or self.asked.ask.sampling.n != 1 or not self.asked.chat:
            return None
        if found.calls or found.thoughts or found.logprobs or found.finish is None:
            return None
        return (
            f'{{"id": "{new_id("chatcmpl")}", "object": "chat.completion", "created": {int(time.time())}, '
            f'"model": {encode_basestring(self.asked.model)}, "choices": [{{"index": 0, "message": '
            f'{{"role": "assistant", "content": {encode_basestring(found.text)}, "refusal": null}}, '
            f'"logprobs": null, "finish_reason": "{found.finish}"}}], "usage": {{"prompt_tokens": {usage.prompt}, '
            f'"completion_tokens": {usage.answer}, "total_tokens": {usage.prompt + usage.answer}, '
            f'"prompt_tokens_details": {{"cached_tokens": {usage.cached}}}}}}}'
        ).encode("utf-8", "replace")

    def whole(self, usage: Usage) -> Json:
        """The answer as one object."""
        chat = self.asked.chat
        return {
            "id": new_id("chatcmpl" if chat else "cmpl"),
            "object": "chat.completion" if chat else "text_completion",
            "created": int(time.time()),
            "model": self.asked.model,
            "choices": [self._choice(index) for index in range(self.asked.ask.sampling.n)],
            "usage": usage_dict(usage),
        }

    def reset(self) -> None:
        """Begin again."""
        self.gathered = Gathered()

    def _choice(self, index: int) -> Json:
        found = self.gathered.choices.get(index) or Choice()
        if self.asked.chat:
            logprobs = {"content": found.logprobs} if found.logprobs else None
            message, finish = found.message(), found.finish
            if self.asked.old_calls:
                old_call(message)
                finish = old_finish(finish)
            return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}
        legacy = legacy_logprobs(found.logprobs, 0) if found.logprobs else None
        return {"index": index, "text": found.text, "logprobs": legacy, "finish_reason": found.finish}


class Choice:
    """One answer, put together from its pieces."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.thoughts: list[str] = []
        self.logprobs: list[Json] = []
        self.calls: dict[int, Json] = {}
        self.finish: str | None = None
        self.stop: str | None = None

    @property
    def text(self) -> str:
        """All of its text."""
        return "".join(self.pieces)

    @property
    def tool_calls(self) -> list[Json]:
        """Its tool calls, in the order of their index."""
        return [self.calls[place] for place in sorted(self.calls)]

    def add(self, delta: Delta) -> None:
        """Keep one piece."""
        if delta.text:
            self.pieces.append(delta.text)
        if delta.reasoning:
            self.thoughts.append(delta.reasoning)
        if delta.logprobs:
            self.logprobs.extend(delta.logprobs)
        for raw in delta.tool_calls or ():
            self._call(raw)
        self.finish = delta.finish or self.finish
        self.stop = delta.stop or self.stop

    def message(self) -> Json:
        """As the message of a chat answer."""
        said: Json = {"role": "assistant", "content": self.text}
        if self.thoughts:
            said["reasoning_content"] = "".join(self.thoughts)
        if self.calls:
            said |= {"content": self.text or None, "tool_calls": self.tool_calls}
        return said | {"refusal": None}

    def _call(self, raw: Json) -> None:
        """A piece of a tool call: id and name come once, the arguments in parts."""
        named = raw.get("function") or {}
        call = self.calls.setdefault(
            raw.get("index", 0), {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
        )
        call["id"] = raw.get("id") or call["id"]
        call["function"]["name"] = named.get("name") or call["function"]["name"]
        call["function"]["arguments"] += named.get("arguments") or ""


class Gathered:
    """Every choice of an answer, put together."""

    def __init__(self) -> None:
        self.choices: dict[int, Choice] = {}

    def add(self, deltas: list[Delta]) -> None:
        """Keep what arrived."""
        for delta in deltas:
            choice = self.choices.get(delta.index)
            if choice is None:
                choice = self.choices[delta.index] = Choice()
            choice.add(delta)


def chat_delta(delta: Delta, first: bool) -> Json:
    """A chat delta in OpenAI's fields; the role is in the first one of each choice."""
    gained: Json = {"role": "assistant", "content": delta.text} if first else {}
    if delta.text:
        gained["content"] = delta.text
    if delta.reasoning:
        gained["reasoning_content"] = delta.reasoning
    if delta.tool_calls:
        gained["tool_calls"] = delta.tool_calls
        if first and not delta.text:
            gained["content"] = None
    return gained


def old_call(told: Json) -> None:
    """Put the first tool call where clients look that asked by `functions`."""
    calls = told.pop("tool_calls", None)
    if calls:
        told["function_call"] = {name: value for name, value in calls[0]["function"].items() if value is not None}


def old_finish(finish: str | None) -> str | None:
    """How such clients are told that there is a call."""
    return "function_call" if finish == "tool_calls" else finish


def legacy_logprobs(entries: list[Json], begin: int) -> Json:
    """Chat's log-probabilities in the shape that completions have. `begin`: characters before these tokens."""
    offsets = []
    for entry in entries:
        offsets.append(begin)
        begin += len(entry["token"])
    return {
        "tokens": [legacy_token(entry) for entry in entries],
        "token_logprobs": [entry["logprob"] for entry in entries],
        "top_logprobs": [
            {legacy_token(top): top["logprob"] for top in entry.get("top_logprobs", ())} or None for entry in entries
        ],
        "text_offset": offsets,
    }


def legacy_token(entry: Json) -> str:
    """A token's text; one that is a part of a character as OpenAI's completions write it, `bytes:\\xe6\\xb1`.

    By its text alone, which is a replacement character, different tokens would have one name.
    """
    raw = entry.get("bytes")
    if "\ufffd" not in entry["token"] or not raw:
        return str(entry["token"])
    try:
        return bytes(raw).decode()
    except ValueError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
