"""The messages of inference.proto, and what they are as bodies of the HTTP routes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from inhouse.core.messages import text
from inhouse.core.serving import Delta, Usage
from inhouse.serve.errors import invalid
from inhouse.serve.grpc.compile import DESCRIPTION
from inhouse.serve.replies import Choice

Json = dict[str, Any]
PACKAGE = "inhouse.v1"
SERVICE = f"{PACKAGE}.Inference"


@cache
def pool() -> Any:
    """Where the descriptions are, reflection's too."""
    found = descriptor_pool.Default()
    for file in descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTION.read_bytes()).file:
        found.Add(file)
    return found


@cache
def message(name: str) -> Any:
    """The class of a message: message("ChatRequest")."""
    return message_factory.GetMessageClass(pool().FindMessageTypeByName(f"{PACKAGE}.{name}"))


def chat_body(request: Any, stream: bool) -> bytes:
    """A chat, as POST /v1/chat/completions takes it. Raises ApiError 400."""
    body = {"model": request.model, "stream": stream, **_sampling(request.sampling), **_optional(request, "user")}
    body["messages"] = [_turn(turn) for turn in request.messages]
    body |= _constraint(request.constraint)
    if request.tools:
        body["tools"] = [_tool(tool, f"tools.{place}") for place, tool in enumerate(request.tools)]
    match request.tool_choice.WhichOneof("choice"):
        case "mode":
            body["tool_choice"] = request.tool_choice.mode
        case "function":
            body["tool_choice"] = {"type": "function", "function": {"name": request.tool_choice.function}}
    body |= _optional(request, "parallel_tool_calls")
    if request.HasField("top_logprobs"):
        body |= {"logprobs": True, "top_logprobs": request.top_logprobs}
    return _encoded(body)


def completion_body(request: Any, stream: bool) -> bytes:
    """A text to continue, as POST /v1/completions takes it. Raises ApiError 400."""
    body = {"model": request.model, "stream": stream, **_sampling(request.sampling)}
    body |= _optional(request, "user", "logprobs") | _constraint(request.constraint)
    if (which := request.WhichOneof("prompt")) is not None:
        body["prompt"] = request.text if which == "text" else list(request.tokens.ids)
    return _encoded(body)


def embedding_body(request: Any) -> bytes:
    """Inputs, as POST /v1/embeddings takes them. Raises ApiError 400."""
    if bool(request.texts) == bool(request.tokens):
        raise invalid(text("serve_faces.texts_or_tokens"), "texts")
    inputs: list[Any] = list(request.texts) or [list(each.ids) for each in request.tokens]
    return _encoded({"model": request.model, "input": inputs, **_optional(request, "dimensions", "user")})


def usage_of(usage: Usage) -> Any:
    """Tokens, as clients get them."""
    total = usage.prompt + usage.answer
    return message("Usage")(
        prompt_tokens=usage.prompt, completion_tokens=usage.answer, total_tokens=total, cached_tokens=usage.cached
    )


def chat_delta(delta: Delta) -> Any:
    """A piece of an answer."""
    made = message("ChatDelta")(index=delta.index, content=delta.text, finish_reason=delta.finish or "")
    if delta.reasoning:
        made.reasoning_content = delta.reasoning
    for call in delta.tool_calls or ():
        named = call.get("function") or {}
        made.tool_calls.add(
            index=call.get("index", 0), id=call.get("id") or "", name=named.get("name") or "",
            arguments=named.get("arguments") or "",
        )  # fmt: skip
    made.logprobs.extend(logprobs_of(delta.logprobs or ()))
    return made


def chat_choice(index: int, found: Choice) -> Any:
    """A whole answer."""
    said = message("ChatMessage")(role="assistant", content=found.text)
    for call in found.tool_calls:
        said.tool_calls.add(id=call["id"], **call["function"])
    return message("ChatChoice")(
        index=index, message=said, finish_reason=found.finish or "", logprobs=logprobs_of(found.logprobs),
        reasoning_content="".join(found.thoughts),
    )  # fmt: skip


def text_choice(index: int, words: str, finish: str | None, logprobs: Sequence[Json]) -> Any:
    """A continuation, or a piece of it."""
    return message("TextChoice")(index=index, text=words, finish_reason=finish or "", logprobs=logprobs_of(logprobs))


def logprobs_of(entries: Sequence[Json]) -> list[Any]:
    """Log-probabilities, which come in OpenAI's shape."""
    return [
        message("TokenLogprob")(
            token=entry["token"], logprob=entry["logprob"], bytes=entry.get("bytes") or (),
            top_logprobs=logprobs_of(entry.get("top_logprobs") or ()),
        )
        for entry in entries
    ]  # fmt: skip


def _sampling(asked: Any) -> Json:
    """The fields that were set."""
    found: Json = {}
    for field, value in asked.ListFields():
        if field.name == "stop":
            found["stop"] = list(value)
        elif field.name == "logit_bias":
            found["logit_bias"] = {str(token): bias for token, bias in value.items()}
        else:
            found[field.name] = value
    return found


def _constraint(asked: Any) -> Json:
    kind = asked.WhichOneof("kind")
    makers: dict[str | None, Callable[[], Json]] = {
        None: dict,
        "json_object": lambda: {"response_format": {"type": "json_object"}} if asked.json_object else {},
        "json_schema": lambda: {"guided_json": _json(asked.json_schema, "constraint.json_schema")},
        "regex": lambda: {"guided_regex": asked.regex},
        "grammar": lambda: {"guided_grammar": asked.grammar},
        "choice": lambda: {"guided_choice": list(asked.choice.texts)},
    }
    return makers[kind]()


def _turn(turn: Any) -> Json:
    told: Json = {"role": turn.role, **_optional(turn, "content", "name", "tool_call_id")}
    if turn.tool_calls:
        told["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in turn.tool_calls
        ]
    return told


def _tool(tool: Any, place: str) -> Json:
    function: Json = {"name": tool.name, **_optional(tool, "description", "strict")}
    if tool.HasField("parameters"):
        function["parameters"] = _json(tool.parameters, f"{place}.parameters")
    return {"type": "function", "function": function}


def _optional(request: Any, *names: str) -> Json:
    return {name: getattr(request, name) for name in names if request.HasField(name)}


def _json(told: str, place: str) -> Any:
    try:
        return json.loads(told)
    except (ValueError, RecursionError):
        raise invalid(text("serve_faces.bad_schema"), place) from None


def _encoded(body: Json) -> bytes:
    return json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
