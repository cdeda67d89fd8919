"""Anthropic's messages: /v1/messages and /v1/messages/count_tokens."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from inhouse.core.serving import Delta, Usage
from inhouse.serve.direct import borrowed
from inhouse.serve.errors import ApiError, unsupported
from inhouse.serve.http import EVENTS, Call, Connection
from inhouse.serve.ids import new_id
from inhouse.serve.message_events import MessageEvents, message_of
from inhouse.serve.message_items import NAMES, chat_choice, chat_messages, chat_tools
from inhouse.serve.replies import Gathered, Reply
from inhouse.serve.requests import Asked, Body, ChatBody, Limits, prepare, read_body, read_chat
from inhouse.serve.response_events import sse
from inhouse.serve.routes import Route, Services
from inhouse.serve.tool_engine import prompted

Json = dict[str, Any]
UNSUPPORTED = ("mcp_servers", "container", "context_management")


class Counted(Body):
    """What a message's tokens are counted of."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    messages: Annotated[list[Any], Field(min_length=1, max_length=2000)]
    system: Any = None
    tools: Annotated[list[Any], Field(max_length=128)] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None


class MessageBody(Counted):
    """POST /v1/messages. What chat has too is checked as a chat request."""

    max_tokens: int = Field(ge=1)
    temperature: float | None = Field(None, ge=0, le=1)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1000)
    stop_sequences: Annotated[list[str], Field(max_length=16)] | None = None
    stream: bool | None = None
    metadata: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    output_format: dict[str, Any] | None = None  # its name while it was in beta


async def create(services: Services, call: Call) -> None:
    """POST /v1/messages."""
    body = read_body(MessageBody, await call.json_body())
    chat = _as_chat(body, _sampling(body))

    async def prepared(limits: Limits) -> Asked:
        asked = await prepare(chat, limits)
        further = (f"output_config.{name}" for name in body.output_config or () if name != "format")
        return replace(asked, ignored=tuple(sorted({*asked.ignored, *(body.model_extra or {}), *further})))

    caller = services.caller(call, chat.user)
    face = MessageFace(call.connection)
    try:
        await call.while_there(services.pipeline.run(body.model, prepared, caller, face), caller.wanted)
    except ApiError as error:
        raise _renamed(error) from None


async def count(services: Services, call: Call) -> None:
    """POST /v1/messages/count_tokens."""
    body = read_body(Counted, await call.json_body())
    chat = _as_chat(body, {})
    async with borrowed(services, services.caller(call), body.model, turn=False) as lent:
        asked = await prepare(chat, lent.limits)
        ids = await lent.engine.tokenize(await lent.engine.render(prompted(lent.engine, asked.ask)), True)
        call.connection.tell(lent.release, sorted(body.model_extra or {}))
    await call.reply({"input_tokens": len(ids)})


class MessageFace:
    """Sends an answer as Anthropic's clients expect it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def begin(self, asked: Asked, release: str) -> Reply:
        """Say in headers which release answers."""
        self.connection.tell(release, asked.ignored)
        return (MessageStream if asked.stream else WholeMessage)(self.connection, asked.model)


class WholeMessage(Reply):
    """Gather an answer and send it as one message."""

    def __init__(self, connection: Connection, model: str) -> None:
        self.connection = connection
        self.model = model
        self.gathered = Gathered()

    @property
    def sent(self) -> bool:
        """Nothing is sent before the end."""
        return False

    async def add(self, deltas: list[Delta]) -> None:
        """Keep what arrived."""
        self.gathered.add(deltas)

    async def finish(self, usage: Usage) -> None:
        """Send the message."""
        whole = message_of(new_id("msg").replace("-", "_"), self.model, self.gathered, usage)
        await self.connection.reply(200, json.dumps(whole, ensure_ascii=False).encode("utf-8", "replace"))

    def reset(self) -> None:
        """Begin again."""
        self.gathered = Gathered()


class MessageStream(Reply):
    """Pass an answer on as Anthropic's events while it is made."""

    def __init__(self, connection: Connection, model: str) -> None:
        self.connection = connection
        self.model = model
        self.reset()

    @property
    def sent(self) -> bool:
        """Whether the client has seen something."""
        return self.connection.status != 0

    async def add(self, deltas: list[Delta]) -> None:
        """Send what arrived together in one write."""
        await self._send(self._events.add(deltas), more=True)

    async def finish(self, usage: Usage) -> None:
        """The message is whole."""
        await self._send(self._events.end(usage), more=False)

    def reset(self) -> None:
        """Begin again; only called when nothing was sent."""
        self._events = MessageEvents(new_id("msg").replace("-", "_"), self.model)

    async def _send(self, events: list[Json], more: bool) -> None:
        if more and not events:
            return
        if not self.connection.status:
            events = [*self._events.begin(), *events]
            await self.connection.start(200, EVENTS, [(b"cache-control", b"no-cache")])
        await self.connection.write(sse(events), more)


def _sampling(body: MessageBody) -> Json:
    user = (body.metadata or {}).get("user_id")
    return {
        "max_tokens": body.max_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "stop": body.stop_sequences or None,
        "stream": body.stream,
        "response_format": _format(body),
        "user": user if isinstance(user, str) else None,
    }


def _format(body: MessageBody) -> Json | None:
    """A schema that the answer has to follow, as chat's `response_format`."""
    asked = (body.output_config or {}).get("format") or body.output_format
    if asked is None:
        return None
    if not isinstance(asked, dict) or asked.get("type") != "json_schema":
        raise unsupported("output_config.format.type")
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": asked.get("schema")}}


def _as_chat(body: Counted, sampling: Json) -> ChatBody:
    """The request as a chat request, with all of chat's checks. Raises ApiError 400."""
    for name in UNSUPPORTED:
        if (body.model_extra or {}).get(name) is not None:
            raise unsupported(name)
    if body.thinking is not None and body.thinking.get("type") != "disabled":
        raise unsupported("thinking")
    chat: Json = {"model": body.model, "messages": chat_messages(body.messages, body.system), **sampling}
    if body.tools:
        chat |= {"tools": chat_tools(body.tools), "tool_choice": chat_choice(body.tool_choice)}
        if (body.tool_choice or {}).get("disable_parallel_tool_use"):
            chat["parallel_tool_calls"] = False
    told = {name: value for name, value in chat.items() if value is not None}
    try:
        return read_chat(json.dumps(told, ensure_ascii=False).encode("utf-8", "replace"))
    except ApiError as error:
        raise _renamed(error) from None


def _renamed(error: ApiError) -> ApiError:
    """The same refusal, its field under the name that it has here."""
    if error.param is not None:
        first, dot, rest = error.param.partition(".")
        error.param = (NAMES.get(first, first) + dot + rest).replace("format.json_schema", "format")
    return error


ROUTES = (Route("POST", "/v1/messages", create), Route("POST", "/v1/messages/count_tokens", count))
