"""llama.cpp as an engine that serves: our requests in its words, its chunks in ours."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inhouse.core.serving import (
    Ask,
    Capabilities,
    Constraint,
    Delta,
    EngineLost,
    EngineRefused,
    EngineSilent,
    Sampling,
    Stats,
    Usage,
)
from inhouse.engines.backend import EngineSettings
from inhouse.engines.llamacpp import LlamaCppSettings, RunningEngine, start_server
from inhouse.engines.llamacpp_embedding import Embedder, embed
from inhouse.engines.process import Child

if TYPE_CHECKING:
    import aiohttp

LINE_BYTES = 2**20  # a chunk with 20 log-probabilities per token is about 4 KB
CONNECT_S = 5.0
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
    own = LlamaCppSettings(context_length=settings.context_length, parallel=settings.parallel, threads=settings.threads)
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
            tools="auto",
            constraints=frozenset({"json_object", "json_schema", "regex", "grammar", "choice"}),
            logprobs=True,
            logit_bias=True,
            embeddings=embedder is not None,
            prefix_cache=True,
            most_parallel=settings.parallel,
        )
        self._silence_s = settings.silence_s
        self._embedder = embedder
        self._session: aiohttp.ClientSession | None = None

    async def submit(self, ask: Ask) -> AsyncGenerator[list[Delta], None]:
        """The answer as it is made; closing the generator closes the connection, which frees the slot."""
        import aiohttp
        from aiohttp.http_exceptions import HttpProcessingError  # a line that is too long is no ClientError

        # Always streamed: llama.cpp notices only in a stream that the client has gone.
        body = request_body(ask) | {"stream": True, "stream_options": {"include_usage": True}}
        path = "/v1/completions" if ask.messages is None else "/v1/chat/completions"
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=self._silence_s)
        try:
            async with self._http().post(
                self.server.url + path, json=body, headers=self.server.headers, timeout=limits
            ) as response:
                if response.status != 200:
                    raise _refusal(await response.read(), response.status)
                async for line in response.content:
                    if not line.startswith(b"data: "):
                        continue
                    if line.startswith(b"data: [DONE]"):
                        return
                    chunk = json.loads(line[6:])
                    if isinstance(chunk, dict):  # llama.cpp sends a `null` first in some cases
                        if "error" in chunk:
                            raise _refusal(line[6:], 500)
                        if deltas := deltas_of(chunk):
                            yield deltas
        except aiohttp.SocketTimeoutError as error:
            raise EngineSilent from error
        except (aiohttp.ClientError, HttpProcessingError, OSError, ValueError) as error:
            raise EngineLost from error
        raise EngineLost

    async def embed(self, texts: Sequence[str] | Sequence[Sequence[int]]) -> tuple[list[list[float]], int]:
        """One vector a text, from the second server that llama.cpp needs for them; the first call starts it."""
        if self._embedder is None:
            raise EngineRefused("unsupported")
        server = await asyncio.to_thread(self._embedder.running)
        return await embed(self._http(), server, texts, self._silence_s)

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
        return str((await self._post("/apply-template", {"messages": ask.messages}))["prompt"])

    async def stats(self) -> Stats:
        """Nothing that the gateway does not count itself."""
        return Stats()

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    def _http(self) -> aiohttp.ClientSession:
        import aiohttp

        if self._session is None:
            # llama.cpp closes a connection after a stream without saying so: a request that reuses it would fail.
            connector = aiohttp.TCPConnector(limit=0, force_close=True)
            self._session = aiohttp.ClientSession(connector=connector, read_bufsize=LINE_BYTES, trust_env=False)
        return self._session

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        import aiohttp

        try:
            async with self._http().post(self.server.url + path, json=body, headers=self.server.headers) as response:
                if response.status != 200:
                    raise _refusal(await response.read(), response.status)
                found: dict[str, Any] = await response.json()
                return found
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise EngineLost from error


def request_body(ask: Ask) -> dict[str, Any]:
    """An Ask as llama.cpp's OpenAI routes take it."""
    body = _sampling(ask.sampling, chat=ask.messages is not None)
    if ask.messages is None:
        body["prompt"] = ask.prompt
    else:
        body["messages"] = ask.messages
    if ask.constraint is not None:
        body |= _constraint(ask.constraint)
    if ask.tools:
        body |= {
            "tools": ask.tools,
            "tool_choice": ask.tool_choice,
            "parallel_tool_calls": ask.parallel_tool_calls,
        }
    return body


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
        body["stop"] = list(asked.stop)
    if asked.n > 1:
        body["n"] = asked.n
    if asked.presence_penalty or asked.frequency_penalty:
        body |= {"presence_penalty": asked.presence_penalty, "frequency_penalty": asked.frequency_penalty}
    if asked.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in asked.logit_bias.items()}
    if asked.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": asked.logprobs} if chat else {"logprobs": max(1, asked.logprobs)}
    if asked.ignore_end:
        body["ignore_eos"] = True
    return body


def _constraint(asked: Constraint) -> dict[str, Any]:
    if asked.kind == "json_object":
        return {"response_format": {"type": "json_object"}}
    if asked.kind == "json_schema":
        return {"json_schema": asked.value}
    if asked.kind == "grammar":
        return {"grammar": asked.value}
    if asked.kind == "choice":
        return {"grammar": "root ::= " + " | ".join(json.dumps(choice, ensure_ascii=False) for choice in asked.value)}
    return {"json_schema": {"type": "string", "pattern": asked.value}}


def deltas_of(chunk: Mapping[str, Any]) -> list[Delta]:
    """One chunk of the stream as what each choice gained; the usage stands in a delta of its own."""
    found = [_delta(raw) for raw in chunk.get("choices", ())]
    usage = chunk.get("usage")
    if usage:
        timings = chunk.get("timings") or {}
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        spent = Usage(
            prompt=int(usage["prompt_tokens"]),
            answer=int(usage["completion_tokens"]),
            cached=int(cached or timings.get("cache_n", 0)),
            prefill_s=_seconds(timings.get("prompt_ms")),
            decode_s=_seconds(timings.get("predicted_ms")),
        )
        found.append(Delta(tokens=0, usage=spent))
    return found


def _delta(raw: Mapping[str, Any]) -> Delta:
    gained = raw.get("delta")
    ends = raw.get("finish_reason")
    logprobs = (raw.get("logprobs") or {}).get("content")
    if gained is None:
        return Delta(raw.get("text") or "", raw["index"], 1 if raw.get("text") else 0, ends, logprobs)
    text = gained.get("content") or ""
    return Delta(
        text,
        raw["index"],
        0 if "role" in gained and not text else 1,
        ends,
        logprobs,
        gained.get("tool_calls"),
        gained.get("reasoning_content"),
    )


def _seconds(milliseconds: Any) -> float | None:
    return milliseconds / 1000 if isinstance(milliseconds, int | float) else None


def _refusal(body: bytes, status: int) -> EngineRefused:
    """Our words for the engine's: its messages may name paths and addresses."""
    try:
        error = json.loads(body)["error"]
        kind, tokens = error.get("type"), error.get("n_prompt_tokens")
    except (ValueError, KeyError, TypeError, AttributeError):
        kind, tokens = None, None
    if kind == "exceed_context_size_error":
        return EngineRefused("context", tokens if isinstance(tokens, int) else None)
    return EngineRefused("invalid" if status in (400, 413, 422) else "failed")
