"""What clients may ask: bodies are checked here, and only known, bounded fields go on to the engine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from inhouse.core.messages import text
from inhouse.core.serving import Ask, Constraint
from inhouse.core.serving import Sampling as Chosen
from inhouse.serve.body_counts import NUMBERS, TEXTS_OR_LISTS, check_counts
from inhouse.serve.body_errors import refusal_of
from inhouse.serve.constraints import check_constraint, find_constraint
from inhouse.serve.errors import invalid, too_long, unsupported
from inhouse.serve.media import join_parts
from inhouse.serve.tools import check_turns, read_tools

Text = Annotated[str, StringConstraints(max_length=4 * 2**20)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]
TokenId = Annotated[str, StringConstraints(pattern=r"^\d{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
Anything = Annotated[list[Any], Field(fail_fast=True)]
# Lists end at their first fault: an error for each of a million entries takes gigabytes.
Numbers = Annotated[list[int], Field(max_length=NUMBERS, fail_fast=True)]
LEAST = 1e-5  # of temperature and top_p: engines divide by the one, and leave no token for less of the other
BYTES_PER_TOKEN = 64  # no text that fits the context is longer; a longer one is refused without tokenising it
# Fields that OpenAI documents and that would change the answer. Left out silently they would make it wrong.
UNSUPPORTED = {
    *("audio", "prediction", "web_search_options", "echo", "suffix", "grammar", "json_schema", "lora"),
    *("guided_decoding_backend", "guided_whitespace_pattern"),
}
# Those of vLLM and llama.cpp likewise, and the values with which they change nothing; null never does.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "repeat_penalty": (1,), "length_penalty": (1,), "typical_p": (1,), "min_tokens": (0,),
    "stop_token_ids": ([],), "bad_words": ([],), "allowed_token_ids": (), "use_beam_search": (False,), "best_of": (1,),
    "continue_final_message": (False,), "include_stop_str_in_output": (False,), "modalities": (["text"],),
}  # fmt: skip
TOOL_FIELDS = ("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call")
TURN_FIELDS = {"role", "content", "name", "tool_calls", "tool_call_id", "function_call"}
LIMIT_FIELDS = ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")
LIMITING = {"response_format", *LIMIT_FIELDS}
HARMLESS: tuple[Any, ...] = ({}, [], None, False, "", "none", "auto")


class Body(BaseModel):
    """Strict JSON: no '3' for 3, no NaN. Unknown fields are kept aside, to be named in a header."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, frozen=True)


class StreamOptions(Body):
    """What a stream shall carry besides the text."""

    include_usage: bool = False


class ChatMessage(Body):
    """One turn of a conversation. What it may hold is checked by `tools.check_turns` and `media.join_parts`."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | Anything | None = None
    name: Annotated[str, StringConstraints(max_length=256, pattern=r"^[^\s<|\\/>]+$")] | None = None  # as OpenAI has it
    tool_calls: Anything | None = None
    tool_call_id: str | None = None
    function_call: Any = None


class Sampling(Body):
    """The fields that chat and completion share."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1000)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: Stop | Annotated[list[Stop], Field(max_length=16, fail_fast=True)] | None = None
    n: int | None = Field(None, ge=1, le=8)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=2)
    logit_bias: Annotated[dict[TokenId, Bias], Field(max_length=1000)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, StringConstraints(max_length=512)] | None = None
    safety_identifier: Annotated[str, StringConstraints(max_length=512)] | None = None
    ignore_eos: bool | None = None
    response_format: Any = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None


class ChatBody(Sampling):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=2000, fail_fast=True)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: Any = None
    functions: Any = None
    function_call: Any = None


class CompletionBody(Sampling):
    """POST /v1/completions."""

    prompt: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=TEXTS_OR_LISTS, fail_fast=True)]
        | Annotated[list[int], Field(min_length=1, max_length=NUMBERS, fail_fast=True)]
        | Annotated[list[Numbers], Field(min_length=1, max_length=TEXTS_OR_LISTS, fail_fast=True)]
    )
    logprobs: int | None = Field(None, ge=0, le=20)


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
    old_calls: bool = False  # asked by `functions`: calls are told as `function_call`

    @property
    def chat(self) -> bool:
        """Whether it is a conversation, and not a text to continue."""
        return self.ask.messages is not None


B = TypeVar("B", bound=Body)


def read_chat(raw: bytes) -> ChatBody:
    """Check a chat body; raises ApiError 400 with the field at fault."""
    body = read_body(ChatBody, raw)
    refuse_unsupported(body)
    if body.top_logprobs and not body.logprobs:
        raise invalid(text("serve.needs_logprobs"), "top_logprobs")
    return body


def read_completion(raw: bytes) -> CompletionBody:
    """Check a completion body; raises ApiError 400 with the field at fault."""
    body = read_body(CompletionBody, raw)
    refuse_unsupported(body)
    return body


