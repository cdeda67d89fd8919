"""How fast a deployment answers here at 1, 8 and 32 clients, and how near that is to what this machine can do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from inhouse.api.chat import authorization
from inhouse.api.machine_bounds import Bounds, Decode, measure_bounds
from inhouse.api.request import Request
from inhouse.api.serving import certificate_at, choose_deployment, local_key, running_server, temporary_server
from inhouse.core.artifact import Frozen
from inhouse.core.errors import UserError
from inhouse.core.model import ModelFacts
from inhouse.core.plugins import require
from inhouse.core.run import Events
from inhouse.core.settings import settings
from inhouse.core.store import read_json
from inhouse.release.registry import Registry, open_registry
from inhouse.remote.trust import trusting

LEVELS = (1, 8, 32)
SILENCE_S = 120.0
# Other words in every request: an answer from memory would measure the memory.
TOPICS = ("a river", "the moon", "a bakery", "steel", "a violin", "rain", "a library", "salt", "an airport", "honey")


class BenchServeRequest(Request):
    """What is measured, and how much is asked of it."""

    deployment: str | None = Field(None, description="deployment to measure; may be left out when there is only one")
    url: str | None = Field(None, description="an endpoint that runs; absent: this workspace's, else one is started")
    key: str | None = Field(None, description="API key")
    clients: tuple[int, ...] = Field(LEVELS, description="numbers of clients that ask at the same time")
    requests: int = Field(2, ge=1, le=1000, description="requests of each client")
    max_tokens: int = Field(64, ge=2, le=4096, description="tokens of each answer")
    minutes: float = Field(5.0, gt=0, le=24 * 60, description="no request begins later than this")


class ServeLine(Frozen):
    """One number of clients. Times are in milliseconds."""

    clients: int
    requests: int
    failed: int
    tokens: int
    tokens_per_s: float
    ttft_ms_p50: float | None = Field(None, description="until the first token")
    ttft_ms_p95: float | None = None
    inter_token_ms_p50: float | None = Field(None, description="between two pieces of an answer")
    inter_token_ms_p95: float | None = None
    whole_ms_p50: float | None = Field(None, description="until the last token: what a client waits without streaming")
    decode: Decode | None = Field(None, description="what this machine allows at most; absent: the model is not known")


class BenchServe(Frozen):
    """What was measured."""

    url: str
    deployment: str
    started: bool = Field(description="whether a server was started for this")
    lines: tuple[ServeLine, ...]
    bounds: Bounds | None = None
    formula: str | None = Field(None, description="how the most that this machine allows was reckoned")


@dataclass(frozen=True)
class Endpoint:
    """What is asked, and as whom."""

    url: str
    key: str | None
    model: str
    ours: bool
    certificate: Path | None = None  # the one to trust; absent: whatever the machine's issuers vouch for


@dataclass
class Seen:
    """What the clients of one level saw."""

    firsts: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    wholes: list[float] = field(default_factory=list)
    tokens: int = 0
    prompt_tokens: int = 0
    failed: int = 0
    problem: str = ""


def bench_serve(request: BenchServeRequest, events: Events) -> BenchServe:
    """Measure tokens a second, the first token and the pauses between tokens at several numbers of clients.

    Raises serve.no_deployment, chat.which_model, chat.bad_key, chat.unreachable, bench_serve.clients and
    bench_serve.no_answer.
    """
    require("serve", "httptools", "uvicorn")
    if not request.clients or not all(1 <= count <= 512 for count in request.clients):
        raise UserError("bench_serve.clients", given=" ".join(map(str, request.clients)) or "-")
    events.stage = "bench-serve"
    facts = _facts(request)
    bounds = measure_bounds() if facts is not None else None
    with _endpoint(request) as (endpoint, started):
        lines = _levels(request, endpoint, events, facts, bounds)
    return BenchServe(
        url=endpoint.url, deployment=endpoint.model, started=started, lines=lines, bounds=bounds,
        formula=None if bounds is None else Decode.formula(),
    )  # fmt: skip


def _facts(request: BenchServeRequest) -> ModelFacts | None:
    """The header of the model that answers; None for an endpoint that is not ours, or a model on other machines."""
    if request.url is not None:
        return None
    registry = open_registry(request.store)
    release = registry.deployment(choose_deployment(registry, request.deployment)).release
    served: Any = read_json(registry.store.path(release.artifact) / "release.json")
    return ModelFacts.model_validate(registry.store.get(served["model"]["artifact"]).facts["model"])


@contextmanager
def _endpoint(request: BenchServeRequest) -> Iterator[tuple[Endpoint, bool]]:
    """The endpoint named, else this workspace's server, else one started for this; and whether it was."""
    key = request.key or settings().api_key
    if request.url is not None:
        if request.deployment is None:
            raise UserError("chat.which_model", url=request.url)
        url = request.url.rstrip("/").removesuffix("/v1")
        certificate = certificate_at(request.store, url)
        yield Endpoint(url, key, request.deployment, ours=False, certificate=certificate), False
        return
    registry: Registry = open_registry(request.store)
    name = choose_deployment(registry, request.deployment)
    with local_key(registry, key) as token:
        running = running_server(request.store)
        if running is not None:
            yield Endpoint(running.url, token, name, ours=True, certificate=running.certificate), False
            return
        with temporary_server(request.store, name, request.offline) as url:
            yield Endpoint(url, token, name, ours=True), True


