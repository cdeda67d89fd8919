"""POST /tokenize and /detokenize, in vLLM's shapes."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from inhouse.core.messages import text
from inhouse.core.serving import EngineRefused, ServingEngine
from inhouse.serve.direct import Borrowed, borrowed
from inhouse.serve.errors import invalid
from inhouse.serve.http import Call
from inhouse.serve.requests import BYTES_PER_TOKEN, Anything, Body, Text, prepare, read_body, read_chat
from inhouse.serve.routes import Route, Services
from inhouse.serve.routes.embeddings import TokenId
from inhouse.serve.tool_engine import prompted

MOST_STRINGS = 4096  # tokens that are told one by one: each is a question to the engine
FURTHER = 64  # contexts of tokens that may be counted in one request


class TokenizeBody(Body):
    """A text, or a conversation."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = None
    prompt: Text | None = None
    messages: Annotated[list[Any], Field(min_length=1, max_length=2000, fail_fast=True)] | None = None
    tools: Anything | None = None
    add_special_tokens: bool = True
    return_token_strs: bool | None = None


class DetokenizeBody(Body):
    """Token ids."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = None
    tokens: Annotated[list[TokenId], Field(max_length=2**20, fail_fast=True)]


async def tokenize(services: Services, call: Call) -> None:
    """POST /tokenize: the ids that a prompt or a conversation becomes, and how many there are."""
    raw = await call.json_body()
    body = read_body(TokenizeBody, raw)
    if (body.prompt is None) == (body.messages is None):
        raise invalid(text("serve.prompt_or_messages"), "prompt")
    model = body.model or services.deployments.names()[0]
    async with borrowed(services, services.caller(call), model, turn=False) as lent:
        prompt, special = await _prompt(body, lent)
        ids = await lent.engine.tokenize(prompt, special)
        strings = await _strings(lent.engine, ids) if body.return_token_strs else None
        call.connection.tell(lent.release, sorted(body.model_extra or {}))
    told: dict[str, Any] = {"count": len(ids), "max_model_len": lent.limits.context_length, "tokens": ids}
    await call.reply(told | {"token_strs": strings})


async def detokenize(services: Services, call: Call) -> None:
    """POST /detokenize: the text of token ids."""
    body = read_body(DetokenizeBody, await call.json_body())
    model = body.model or services.deployments.names()[0]
    async with borrowed(services, services.caller(call), model, turn=False) as lent:
        try:
            prompt = await lent.engine.detokenize(body.tokens) if body.tokens else ""
        except EngineRefused:  # there is nothing else in such a request that could be wrong
            raise invalid(text("serve.bad_tokens"), "tokens") from None
        call.connection.tell(lent.release, sorted(body.model_extra or {}))
    await call.reply({"prompt": prompt})


async def _prompt(body: TokenizeBody, lent: Borrowed) -> tuple[str, bool]:
    """The text, and whether special tokens are parsed in it: in a conversation they always are, as for an answer."""
    if body.prompt is not None:
        if len(body.prompt) > FURTHER * BYTES_PER_TOKEN * lent.limits.context_length:
            raise invalid(text("serve.too_much_text"), "prompt")
        return body.prompt, body.add_special_tokens
    chat: dict[str, Any] = {"model": "-", "messages": body.messages}
    if body.tools:
        chat["tools"] = body.tools
    asked = await prepare(read_chat(json.dumps(chat).encode("utf-8", "replace")), lent.limits)
    return await lent.engine.render(prompted(lent.engine, asked.ask)), True


async def _strings(engine: ServingEngine, ids: list[int]) -> list[str]:
    """Each token's own text; half a character is shown as a replacement character."""
    different = set(ids)
    if len(different) > MOST_STRINGS:
        raise invalid(text("serve.too_many_strings", most=MOST_STRINGS), "return_token_strs")
    told = {token: await engine.detokenize([token]) for token in different}
    return [told[token] for token in ids]


ROUTES = (Route("POST", "/tokenize", tokenize), Route("POST", "/detokenize", detokenize))
