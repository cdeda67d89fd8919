"""llama.cpp as an engine that serves: our requests in its words, its chunks in ours."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inhouse.core.serving import Ask, Capabilities, Delta, EngineLost, EngineRefused, Push, Sampling, Stats
from inhouse.core.thoughts import writes_thoughts
from inhouse.core.tool_words import writes_tools
from inhouse.engines.backend import EngineSettings
from inhouse.engines.http_stream import Origin, Patience
from inhouse.engines.llamacpp import LlamaCppSettings, RunningEngine, start_server
from inhouse.engines.llamacpp_embedding import Embedder, embed
from inhouse.engines.openai_deltas import encoded, refused, streamed
from inhouse.engines.process import Child
from inhouse.engines.thought_margins import without_margins

SEEDS = 2**32 - 1  # 32 bits, and the largest value means 'random'
# Neutral where a request says nothing: llama.cpp's own defaults (top_k 40, top_p 0.95, min_p 0.05) would make the
# same request mean another distribution than on other engines.
NEUTRAL: dict[str, Any] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0}


@dataclass(frozen=True)
class LlamaCppBackend:
    """A running llama.cpp server, with the settings that requests need to know."""

    server: RunningEngine
    settings: EngineSettings
    embedder: Embedder | None = None

    @property
    def process(self) -> Child:
        """The child."""
        return self.server.process

    @property
    def context_length(self) -> int:
        """Tokens of one request, cut to what the model was made for."""
        return self.server.context_length

    def healthy(self) -> bool:
        """Whether it answers its health check."""
        return self.server.healthy()

    def open(self) -> LlamaCppServing:
        """A connection for the running event loop."""
        return LlamaCppServing(self.server, self.settings, self.embedder)


def start(source: Path, settings: EngineSettings, name: str) -> LlamaCppBackend:
    """Load a GGUF file in a child. Raises as `llamacpp.start_server` does."""
    own = LlamaCppSettings(
        context_length=settings.context_length,
        parallel=settings.parallel,
        threads=settings.threads,
        adapters=settings.adapters,
        speculation=settings.speculation,
        cache_type_k=settings.kv_cache,
        cache_type_v=settings.kv_cache,
    )
    server = start_server(source, own, name=name, load_timeout_s=settings.load_timeout_s)
    embedder = Embedder(source, settings, name, server.process) if settings.embeddings else None
    return LlamaCppBackend(server, settings, embedder)


class LlamaCppServing:
    """Implements core.serving.ServingEngine over llama.cpp's HTTP listener."""

    name = "llamacpp"

    def __init__(self, server: RunningEngine, settings: EngineSettings, embedder: Embedder | None = None) -> None:
        self.server = server
        self.context_length = server.context_length
        self.capabilities = Capabilities(
            constraints=frozenset({"json_object", "json_schema", "regex", "grammar", "choice"}),
            logprobs=True,
            logit_bias=True,
            embeddings=embedder is not None,
            adapters=server.adapters,
            prefix_cache=True,
            most_parallel=settings.parallel,
            control=server.control,
            template_tools=writes_tools(server.template),
        )
        self._embedder = embedder
        self._patience = Patience(silence_s=settings.silence_s, most_idle=settings.parallel)
        self._origin = Origin(server.url, server.headers, self._patience)
        self._embedding: tuple[RunningEngine, Origin] | None = None
        self._vocabulary: int | None = None  # known from the first request on that needs it

    async def submit(self, ask: Ask, push: Push | None = None) -> AsyncGenerator[list[Delta], None]:
        """The answer as it is made; closing the generator closes the connection, which frees the slot."""
        if ask.sampling.logit_bias and max(ask.sampling.logit_bias) >= await self._tokens_known():
            raise EngineRefused("invalid", keyword="logit_bias")  # llama.cpp passes over what it does not know
        # Always streamed: llama.cpp notices only in a stream that the client has gone.
        body = request_body(ask) | {"stream": True, "stream_options": {"include_usage": True}}
        if ask.sampling.repetition_penalty != 1:
            body["repeat_last_n"] = self.context_length  # the prompt too, as on other engines
        if self.server.adapters:  # said of each, or a request reuses what an earlier one's adapter left in the cache
            body["lora"] = self.server.lora(ask.adapter)
        path = "/v1/completions" if ask.messages is None else "/v1/chat/completions"
        alone = ask.sampling.logprobs == 0
        thinks = ask.messages is not None and writes_thoughts(self.server.template)
        told = streamed(self._origin, path, encoded(body), None if thinks else push, alone)
        async with aclosing(without_margins(told) if thinks else told) as pieces:
            async for deltas in pieces:
                yield deltas

    async def embed(self, texts: Sequence[str] | Sequence[Sequence[int]]) -> tuple[list[list[float]], int]:
        """One vector a text, from the second server that llama.cpp needs for them; the first call starts it."""
        if self._embedder is None:
            raise EngineRefused("unsupported")
        server = await asyncio.to_thread(self._embedder.running)
        if self._embedding is None or self._embedding[0] is not server:
            self._embedding = (server, Origin(server.url, server.headers, self._patience))
        return await embed(self._embedding[1], texts)

    async def tokenize(self, text: str, special: bool) -> list[int]:
        """Token ids."""
        body = {"content": text, "add_special": special, "parse_special": special}
        ids: list[int] = (await self._post("/tokenize", body))["tokens"]
        return ids

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids."""
        return str((await self._post("/detokenize", {"tokens": list(tokens)}))["content"])

    async def render(self, ask: Ask) -> str:
        """The conversation through the model's own template."""
        body: dict[str, Any] = {"messages": ask.messages, **told_tools(ask)}
        return str((await self._post("/apply-template", body))["prompt"])

    async def stats(self) -> Stats:
        """The share of the context of all slots that running requests hold."""
        try:
            status, said = await self._origin.call("/slots")
        except EngineLost:
            return Stats()
        return slots_told(json.loads(said)) if status == 200 else Stats()

    async def close(self) -> None:
        """Close the connections."""
        await self._origin.close()
        if self._embedding is not None:
            await self._embedding[1].close()

    async def _tokens_known(self) -> int:
        """How many tokens the model knows."""
        if self._vocabulary is None:
            status, said = await self._origin.call("/v1/models")
            if status != 200:
                raise refused(status, said)
            try:
                self._vocabulary = int(json.loads(said)["data"][0]["meta"]["n_vocab"])
            except (ValueError, LookupError, TypeError) as error:
                raise EngineLost from error
        return self._vocabulary

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        status, said = await self._origin.call(path, encoded(body))
        if status != 200:
            raise refused(status, said)
        try:
            found: dict[str, Any] = json.loads(said)
        except ValueError as error:
            raise EngineLost from error
        return found


