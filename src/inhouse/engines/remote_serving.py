"""Any OpenAI-compatible endpoint as an engine that serves: vLLM, SGLang, TGI, Ollama, llama-server, a provider."""

from __future__ import annotations

import base64
import binascii
import logging
import math
from array import array
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field
from pydantic_core import from_json

from inhouse.core.control_tokens import WELL_KNOWN
from inhouse.core.errors import UserError
from inhouse.core.params import Params
from inhouse.core.serving import Ask, Capabilities, Delta, EngineLost, EngineRefused, Push, Stats
from inhouse.engines.http_stream import Origin, Patience
from inhouse.engines.openai_deltas import chosen_alone, encoded, refused, streamed, whole_deltas
from inhouse.engines.remote_discovery import authorities, discover, headers_for, looking, reached
from inhouse.engines.remote_kinds import Found, Tools, request_body

if TYPE_CHECKING:
    import httpx

STATS = {  # what each kind calls it in its Prometheus metrics
    "vllm": ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"),
    "sglang": ("sglang:num_running_reqs", "sglang:num_queue_reqs", "sglang:token_usage"),
    "llama-server": ("llamacpp:requests_processing", "llamacpp:requests_deferred", ""),
}
log = logging.getLogger("inhouse.serve")


class RemoteSettings(Params):
    """An endpoint that answers in our place, and how patient we are with it."""

    url: str = Field(pattern=r"^https?://", description="address of the API, usually up to /v1")
    model: str = Field(min_length=1, description="name of the model there")
    api_key_env: str | None = Field(
        None,
        pattern=r"^INHOUSE_UPSTREAM_[A-Z0-9_]+$",
        description="environment variable with its key; absent: OPENAI_API_KEY, if OPENAI_BASE_URL is this address",
    )
    headers: dict[str, str] = Field({}, description="further headers, without secrets")
    certificates: Path | None = Field(None, description="PEM file of the authorities to trust; absent: the system's")
    context_length: int | None = Field(None, ge=64, description="tokens of a request; absent: what the endpoint says")
    parallel: int = Field(64, ge=1, le=4096, description="requests sent at the same time")
    tools: Tools | None = Field(None, description="tool calls it can do; absent: what its kind always can")
    connect_s: float = Field(5.0, gt=0, description="seconds until a connection counts as failed")
    silence_s: float = Field(300.0, gt=0, description="an endpoint that says nothing for so long is given up")


@dataclass(frozen=True)
class RemoteBackend:
    """An endpoint that was found. There is no child process: whoever runs it supervises it."""

    settings: RemoteSettings
    found: Found
    context_length: int

    def healthy(self) -> bool:
        """Whether it still lists its models; called from a thread."""
        return reached(self.found, self._client)

    @cached_property
    def _client(self) -> httpx.Client:
        return _looking(self.settings)  # kept: with a new one a look takes 4 ms, and there are some in a second

    def open(self) -> RemoteServing:
        """A connection for the running event loop."""
        return RemoteServing(self)


def start(settings: RemoteSettings, offline: bool = False) -> RemoteBackend:
    """Find out what an endpoint is. Raises remote.offline, remote.unreachable, remote.refused, remote_serving.*."""
    if offline:
        raise UserError("remote.offline", url=settings.url)
    with _looking(settings) as client:
        found = discover(settings.url, settings.model, client, settings.context_length)
    assert found.context_length is not None
    return RemoteBackend(settings, found, found.context_length)


def _looking(settings: RemoteSettings) -> httpx.Client:
    headers = headers_for(settings.url, settings.api_key_env, settings.headers)
    return looking(headers, settings.certificates)


