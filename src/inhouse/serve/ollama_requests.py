"""What Ollama's clients send, brought to the bodies that chat and completion are checked by."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from inhouse.core.messages import text
from inhouse.serve.errors import ApiError, invalid, unsupported
from inhouse.serve.requests import (
    Anything,
    Asked,
    Body,
    ChatBody,
    CompletionBody,
    Limits,
    Numbers,
    Text,
    prepare,
    read_chat,
    read_completion,
)

Json = dict[str, Any]
Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
SAME = ("temperature", "top_k", "top_p", "min_p", "seed", "stop", "presence_penalty", "frequency_penalty")
# Options that change the answer and are not served here, and the values with which they change nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "typical_p": (1,), "tfs_z": (1,), "mirostat": (0,), "penalize_newline": (False,),
}  # fmt: skip
WITHOUT_END = (-1, -2)  # num_predict: to the model's own end, or to the end of the context
# What these fields of chat are called by Ollama: errors name what the client wrote.
NAMES = {
    "max_tokens": "options.num_predict", "repetition_penalty": "options.repeat_penalty", "response_format": "format",
}  # fmt: skip


class OllamaCall(Body):
    """A tool call of a message; its arguments are an object and not a text."""

    id: str | None = None
    function: dict[str, Any]


class OllamaMessage(Body):
    """One turn of a conversation."""

    role: str
    content: Text | None = None
    images: Anything | None = None
    tool_calls: Annotated[list[OllamaCall], Field(max_length=128, fail_fast=True)] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class OllamaAsk(Body):
    """The fields that /api/chat and /api/generate share."""

    model: Name
    stream: bool | None = None
    options: dict[str, Any] | None = None
    format: str | dict[str, Any] | None = None
    keep_alive: Any = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)


class OllamaChat(OllamaAsk):
    """POST /api/chat."""

    messages: Annotated[list[OllamaMessage], Field(max_length=2000, fail_fast=True)] | None = None
    tools: Annotated[list[Any], Field(max_length=128, fail_fast=True)] | None = None


class OllamaGenerate(OllamaAsk):
    """POST /api/generate."""

    prompt: Text | None = None
    system: Text | None = None
    suffix: Text | None = None
    template: Text | None = None
    context: Numbers | None = None
    images: Anything | None = None
    raw: bool | None = None


class OllamaEmbed(Body):
    """POST /api/embed."""

    model: Name
    input: Text | Annotated[list[Text], Field(max_length=2048, fail_fast=True)]
    truncate: bool | None = None
    dimensions: int | None = Field(None, ge=1, le=65536)
    options: dict[str, Any] | None = None
    keep_alive: Any = None


class OllamaEmbeddings(Body):
    """POST /api/embeddings, as older clients send it."""

    model: Name
    prompt: Text | None = None
    options: dict[str, Any] | None = None
    keep_alive: Any = None


class OllamaShow(Body):
    """POST /api/show."""

    model: Annotated[str, StringConstraints(max_length=256)] | None = None
    name: Annotated[str, StringConstraints(max_length=256)] | None = None
    verbose: bool | None = None


@dataclass(frozen=True)
class OllamaAsking:
    """A checked request, as chat or completion, and what prepares it once its release is known."""

    body: ChatBody | CompletionBody
    num_predict: int | None
    ignored: tuple[str, ...]

    async def prepare(self, limits: Limits) -> Asked:
        """What an engine is asked. Ollama's answers end with the context at the latest, and no length is an error."""
        body = self.body
        if self.num_predict is not None:
            most = limits.context_length
            least = most if self.num_predict in WITHOUT_END else min(self.num_predict, most)
            body = body.model_copy(update={"max_tokens": least})
        try:
            asked = await prepare(body, limits)
        except ApiError as error:
            raise renamed(error) from None
        return replace(asked, ignored=self.ignored)


def chat_of(body: OllamaChat, model: str) -> OllamaAsking:
    """A chat. Raises ApiError 400."""
    chat: Json = {"model": model, "messages": messages_of(body.messages or ())}
    if body.tools:
        chat["tools"] = body.tools
    return _asking(body, chat)


