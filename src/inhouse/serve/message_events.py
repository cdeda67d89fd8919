"""An answer as Anthropic's message, and as the events that build it up."""

from __future__ import annotations

import json
import secrets
from typing import Any

from inhouse.core.serving import Delta, Usage
from inhouse.serve.replies import Gathered

Json = dict[str, Any]
REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}


def message_of(own: str, model: str, gathered: Gathered, usage: Usage) -> Json:
    """The whole message."""
    content: list[Json] = []
    choice = gathered.choices.get(0)
    if choice is not None:
        if choice.thoughts:
            content.append({"type": "thinking", "thinking": "".join(choice.thoughts), "signature": ""})
        if choice.text or not choice.calls:
            content.append({"type": "text", "text": choice.text})
        for call in choice.tool_calls:
            named = call["function"]
            content.append({"type": "tool_use", "id": call["id"], "name": named["name"], "input": _arguments(named)})
    ended = _ended("stop", None) if choice is None else _ended(choice.finish or "stop", choice.stop)
    return {**_head(own, model), "content": content, **ended, "usage": usage_of(usage)}


def _ended(finish: str, stop: str | None) -> Json:
    """Why it ended, and the stop sequence where that was one."""
    if finish == "stop" and stop is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": stop}
    return {"stop_reason": REASONS[finish], "stop_sequence": None}


def _arguments(named: Json) -> Any:
    """As an object; a call that was cut off in the middle has none."""
    try:
        return json.loads(named["arguments"] or "{}")
    except ValueError:
        return {}


def _head(own: str, model: str) -> Json:
    return {
        "id": own,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def usage_of(usage: Usage) -> Json:
    """Anthropic counts what was found in the cache apart from the rest of the prompt."""
    return {
        "input_tokens": usage.prompt - usage.cached,
        "cache_read_input_tokens": usage.cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": usage.answer,
    }


class MessageEvents:
    """Takes an answer's pieces, gives the events of a stream."""

    def __init__(self, own: str, model: str) -> None:
        self._head = _head(own, model)
        self._index = -1
        self._kind: str | None = None
        self._call = -1
        self._finish = "stop"
        self._stop: str | None = None

    def begin(self) -> list[Json]:
        """Before the first piece; the tokens of the prompt are told at the end."""
        return [{"type": "message_start", "message": {**self._head, "usage": usage_of(Usage(0, 0))}}]

    def add(self, deltas: list[Delta]) -> list[Json]:
        """What the pieces that arrived together add."""
        events: list[Json] = []
        for delta in deltas:
            if delta.reasoning:
                events += self._to("thinking", {"thinking": "", "signature": ""})
                events.append(self._gain({"type": "thinking_delta", "thinking": delta.reasoning}))
            if delta.text:
                events += self._to("text", {"text": ""})
                events.append(self._gain({"type": "text_delta", "text": delta.text}))
            for raw in delta.tool_calls or ():
                events += self._tool_call(raw)
            self._finish = delta.finish or self._finish
            self._stop = delta.stop or self._stop
        return events

    def end(self, usage: Usage) -> list[Json]:
        """After the last piece."""
        ended = _ended(self._finish, self._stop)
        last = {"type": "message_delta", "delta": ended, "usage": usage_of(usage)}
        return [*self._close(), last, {"type": "message_stop"}]

    def _tool_call(self, raw: Json) -> list[Json]:
        events: list[Json] = []
        named = raw.get("function") or {}
        index = raw.get("index", 0)
        if self._kind != "tool_use" or index != self._call:
            events += self._close()
            self._call = index
            own = raw.get("id") or f"toolu_{secrets.token_hex(12)}"
            events += self._to("tool_use", {"id": own, "name": named.get("name") or "", "input": {}})
        if arguments := named.get("arguments"):
            events.append(self._gain({"type": "input_json_delta", "partial_json": arguments}))
        return events

    def _to(self, kind: str, started: Json) -> list[Json]:
        if self._kind == kind:
            return []
        events = self._close()
        self._kind = kind
        self._index += 1
        block = {"type": kind, **started}
        return [*events, {"type": "content_block_start", "index": self._index, "content_block": block}]

    def _gain(self, delta: Json) -> Json:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _close(self) -> list[Json]:
        if self._kind is None:
            return []
        self._kind = None
        return [{"type": "content_block_stop", "index": self._index}]