def _levels(
    request: BenchServeRequest, endpoint: Endpoint, events: Events, facts: ModelFacts | None, bounds: Bounds | None
) -> tuple[ServeLine, ...]:
    """One line for each number of clients, after a request that warms the engine up."""
    deadline = time.monotonic() + request.minutes * 60
    plan = request.model_copy(update={"requests": 1})
    warm = asyncio.run(Level(plan, endpoint, 1, deadline).run(lambda done: None))
    if warm.failed:
        raise UserError("bench_serve.no_answer", url=endpoint.url, model=endpoint.model, problem=warm.problem)
    total = request.requests * sum(request.clients)
    lines: list[ServeLine] = []
    before = 0
    for clients in request.clients:

        def tick(done: int, before: int = before) -> None:
            events.progress(before + done, total, "requests")
            events.check()

        began = time.perf_counter()
        seen = asyncio.run(Level(request, endpoint, clients, deadline).run(tick))
        lines.append(_line(clients, seen, time.perf_counter() - began, facts, bounds))
        before += request.requests * clients
    return tuple(lines)


def _line(clients: int, seen: Seen, wall_s: float, facts: ModelFacts | None, bounds: Bounds | None) -> ServeLine:
    answered = len(seen.wholes)
    speed = seen.tokens / wall_s
    decode = None
    if facts is not None and bounds is not None and answered:
        length = (seen.prompt_tokens + seen.tokens / 2) / answered
        decode = Decode.of(facts, bounds, clients, length, speed)
    return ServeLine(
        clients=clients,
        requests=answered + seen.failed,
        failed=seen.failed,
        tokens=seen.tokens,
        tokens_per_s=speed,
        ttft_ms_p50=at(seen.firsts, 0.5),
        ttft_ms_p95=at(seen.firsts, 0.95),
        inter_token_ms_p50=at(seen.gaps, 0.5),
        inter_token_ms_p95=at(seen.gaps, 0.95),
        whole_ms_p50=at(seen.wholes, 0.5),
        decode=decode,
    )


def at(seconds: Sequence[float], share: float) -> float | None:
    """A quantile in milliseconds (nearest rank); None of nothing."""
    return 1000 * sorted(seconds)[min(len(seconds) - 1, int(share * len(seconds)))] if seconds else None


class Level:
    """Clients that ask at the same time, each one request after the other."""

    def __init__(self, request: BenchServeRequest, endpoint: Endpoint, clients: int, deadline: float) -> None:
        from inhouse.engines.http_stream import Origin, Patience

        self.request = request
        self.endpoint = endpoint
        self.clients = clients
        self.deadline = deadline
        self.seen = Seen()
        headers = {"Cache-Control": "no-store", **authorization(endpoint.key)}
        try:
            tls = None if endpoint.certificate is None else trusting(endpoint.certificate)
            self._http = Origin(endpoint.url, headers, Patience(5.0, SILENCE_S, most_idle=clients), tls)
        except (ValueError, OSError) as error:  # no address; no certificate any more
            raise UserError("chat.unreachable", url=endpoint.url, reason=str(error)) from None
        self._done = 0

    async def run(self, tick: Any) -> Seen:
        """What all of them saw; `tick(done)` after every request."""
        try:
            await asyncio.gather(*(self._client(number, tick) for number in range(self.clients)))
        finally:
            await self._http.close()
        return self.seen

    async def _client(self, client: int, tick: Any) -> None:
        for number in range(self.request.requests):
            if time.monotonic() > self.deadline:
                return
            await self._ask(client * self.request.requests + number)
            self._done += 1
            tick(self._done)

    async def _ask(self, number: int) -> None:
        from inhouse.core.serving import EngineLost, EngineRefused, EngineSilent
        from inhouse.engines.openai_deltas import streamed

        began, first, last = time.perf_counter(), 0.0, 0.0
        told = None
        try:
            async for deltas in streamed(self._http, "/v1/chat/completions", self._body(number)):
                now = time.perf_counter()
                told = next((delta.usage for delta in deltas if delta.usage), told)
                if any(delta.tokens for delta in deltas):
                    if last:
                        self.seen.gaps.append(now - last)
                    first, last = first or now, now
        except (EngineLost, EngineSilent, EngineRefused) as error:
            self.seen.failed += 1
            cause = type(error).__name__ if error.__cause__ is None else str(error.__cause__)
            self.seen.problem = error.reason if isinstance(error, EngineRefused) else cause
            return
        self.seen.firsts.append(first - began)
        self.seen.wholes.append(time.perf_counter() - began)
        if told is not None:
            self.seen.tokens += told.answer
            self.seen.prompt_tokens += told.prompt

    def _body(self, number: int) -> bytes:
        from pydantic_core import to_json

        said = f"[{self.clients}-{number}] Write a long story about {TOPICS[number % len(TOPICS)]}."
        body: dict[str, Any] = {
            "model": self.endpoint.model,
            "messages": [{"role": "user", "content": said}],
            "max_tokens": self.request.max_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        # An endpoint that is not ours may refuse what it does not know.
        return to_json(body | {"ignore_eos": True} if self.endpoint.ours else body)