def slots_told(slots: Sequence[Mapping[str, Any]]) -> Stats:
    """What llama.cpp's /slots says. `n_prompt_tokens` grows with the answer: all tokens that a slot holds.

    A slot that is free still keeps its last request's, for one that begins alike: they are given up when needed.
    """
    busy = [slot for slot in slots if slot["is_processing"]]
    room = sum(slot["n_ctx"] for slot in slots)
    held = sum(slot.get("n_prompt_tokens", 0) for slot in busy)
    return Stats(running=len(busy), cache_used=min(1.0, held / room) if room else None)


def request_body(ask: Ask) -> dict[str, Any]:
    """An Ask as llama.cpp's OpenAI routes take it."""
    body = _sampling(ask.sampling, chat=ask.messages is not None)
    if ask.messages is None:
        body["prompt"] = ask.prompt
    else:
        body |= {"messages": ask.messages, **told_tools(ask)}
    if ask.constraint is not None:
        # Always as text for llguidance, which is bounded in time and memory; llama.cpp's own grammar engine is not.
        body["grammar"] = ask.constraint.lark
    return body


def told_tools(ask: Ask) -> dict[str, Any]:
    """Tools for a template that writes them; llama.cpp neither demands a call nor reads one: the gateway does."""
    return {"tools": list(ask.tools), "tool_choice": "none"} if ask.tools else {}


def _sampling(asked: Sampling, chat: bool) -> dict[str, Any]:
    given = {"top_k": asked.top_k, "top_p": asked.top_p, "min_p": asked.min_p}
    body: dict[str, Any] = {
        **NEUTRAL,
        **{name: value for name, value in given.items() if value is not None},
        "max_tokens": asked.max_tokens,
        "temperature": asked.temperature,
    }
    if asked.seed is not None:
        body["seed"] = asked.seed % SEEDS
    if asked.stop:
        body |= {"stop": list(asked.stop), "verbose": True}  # the last chunk then names the one that was met
    if asked.n > 1:
        body["n"] = asked.n
    if asked.repetition_penalty != 1:
        body["repeat_penalty"] = asked.repetition_penalty
    if asked.presence_penalty or asked.frequency_penalty:
        body |= {"presence_penalty": asked.presence_penalty, "frequency_penalty": asked.frequency_penalty}
        body["repeat_last_n"] = asked.max_tokens  # the whole answer, where llama.cpp looks at its last 64 tokens
    if asked.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in asked.logit_bias.items()}
    if asked.logprobs is not None:
        others = max(1, asked.logprobs)  # with none of them llama.cpp tells nothing
        body |= {"logprobs": True, "top_logprobs": others} if chat else {"logprobs": others}
    if asked.ignore_end:
        body["ignore_eos"] = True
    return body
