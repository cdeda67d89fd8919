"""The Responses API: /v1/responses, streamed, kept, in the background."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from inhouse.core.messages import text
from inhouse.core.serving import Delta, Usage
from inhouse.release.stored import new_id
from inhouse.serve.errors import ApiError, invalid, unsupported
from inhouse.serve.http import EVENTS, Call, Connection
from inhouse.serve.kept_responses import OPEN
from inhouse.serve.pipeline import Caller
from inhouse.serve.replies import Reply
from inhouse.serve.requests import (
    Asked,
    Body,
    ChatBody,
    Limits,
    Text,
    prepare,
    read_body,
    read_chat,
    refuse_unsupported,
)
from inhouse.serve.response_events import ResponseEvents, sse
from inhouse.serve.response_items import choice_of, format_of, messages_of, renamed, tools_of
from inhouse.serve.routes import Route, Services
from inhouse.serve.routes.files import page_of, paged

log = logging.getLogger("inhouse.serve")
Json = dict[str, Any]
# Known, and they would change the answer.
UNSUPPORTED = ("conversation", "prompt", "moderation", "context_management", "max_tool_calls")
LOGPROBS = "message.output_text.logprobs"
HARMLESS_INCLUDES = ("reasoning.encrypted_content",)  # there is none to include
Label = Annotated[str, StringConstraints(max_length=64)]
Value = Annotated[str, StringConstraints(max_length=512)]


class ResponseBody(Body):
    """POST /v1/responses. What chat has too is checked as a chat request."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    input: Text | Annotated[list[Any], Field(max_length=2000)]
    instructions: Text | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=2)
    top_logprobs: int | None = Field(None, ge=0, le=20)
    include: Annotated[list[Value], Field(max_length=20)] | None = None
    tools: Annotated[list[Any], Field(max_length=128)] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    text: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    store: bool | None = None
    background: bool | None = None
    previous_response_id: Annotated[str, StringConstraints(max_length=80)] | None = None
    metadata: Annotated[dict[Label, Value], Field(max_length=16)] | None = None
    truncation: str | None = None
    user: Value | None = None
    safety_identifier: Value | None = None
    prompt_cache_key: Value | None = None
    service_tier: Value | None = None

    def items(self) -> list[Any]:
        """The input as items."""
        if isinstance(self.input, str):
            return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": self.input}]}]
        return list(self.input)


@dataclass(frozen=True)
class Asking:
    """A checked request for a response: as chat, and what is told and kept of it."""

    body: ResponseBody
    chat: ChatBody
    items: list[Any]
    shown: Json
    keep: bool
    named: Callable[[ApiError], ApiError]  # a refusal under the names of this body

    async def prepare(self, limits: Limits) -> Asked:
        """What an engine is asked."""
        try:
            asked = await prepare(self.chat, limits)
        except ApiError as error:
            raise self.named(error) from None
        self.shown["temperature"] = asked.ask.sampling.temperature
        here = ("reasoning" if name == "reasoning_effort" else name for name in asked.ignored)  # as the client wrote it
        ignored = sorted({*here, *(self.body.model_extra or {})})
        return replace(asked, ignored=tuple(ignored))


async def create(services: Services, call: Call) -> None:
    """POST /v1/responses."""
    body = read_body(ResponseBody, await call.json_body())
    _check(body)
    assert call.key is not None
    items = body.items()
    before = []
    if body.previous_response_id is not None:
        before = await services.responses.before(call.key.id, body.previous_response_id)
    keep = body.store is not False and not services.responses.off
    chat, named = _as_chat(body, [*before, *items])
    asking = Asking(body, chat, items, _shown(body, keep), keep, named)
    caller = services.caller(call, body.user or body.safety_identifier)
    if body.background:
        await _refuse_at_once(services, caller, asking)
        await _begin(services, call, asking)
        return
    face = ResponseFace(services, call.key.id, asking, call.connection)
    try:
        await call.while_there(services.pipeline.run(body.model, asking.prepare, caller, face), caller.wanted)
    except ApiError as error:
        if not call.connection.status:
            raise renamed(error) from None
        await face.fail(error)


async def retrieve(services: Services, call: Call) -> None:
    """GET /v1/responses/{id}."""
    assert call.key is not None
    if call.query("stream") == "true":
        raise unsupported("stream")
    found = await services.responses.get(call.key.id, call.parts["id"])
    await call.reply(found.body["response"])