def generation_of(body: OllamaGenerate, model: str) -> OllamaAsking:
    """One prompt: through the model's template, or as it is where it is `raw`. Raises ApiError 400."""
    # A template of the client's is code that would run here; `context` is a conversation in another model's tokens.
    for name in ("suffix", "template", "context"):
        if getattr(body, name):
            raise unsupported(name)
    _no_images(body.images, "images")
    if body.raw:
        return _asking(body, {"model": model, "prompt": body.prompt})
    messages = [{"role": "system", "content": body.system}] if body.system else []
    return _asking(body, {"model": model, "messages": [*messages, {"role": "user", "content": body.prompt}]})


def messages_of(given: Sequence[OllamaMessage]) -> list[Json]:
    """Turns in OpenAI's shape. Ollama's results name their tool, not the call: they answer the first open one."""
    found: list[Json] = []
    waiting: list[tuple[str, str]] = []  # id and tool of calls without a result
    for place, message in enumerate(given):
        where = f"messages.{place}"
        _no_images(message.images, f"{where}.images")
        turn: Json = {"role": message.role, "content": message.content or ""}
        if message.tool_calls:
            turn["tool_calls"] = [
                _call(call, f"call_{place}_{number}") for number, call in enumerate(message.tool_calls)
            ]
            waiting += [(call["id"], str(call["function"].get("name"))) for call in turn["tool_calls"]]
        if message.role == "tool":
            turn["tool_call_id"] = _answered(message, waiting, where)
        found.append(turn)
    return found


def renamed(error: ApiError) -> ApiError:
    """The same error, with the field under Ollama's name, and told in its words: these clients see nothing else."""
    first, _, rest = (error.param or "").partition(".")
    if first in SAME:
        first = f"options.{first}"
    param = ".".join(part for part in (NAMES.get(first, first), rest) if part) or None
    told = ApiError(error.status, error.code, error.message, param, error.retry_after_s)
    told.counted = error.counted
    return told


def _asking(body: OllamaAsk, chat: Json) -> OllamaAsking:
    options, ignored = _options(body.options or {})
    num_predict = options.pop("num_predict", None)
    if num_predict is not None and (not isinstance(num_predict, int) or num_predict < -2 or num_predict == 0):
        raise invalid(text("serve_faces.num_predict"), "options.num_predict")
    chat |= options | {"stream": body.stream is not False}
    if body.format not in (None, ""):
        chat["response_format"] = _format(body.format)
    raw = "prompt" in chat
    if body.logprobs:
        chat |= {"logprobs": body.top_logprobs or 0} if raw else {"logprobs": True, "top_logprobs": body.top_logprobs}
    told = json.dumps({name: value for name, value in chat.items() if value is not None}).encode()
    try:
        read = read_completion(told) if raw else read_chat(told)
    except ApiError as error:
        raise renamed(error) from None
    aside = sorted({*(body.model_extra or {}), *(f"options.{name}" for name in ignored)})
    return OllamaAsking(read, num_predict, tuple(aside))


def _options(given: Json) -> tuple[Json, list[str]]:
    """The options under chat's names, and those that only say how a model is loaded: they change no answer here."""
    taken: Json = {}
    ignored = []
    for name, value in given.items():
        if name in SAME or name == "num_predict":
            taken[name] = value
        elif name == "repeat_penalty":
            taken["repetition_penalty"] = value
        elif name in NEUTRAL and value is not None and value not in NEUTRAL[name]:
            raise unsupported(f"options.{name}")
        elif value is not None:
            ignored.append(name)
    return taken, ignored


def _format(asked: str | Json | None) -> Json:
    if asked == "json":
        return {"type": "json_object"}
    if isinstance(asked, str):
        raise invalid(text("serve_faces.format"), "format")
    return {"type": "json_schema", "json_schema": {"name": "format", "schema": asked}}


def _call(call: OllamaCall, own: str) -> Json:
    arguments = call.function.get("arguments")
    told = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
    return {
        "id": call.id or own,
        "type": "function",
        "function": {"name": call.function.get("name"), "arguments": told},
    }


def _answered(message: OllamaMessage, waiting: list[tuple[str, str]], where: str) -> str:
    for call in waiting:
        if message.tool_call_id is not None:
            fits = call[0] == message.tool_call_id
        else:
            fits = message.tool_name in (None, "", call[1])
        if fits:
            waiting.remove(call)
            return call[0]
    raise invalid(text("serve_faces.tool_result"), where)


def _no_images(images: Anything | None, where: str) -> None:
    if images:
        raise ApiError(400, "unsupported_content", text("serve.no_media", kind="image"), where)
