"""What clients may ask: bodies are checked here, and only known, bounded fields go on to the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from inhouse.core.messages import text
from inhouse.core.serving import Ask, Constraint
from inhouse.core.serving import Sampling as Chosen
from inhouse.serve.errors import invalid, too_long, unsupported

Text = Annotated[str, StringConstraints(max_length=4 * 2**20)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]
TokenId = Annotated[str, StringConstraints(pattern=r"^\d{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
BYTES_PER_TOKEN = 64  # no text that fits the context is longer; a longer one is refused without tokenising it
# Fields that OpenAI documents and that would change the answer. Left out silently they would make it wrong.
UNSUPPORTED = {
    *("tools", "functions", "function_call", "audio", "prediction", "web_search_options", "echo", "suffix"),
    *("best_of", "grammar", "json_schema", "lora", "guided_json", "guided_regex", "guided_choice"),
}
HARMLESS: tuple[Any, ...] = ({}, [], None, False, "", "none", "auto")


class Body(BaseModel):
    """Strict JSON: no '3' for 3, no NaN. Unknown fields are kept aside, to be named in a header."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, frozen=True)


class StreamOptions(Body):
    """What a stream shall carry besides the text."""

    include_usage: bool = False


class ResponseFormat(Body):
    """Free text, or any JSON object."""

    type: Literal["text", "json_object", "json_schema"] = "text"


class Part(Body):
    """A part of a message."""

    type: str
    text: Text | None = None


class ChatMessage(Body):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | list[Part] | None = None
    tool_calls: list[Any] | None = None


class Sampling(Body):
    """The fields that chat and completion share."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1000)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    n: int | None = Field(None, ge=1, le=8)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: Annotated[dict[TokenId, Bias], Field(max_length=1000)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, StringConstraints(max_length=512)] | None = None
    ignore_eos: bool | None = None


class ChatBody(Sampling):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=2000)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None


class CompletionBody(Sampling):
    """POST /v1/completions."""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=1)]
    logprobs: int | None = None


@dataclass(frozen=True)
class Limits:
    """What the release that answers allows, and what it does when a request does not say."""

    context_length: int
    parallel: int
    max_tokens: int
    temperature: float


@dataclass(frozen=True)
class Asked:
    """A checked request: what the engine is asked, and what the client wants back."""

    model: str
    ask: Ask
    stream: bool = False
    usage: bool = False
    ignored: tuple[str, ...] = ()
    user: str | None = None

    @property
    def chat(self) -> bool:
        """Whether it is a conversation, and not a text to continue."""
        return self.ask.messages is not None


B = TypeVar("B", bound=Body)


def read_chat(raw: bytes) -> ChatBody:
    """Check a chat body; raises ApiError 400 with the field at fault."""
    body = read_body(ChatBody, raw)
    _refuse_unsupported(body)
    if body.response_format is not None and body.response_format.type == "json_schema":
        raise unsupported("response_format")
    if body.top_logprobs and not body.logprobs:
        raise invalid(text("serve.needs_logprobs"), "top_logprobs")
    return body


def read_completion(raw: bytes) -> CompletionBody:
    """Check a completion body; raises ApiError 400 with the field at fault."""
    body = read_body(CompletionBody, raw)
    _refuse_unsupported(body)
    if body.logprobs is not None:
        raise unsupported("logprobs")
    return body


async def prepare(body: ChatBody | CompletionBody, limits: Limits) -> Asked:
    """Turn a checked body into what an engine is asked, within the limits of the release that answers."""
    ask = _chat(body, limits) if isinstance(body, ChatBody) else _completion(body, limits)
    options = body.stream_options
    return Asked(
        model=body.model,
        ask=ask,
        stream=bool(body.stream),
        usage=options is not None and options.include_usage,
        ignored=tuple(sorted(body.model_extra or {})),
        user=body.user,
    )


def _chat(body: ChatBody, limits: Limits) -> Ask:
    messages = [_message(index, message) for index, message in enumerate(body.messages)]
    _check_size(sum(len(m["content"].encode()) for m in messages), limits.context_length)
    constraint = None
    if body.response_format is not None and body.response_format.type == "json_object":
        constraint = Constraint("json_object")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    chosen = sampling_of(body, limits, logprobs)
    return Ask(chosen, messages=messages, constraint=constraint, whole=not body.stream)


def _completion(body: CompletionBody, limits: Limits) -> Ask:
    prompt = body.prompt if isinstance(body.prompt, str) else body.prompt[0]
    _check_size(len(prompt.encode()), limits.context_length)
    return Ask(sampling_of(body, limits, None), prompt=prompt, whole=not body.stream)


def sampling_of(body: Sampling, limits: Limits, logprobs: int | None) -> Chosen:
    """How tokens are chosen: what the body says, within what the release allows."""
    field, answer = "max_tokens", body.max_tokens
    if isinstance(body, ChatBody) and body.max_completion_tokens is not None:
        field, answer = "max_completion_tokens", body.max_completion_tokens
    if answer is not None and answer > limits.context_length:
        raise invalid(text("serve.max_tokens", field=field, context=limits.context_length), field)
    if (body.n or 1) > limits.parallel:
        raise invalid(text("serve.too_many_choices", parallel=limits.parallel), "n")
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    return Chosen(
        max_tokens=answer or min(limits.max_tokens, limits.context_length),
        temperature=limits.temperature if body.temperature is None else body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        seed=body.seed,
        stop=stop,
        n=body.n or 1,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias={int(token): bias for token, bias in (body.logit_bias or {}).items()},
        logprobs=logprobs,
        ignore_end=bool(body.ignore_eos),
    )


def _check_size(size: int, context: int) -> None:
    if size > context * BYTES_PER_TOKEN:
        raise too_long(text("serve.bytes", count=size), context)


def _message(index: int, message: ChatMessage) -> dict[str, str]:
    """One turn as templates expect it: plain text, and the roles that they know."""
    if message.role in ("tool", "function") or message.tool_calls:
        raise unsupported(f"messages.{index}.{'tool_calls' if message.tool_calls else 'role'}")
    content = message.content
    if isinstance(content, list):
        for place, part in enumerate(content):
            if part.type != "text" or part.text is None:
                raise unsupported(f"messages.{index}.content.{place}.type")
        content = "\n".join(part.text or "" for part in content)
    if content is None:
        raise invalid(text("serve.no_content"), f"messages.{index}.content")
    return {"role": "system" if message.role == "developer" else message.role, "content": content}


def read_body(model: type[B], raw: bytes) -> B:
    """Check a body against its model; raises ApiError 400 with the field at fault."""
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise invalid(text("serve.bad_json")) from None
        # Union members add their own names to the place; the first keys are what the client wrote.
        param = ".".join(str(key) for key in first["loc"] if isinstance(key, int) or key.isidentifier())
        raise invalid(str(first["msg"]), param[:200] or None) from None


def _refuse_unsupported(body: Sampling) -> None:
    for field, value in (body.model_extra or {}).items():
        if field in UNSUPPORTED and value not in HARMLESS and not (field == "best_of" and value == 1):
            raise unsupported(field)