async def input_items(services: Services, call: Call) -> None:
    """GET /v1/responses/{id}/input_items: what the client sent, the last one first unless it asks otherwise."""
    assert call.key is not None
    page = page_of(call, usual=20, most=100)
    found = await services.responses.get(call.key.id, call.parts["id"])
    items = [{"id": f"item_{index}", **item} for index, item in enumerate(found.body["items"])]
    if page.newest_first:
        items.reverse()
    behind = next((at for at, item in enumerate(items, 1) if item["id"] == page.after), 0)
    await call.reply(paged(items[behind:], page.limit))


async def cancel(services: Services, call: Call) -> None:
    """POST /v1/responses/{id}/cancel: end a response that is made in the background."""
    assert call.key is not None
    found = await services.responses.get(call.key.id, call.parts["id"])
    shown: Json = found.body["response"]
    if not shown["background"]:
        raise invalid(text("serve.response_not_background"), "response_id")
    if shown["status"] in OPEN:
        await services.background.end(call.key.id, found.id)
        shown = await services.responses.cancel(call.key.id, found.id)
    await call.reply(shown)


async def delete(services: Services, call: Call) -> None:
    """DELETE /v1/responses/{id}."""
    assert call.key is not None
    found = await services.responses.get(call.key.id, call.parts["id"])  # before anything is ended: is it theirs?
    await services.background.end(call.key.id, found.id)
    await services.responses.delete(call.key.id, found.id)
    await call.reply({"id": found.id, "object": "response", "deleted": True})


class ResponseFace(Reply):
    """Sends an answer as the Responses API has it, and keeps it."""

    def __init__(self, services: Services, key: int, asking: Asking, connection: Connection | None) -> None:
        self.services = services
        self.key = key
        self.asking = asking
        self.connection = connection  # None in the background
        self.stream = bool(asking.body.stream)
        self._events = ResponseEvents(asking.shown)
        self._begun = False

    def begin(self, asked: Asked, release: str) -> Reply:
        """Say in headers which release answers."""
        if self.connection is not None:
            self.connection.tell(release, asked.ignored)
        return self

    @property
    def sent(self) -> bool:
        """Whether the client has seen something."""
        return self.connection is not None and self.connection.status != 0

    async def add(self, deltas: list[Delta]) -> None:
        """Take what arrived together."""
        await self._send(self._start() + self._events.add(deltas), more=True)

    async def finish(self, usage: Usage) -> None:
        """The answer is whole: keep it before its client knows, who may go on with it at once."""
        events = self._start() + self._events.end(usage)
        whole = self._events.object
        if self.asking.keep:
            await self.services.responses.put(self.key, whole, self.asking.items)
        if self.stream:
            await self._send(events, more=False)
        elif self.connection is not None:
            await self.connection.reply(200, json.dumps(whole, ensure_ascii=False).encode("utf-8", "replace"))

    async def fail(self, error: ApiError) -> None:
        """The answer broke off after its beginning."""
        theirs = "rate_limit_exceeded" if error.status == 429 else "invalid_prompt"
        code = theirs if error.status < 500 else "server_error"
        events = self._events.fail(code, error.message)
        if self.asking.body.background:
            await self.services.responses.put(self.key, self._events.object, self.asking.items)
        await self._send(events, more=False)

    def reset(self) -> None:
        """Begin again."""
        self._events = ResponseEvents(self.asking.shown)
        self._begun = False

    def _start(self) -> list[Json]:
        if self._begun:
            return []
        self._begun = True
        self._events.object["temperature"] = self.asking.shown["temperature"]
        return self._events.begin()

    async def _send(self, events: list[Json], more: bool) -> None:
        if self.connection is None or not self.stream:
            return
        if not self.connection.status:
            await self.connection.start(200, EVENTS, [(b"cache-control", b"no-cache")])
        await self.connection.write(sse(events), more)


async def _refuse_at_once(services: Services, caller: Caller, asking: Asking) -> None:
    """Raise what can be told before a response in the background begins: its client looks at it later, or never."""
    way = services.deployments.enter(asking.body.model, caller.stays, caller.key)
    try:
        if not caller.key.may_use(way.deployment):
            raise ApiError(403, "model_not_allowed", text("serve.model_not_allowed", model=way.deployment), "model")
        await services.pipeline.quotas.check(caller.key)
        await asking.prepare(way.target.limits)
    finally:
        services.deployments.leave(way.target)