async def prepare(body: ChatBody | CompletionBody, limits: Limits) -> Asked:
    """Turn a checked body into what an engine is asked, within the limits of the release that answers."""
    old = False
    if isinstance(body, ChatBody):
        ask, old = await _chat(body, limits)
    else:
        ask = await _completion(body, limits)
    options = body.stream_options
    return Asked(
        model=body.model,
        ask=ask,
        stream=bool(body.stream),
        usage=options is not None and options.include_usage,
        ignored=tuple(sorted(body.model_extra or {})),
        user=body.user,
        old_calls=old,
    )


async def _chat(body: ChatBody, limits: Limits) -> tuple[Ask, bool]:
    messages = _messages(body.messages)
    _check_size(sum(len(m["content"].encode()) for m in messages), limits.context_length, "messages")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    ask = Ask(sampling_of(body, limits, logprobs), messages=messages, whole=not body.stream)
    if constraint := await _held_to(body):
        ask = replace(ask, constraint=constraint)
    if body.tools is None and body.functions is None and body.tool_choice in (None, "none", "auto"):
        return ask, False
    tools = await read_tools({name: getattr(body, name) for name in TOOL_FIELDS})
    forced = tools.constraint
    if forced is not None:  # a call is no text: cut, it would not match the tool's schema
        ask = replace(ask, sampling=replace(ask.sampling, stop=()))
    asked = replace(ask, tools=tools.tools, tool_choice=tools.choice, parallel_tool_calls=tools.parallel, forced=forced)
    return asked, tools.old


async def _completion(body: CompletionBody, limits: Limits) -> Ask:
    prompt = body.prompt
    if isinstance(prompt, list) and not isinstance(prompt[0], int):
        if len(prompt) > 1:
            raise unsupported("prompt.1")
        prompt = prompt[0]
    size = len(prompt.encode()) if isinstance(prompt, str) else len(prompt)
    if not size:  # a model without a token of its own for the beginning has nothing to go on from
        raise invalid(text("serve.empty_prompt"), "prompt")
    _check_size(size, limits.context_length, "prompt")
    ask = Ask(sampling_of(body, limits, body.logprobs), prompt=prompt, whole=not body.stream)
    constraint = await _held_to(body)
    return ask if constraint is None else replace(ask, constraint=constraint)


async def _held_to(body: Sampling) -> Constraint | None:
    """What the answer must match, checked and compiled."""
    if body.model_fields_set.isdisjoint(LIMITING):
        return None
    given = {name: value for name in LIMIT_FIELDS if (value := getattr(body, name)) is not None}
    if body.response_format is None and not given:
        return None
    wanted = find_constraint(body.response_format, given)
    if wanted is None:
        return None
    return await check_constraint(wanted.kind, wanted.value, wanted.param, strict=wanted.strict)


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
    temperature = limits.temperature if body.temperature is None else body.temperature
    return Chosen(
        max_tokens=answer or min(limits.max_tokens, limits.context_length),
        temperature=temperature if temperature >= LEAST else 0.0,
        top_p=None if body.top_p is None else max(body.top_p, LEAST),
        top_k=body.top_k,
        min_p=body.min_p,
        seed=body.seed,
        stop=stop,
        n=body.n or 1,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        logit_bias={int(token): bias for token, bias in (body.logit_bias or {}).items()},
        logprobs=logprobs,
        ignore_end=bool(body.ignore_eos),
    )


def _check_size(size: int, context: int, field: str) -> None:
    if size > context * BYTES_PER_TOKEN:
        raise too_long(text("serve.bytes", count=size), context, field)


def _messages(given: list[ChatMessage]) -> list[dict[str, Any]]:
    """Turns as templates expect them: plain text, the roles that they know, and calls with their results."""
    turns = [{"role": m.role, "content": m.content} for m in given]
    if any(m.tool_calls or m.function_call or m.role in ("tool", "function") for m in given):
        turns = check_turns([m.model_dump(exclude_none=True, include=TURN_FIELDS) for m in given])
    for place, turn in enumerate(turns):
        content = turn.get("content")
        if content is None and not turn.get("tool_calls"):
            raise invalid(text("serve.no_content"), f"messages.{place}.content")
        if not isinstance(content, str):
            turn["content"] = "" if content is None else join_parts(content, f"messages.{place}.content")
        if turn["role"] == "developer":
            turn["role"] = "system"
    return turns


def read_body(model: type[B], raw: bytes) -> B:
    """Check a body against its model; raises ApiError 400 with the field at fault."""
    check_counts(raw)
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise refusal_of(error) from None


def refuse_unsupported(body: Body) -> None:
    """Raise ApiError 400 for a field that would change the answer and that nobody here looks at."""
    for field, value in (body.model_extra or {}).items():
        if field in UNSUPPORTED and value not in HARMLESS:
            raise unsupported(field)
        if field in NEUTRAL and value is not None and value not in NEUTRAL[field]:
            raise unsupported(field)
