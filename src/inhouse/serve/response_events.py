"""An answer as a response object of the Responses API, and as the events that build it up."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

from inhouse.core.serving import Delta, Usage

Json = dict[str, Any]
INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


class ResponseEvents:
    """Takes an answer's pieces; gives the events of a stream, and keeps the object that they build."""

    def __init__(self, shown: Json) -> None:
        self.object: Json = {**shown, "status": "in_progress", "output": [], "usage": None}
        self._number = 0
        self._open: Item | None = None
        self._call = -1  # index of the tool call that is open
        self._early: list[Json] = []  # log-probabilities of tokens whose text is still to come
        self._finish: str | None = None

    def begin(self) -> list[Json]:
        """Before the first piece."""
        return [self._whole("response.created"), self._whole("response.in_progress")]

    def add(self, deltas: list[Delta]) -> list[Json]:
        """What the pieces that arrived together add."""
        events: list[Json] = []
        for delta in deltas:
            if delta.reasoning:
                events += self._to("reasoning") + self._gain(delta.reasoning, ())
            if delta.text:
                events += self._to("message") + self._gain(delta.text, [*self._early, *(delta.logprobs or ())])
                self._early = []
            elif delta.logprobs and not (delta.reasoning or delta.tool_calls):
                self._early += delta.logprobs
            for raw in delta.tool_calls or ():
                events += self._tool_call(raw)
            self._finish = delta.finish or self._finish
        return events

    def end(self, usage: Usage) -> list[Json]:
        """After the last piece."""
        events = [] if self.object["output"] else self._to("message")
        if self._early and self._open is not None and self._open.kind == "message":
            events += self._gain("", self._early)
        reason = INCOMPLETE.get(self._finish or "")
        events += self._close("incomplete" if reason else "completed")
        self.object |= {
            "status": "incomplete" if reason else "completed",
            "incomplete_details": {"reason": reason} if reason else None,
            "completed_at": None if reason else int(time.time()),
            "usage": usage_of(usage),
        }
        return [*events, self._whole(f"response.{self.object['status']}")]

    def fail(self, code: str, message: str) -> list[Json]:
        """The answer broke off."""
        events = self._close("incomplete")
        self.object |= {"status": "failed", "error": {"code": code, "message": message}}
        return [*events, self._whole("response.failed")]

    def _whole(self, kind: str) -> Json:
        return self._event(kind, {"response": json.loads(json.dumps(self.object))})

    def _event(self, kind: str, facts: Json) -> Json:
        event = {"type": kind, "sequence_number": self._number, **facts}
        self._number += 1
        return event

    def _told(self, kind: str, facts: Json) -> Json:
        """An event of the item that is open."""
        assert self._open is not None
        return self._event(kind, {"output_index": self._open.index, **facts})

    def _to(self, kind: str, started: Json | None = None) -> list[Json]:
        """Go on with an item of this kind: close another one, open this one."""
        if started is None and self._open is not None and self._open.kind == kind:
            return []
        events = self._close("completed")
        self._open = Item(kind, len(self.object["output"]), started or {})
        self.object["output"].append(self._open.object)
        events.append(self._told("response.output_item.added", {"item": self._open.shown()}))
        if self._open.part is not None:
            where = {"item_id": self._open.object["id"], "content_index": 0}
            events.append(self._told("response.content_part.added", {**where, "part": dict(self._open.part)}))
            self._open.object["content"].append(self._open.part)
        return events

    def _gain(self, gained: str, logprobs: Any) -> list[Json]:
        assert self._open is not None
        facts: Json = {"item_id": self._open.object["id"], "delta": gained}
        if self._open.part is not None:
            facts["content_index"] = 0
            self._open.logprobs.extend(logprobs)
        if self._open.kind == "message":
            facts["logprobs"] = list(logprobs)
        self._open.pieces.append(gained)
        return [self._told(f"response.{self._open.field}.delta", facts)]

    def _tool_call(self, raw: Json) -> list[Json]:
        """A piece of a tool call: id and name come once, the arguments in parts."""
        events: list[Json] = []
        self._early = []
        named = raw.get("function") or {}
        index = raw.get("index", 0)
        if self._open is None or self._open.kind != "function_call" or index != self._call:
            self._call = index
            started = {"call_id": raw.get("id") or f"call_{secrets.token_hex(12)}", "name": named.get("name") or ""}
            events += self._to("function_call", started)
        if arguments := named.get("arguments"):
            events += self._gain(arguments, ())
        return events

    def _close(self, status: str) -> list[Json]:
        """End the open item."""
        item = self._open
        if item is None:
            return []
        whole = "".join(item.pieces)
        item.object["status"] = status
        facts: Json = {"item_id": item.object["id"]}
        if item.part is None:
            item.object["arguments"] = whole
            facts |= {"arguments": whole, "name": item.object["name"]}
        else:
            item.part["text"] = whole
            facts |= {"content_index": 0, "text": whole}
        if item.kind == "message":
            facts["logprobs"] = item.logprobs
            if item.part is not None and item.logprobs:
                item.part["logprobs"] = item.logprobs
        events = [self._told(f"response.{item.field}.done", facts)]
        if item.part is not None:
            where = {"item_id": item.object["id"], "content_index": 0}
            events.append(self._told("response.content_part.done", {**where, "part": dict(item.part)}))
        events.append(self._told("response.output_item.done", {"item": item.shown()}))
        self._open = None
        return events


class Item:
    """An item of the output while it is made."""

    def __init__(self, kind: str, index: int, started: Json) -> None:
        self.kind = kind
        self.index = index
        self.pieces: list[str] = []
        self.logprobs: list[Json] = []
        self.part: Json | None = None
        prefix = {"message": "msg", "reasoning": "rs", "function_call": "fc"}[kind]
        self.object: Json = {"id": f"{prefix}_{secrets.token_hex(16)}", "type": kind, "status": "in_progress"}
        if kind == "message":
            self.field = "output_text"
            self.object |= {"role": "assistant", "content": []}
            self.part = {"type": "output_text", "text": "", "annotations": []}
        elif kind == "reasoning":
            self.field = "reasoning_text"
            self.object |= {"summary": [], "content": []}
            self.part = {"type": "reasoning_text", "text": ""}
        else:
            self.field = "function_call_arguments"
            self.object |= {**started, "arguments": ""}

    def shown(self) -> Json:
        """As it is now, whatever becomes of it."""
        copy: Json = json.loads(json.dumps(self.object))
        return copy


def usage_of(usage: Usage) -> Json:
    """Tokens as responses tell them; nothing is charged for writing a prompt's cache."""
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.answer,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt + usage.answer,
    }


def sse(events: list[Json]) -> bytes:
    """Events as they go over the wire."""
    lines = [f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n" for event in events]
    return "".join(lines).encode("utf-8", "replace")