async def _begin(services: Services, call: Call, asking: Asking) -> None:
    """Answer at once, and make the response in the background."""
    assert call.key is not None
    if asking.body.stream:
        raise unsupported("stream")
    if not asking.keep:
        raise invalid(text("serve.background_store"), "background")
    key, shown = call.key.id, asking.shown
    face = ResponseFace(services, key, asking, None)
    caller = services.caller(call, asking.body.user or asking.body.safety_identifier)
    services.background.reserve(key, shown["id"])  # before it is kept: a refusal leaves nothing behind
    try:
        await services.responses.put(key, shown | {"status": "queued"}, asking.items)
    except BaseException:  # cancelled too: the place is free again
        services.background.release(key, shown["id"])
        raise

    async def work() -> None:
        try:
            await services.responses.put(key, shown | {"status": "in_progress"}, asking.items)
            await services.pipeline.run(asking.body.model, asking.prepare, caller, face)
        except ApiError as error:
            await face.fail(error)
        except Exception:  # as at the gateway's border: a bug is logged, and its words stay inside
            log.exception("response %s failed", shown["id"])
            await face.fail(ApiError(500, "internal_error", text("serve.internal")))

    services.background.respond(key, shown["id"], work())
    await call.reply(shown | {"status": "queued"})


def _check(body: ResponseBody) -> None:
    refuse_unsupported(body)
    for name in UNSUPPORTED:
        if (body.model_extra or {}).get(name) is not None:
            raise unsupported(name)
    if body.truncation not in (None, "disabled"):
        raise unsupported("truncation")
    for index, wanted in enumerate(body.include or ()):
        if wanted != LOGPROBS and wanted not in HARMLESS_INCLUDES:
            raise unsupported(f"include.{index}")


def _as_chat(body: ResponseBody, items: list[Any]) -> tuple[ChatBody, Callable[[ApiError], ApiError]]:
    """The request as a chat request, with all of chat's checks, and what names later refusals. Raises ApiError 400."""
    before = len(items) - len(body.items())
    messages, places = messages_of(items, before)
    if body.instructions is not None:
        messages.insert(0, {"role": "system", "content": body.instructions})
        places.insert(0, None)
    chat: Json = {
        "model": body.model,
        "messages": messages,
        "max_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "repetition_penalty": body.repetition_penalty,
        "stream": body.stream,
        "user": body.user,
        "parallel_tool_calls": body.parallel_tool_calls,
        "response_format": format_of((body.text or {}).get("format")),
        "reasoning_effort": (body.reasoning or {}).get("effort"),
    }
    if body.tools:
        chat |= {"tools": tools_of(body.tools), "tool_choice": choice_of(body.tool_choice or "auto")}
    elif body.tool_choice not in (None, "auto", "none"):
        chat["tool_choice"] = choice_of(body.tool_choice)
    if body.top_logprobs is not None or LOGPROBS in (body.include or ()):
        chat |= {"logprobs": True, "top_logprobs": body.top_logprobs or 0}
    told = {name: value for name, value in chat.items() if value is not None}
    named = partial(renamed, places=places, before=before)
    try:
        return read_chat(json.dumps(told, ensure_ascii=False).encode("utf-8", "replace")), named
    except ApiError as error:
        raise named(error) from None


def _shown(body: ResponseBody, keep: bool) -> Json:
    """What the object repeats of the request."""
    return {
        "id": new_id("resp_"),
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": bool(body.background),
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": body.model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": (body.reasoning or {}).get("effort"), "summary": None},
        "store": keep,
        "temperature": body.temperature,
        "text": {"format": (body.text or {}).get("format") or {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": body.tools or [],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": body.top_p if body.top_p is not None else 1.0,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
    }


ROUTES = (
    Route("POST", "/v1/responses", create),
    Route("GET", "/v1/responses/{id}", retrieve),
    Route("DELETE", "/v1/responses/{id}", delete),
    Route("POST", "/v1/responses/{id}/cancel", cancel),
    Route("GET", "/v1/responses/{id}/input_items", input_items),
)