class RemoteServing:
    """Implements core.serving.ServingEngine over an OpenAI-compatible endpoint."""

    name = "remote"

    def __init__(self, backend: RemoteBackend) -> None:
        settings = backend.settings
        self.found = backend.found
        self.context_length = backend.context_length
        dialect = self.found.dialect
        self.capabilities = Capabilities(
            tools=settings.tools or dialect.tools,
            constraints=dialect.constraints,
            logprobs=dialect.logprobs,
            logit_bias=dialect.logit_bias,
            embeddings=True,
            adapters=self.found.adapters,
            prefix_cache=dialect.prefix_cache,
            most_parallel=settings.parallel,
            control=WELL_KNOWN,
        )
        headers = headers_for(settings.url, settings.api_key_env, settings.headers)
        patience = Patience(settings.connect_s, settings.silence_s, most_idle=settings.parallel)
        tls = authorities(settings.certificates)
        self._api = Origin(self.found.api, headers, patience, tls)
        self._own = Origin(self.found.root, headers, patience, tls)

    async def submit(self, ask: Ask, push: Push | None = None) -> AsyncGenerator[list[Delta], None]:
        """The answer; in one piece where nobody reads the pieces and the endpoint notices that we have gone."""
        body = request_body(ask, self.found)
        path = "/completions" if ask.messages is None else "/chat/completions"
        alone = ask.sampling.logprobs == 0
        try:
            if ask.whole and self.found.dialect.cancels_whole:
                deltas = whole_deltas(await self._post(self._api, path, body))
                yield chosen_alone(deltas) if alone else deltas
                return
            body |= {"stream": True, "stream_options": {"include_usage": True}}
            async with aclosing(streamed(self._api, path, encoded(body), push, alone)) as pieces:
                async for deltas in pieces:
                    yield deltas
        except EngineRefused as error:
            if error.reason == "failed":
                log.error("the endpoint %s (%s) refused a request: check its key and model", self.found.api, self.name)
            raise

    async def embed(self, texts: Sequence[str] | Sequence[Sequence[int]]) -> tuple[list[list[float]], int]:
        """One vector a text (unit length), and the number of tokens read."""
        body = {"model": self.found.model, "input": list(texts), "encoding_format": "base64"}
        answer = await self._asked(self._api, "/embeddings", body)
        try:
            rows = sorted(answer["data"], key=lambda row: row["index"])
            read = int((answer.get("usage") or {}).get("prompt_tokens", 0))
            return [_unit(_vector(row["embedding"])) for row in rows], read
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise EngineLost from error

    async def tokenize(self, text: str, special: bool) -> list[int]:
        """Token ids. Raises EngineRefused where the endpoint has no such route."""
        bodies: dict[str, dict[str, Any]] = {
            "vllm": {"model": self.found.model, "prompt": text, "add_special_tokens": special},
            "sglang": {"model": self.found.model, "prompt": text, "add_special_tokens": special},
            "llama-server": {"content": text, "add_special": special, "parse_special": special},
        }
        answer = await self._asked(self._own, "/tokenize", self._known(bodies))
        return [int(token) for token in _field(answer, "tokens")]

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids. Raises EngineRefused where the endpoint has no such route."""
        named = {"model": self.found.model, "tokens": list(tokens)}
        body = self._known({"vllm": named, "sglang": named, "llama-server": {"tokens": list(tokens)}})
        answer = await self._asked(self._own, "/detokenize", body)
        return str(_field(answer, {"vllm": "prompt", "sglang": "text", "llama-server": "content"}[self.found.kind]))

    async def render(self, ask: Ask) -> str:
        """The conversation through the model's own template. Raises EngineRefused where no route tells it."""
        messages = list(ask.messages or ())
        if self.found.kind == "vllm":
            body = {"model": self.found.model, "messages": messages, "add_generation_prompt": True}
            answer = await self._asked(self._own, "/tokenize", body)
            return await self.detokenize(_field(answer, "tokens"))
        body = self._known({"llama-server": {"messages": messages}})
        return str(_field(await self._asked(self._own, "/apply-template", body), "prompt"))

    async def stats(self) -> Stats:
        """Load, from the endpoint's own metrics where it has some that we know."""
        if self.found.kind not in STATS:
            return Stats()
        try:
            status, text = await self._own.call("/metrics")
        except EngineLost:
            return Stats()
        running, waiting, used = STATS[self.found.kind]
        seen = _sums(text.decode("utf-8", "replace")) if status == 200 else {}
        return Stats(int(seen.get(running, 0)), int(seen.get(waiting, 0)), seen.get(used))

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()
        await self._own.close()

    def _known(self, bodies: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        if self.found.kind not in bodies:
            raise EngineRefused("unsupported")
        return bodies[self.found.kind]

    async def _post(self, origin: Origin, path: str, body: Mapping[str, Any]) -> bytes:
        status, answer = await origin.call(path, encoded(body))
        if status != 200:
            raise refused(status, answer)
        return answer

    async def _asked(self, origin: Origin, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        try:
            answer = from_json(await self._post(origin, path, body))
        except ValueError as error:
            raise EngineLost from error
        if not isinstance(answer, dict):
            raise EngineLost
        return answer


def _field(answer: Mapping[str, Any], name: str) -> Any:
    if name not in answer:
        raise EngineLost
    return answer[name]


def _vector(told: str | Sequence[float]) -> Sequence[float]:
    """Numbers, also from base64 of little-endian float32."""
    return array("f", base64.b64decode(told, validate=True)) if isinstance(told, str) else told


def _unit(vector: Sequence[float]) -> list[float]:
    length = math.sqrt(math.fsum(x * x for x in vector)) or 1.0
    return [x / length for x in vector]


def _sums(text: str) -> dict[str, float]:
    """The metrics of Prometheus' text format by name, summed over their labels."""
    from prometheus_client.parser import text_string_to_metric_families

    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found
