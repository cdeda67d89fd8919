"""Every route of the endpoint: which verb and path, which scope of a key it needs, and who answers."""

from __future__ import annotations

import asyncio
import importlib
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import cached_property

from inhouse.core.messages import text
from inhouse.release.keys import Scope
from inhouse.release.request_records import FOLDER
from inhouse.release.settings import ServeParams
from inhouse.serve.background import Background
from inhouse.serve.batch_worker import BatchWorker
from inhouse.serve.constraints import start_compiler, stop_compiler
from inhouse.serve.deployments import Deployments
from inhouse.serve.errors import ApiError
from inhouse.serve.file_store import FileStore
from inhouse.serve.http import Call
from inhouse.serve.kept_responses import KeptResponses
from inhouse.serve.metrics import Gauges, Metrics
from inhouse.serve.pipeline import Caller, Pipeline
from inhouse.serve.request_log import RequestLog
from inhouse.serve.tracing import start_tracing
from inhouse.serve.watchers import Watchers, gauges

# Modules of this package, each with a tuple ROUTES.
FAMILIES = (
    *("status", "models", "chat", "embeddings", "tokens", "rerank", "responses", "files", "batches", "messages"),
    *("feedback", "ollama", "openapi"),
)

TIDY_S = 3600.0
LEASES_S = 30.0  # a quarter of what a worker's lease lasts


@dataclass
class Services:
    """What routes work with; one for the whole gateway."""

    deployments: Deployments
    settings: ServeParams
    metrics: Metrics
    watchers: Watchers
    pipeline: Pipeline
    started_at: int = field(default_factory=lambda: int(time.time()))
    background: Background = field(default_factory=Background)

    @classmethod
    def over(cls, deployments: Deployments) -> Services:
        """The services over the deployments that are followed."""
        settings = deployments.params
        metrics = Metrics(Gauges(lambda: gauges(deployments)), settings.vllm_metrics, settings.price_per_hour)
        deployments.on_switch = lambda result: metrics.switches.add((result,))
        log = None
        if settings.log.enabled:
            folder, dropped = deployments.registry.store.root / FOLDER, metrics.log_dropped
            log = RequestLog(folder, settings.log, lambda count: dropped.add((), count))
        watchers = Watchers(metrics, log, start_tracing() if settings.tracing else None)
        return cls(deployments, settings, metrics, watchers, Pipeline(deployments, settings, watchers))

    @cached_property
    def responses(self) -> KeptResponses:
        """Responses that clients may ask for again."""
        engine, settings = self.deployments.registry.engine, self.settings
        return KeptResponses(engine, settings.responses_days, self.background.makes, settings.deadline_s)

    @cached_property
    def files(self) -> FileStore:
        """Files that clients sent, and results of batches."""
        registry = self.deployments.registry
        return FileStore(registry.engine, registry.store.root / "files", self.settings.files)

    @cached_property
    def batches(self) -> BatchWorker:
        """What answers batches."""
        return BatchWorker(self)

    @cached_property
    def routes(self) -> Routes:
        """The table of routes, for requests that did not come over HTTP."""
        return Routes()

    async def start(self) -> None:
        """Called once inside the event loop, before the first request."""
        self.background.every("tidy responses", TIDY_S, self.responses.tidy)
        self.background.every("tidy files", TIDY_S, self.files.tidy)
        self.background.every("batch leases", LEASES_S, self.batches.keep_leases)
        self.background.start("batches", self.batches.run())
        for serving in self.deployments.serving.values():
            if rule := serving.deployment.rules.overflow:
                self.pipeline.overflows.pool(rule)
        await start_compiler()

    async def stop(self) -> None:
        """Called once inside the event loop, after the last request."""
        await self.background.stop()
        await stop_compiler()
        await self.pipeline.overflows.close()
        await self.pipeline.guards.close()
        for target in self.deployments.targets():
            await target.pool.disconnect()
        if self.watchers.log is not None:
            await asyncio.to_thread(self.watchers.log.close)

    def caller(self, call: Call, user: str | None = None) -> Caller:
        """Who asks."""
        assert call.key is not None
        notes = call.connection.headers
        return Caller(
            call.key, call.connection.request_id, call.path, user, call.headers, notes, call.fresh, call.background
        )


Handler = Callable[[Services, Call], Awaitable[None]]


@dataclass(frozen=True)
class Route:
    """One verb and path; `{name}` in the path matches one segment."""

    verb: str
    path: str
    handle: Handler
    scope: Scope = "chat"

    @property
    def pattern(self) -> re.Pattern[str]:
        """What the path must match."""
        return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(self.path)))


class Routes:
    """The table of routes."""

    def __init__(self) -> None:
        self._exact: dict[str, dict[str, Route]] = {}
        self._patterns: list[tuple[re.Pattern[str], Route]] = []
        for family in FAMILIES:
            for route in importlib.import_module(f"inhouse.serve.routes.{family}").ROUTES:
                if "{" in route.path:
                    self._patterns.append((route.pattern, route))
                else:
                    self._exact.setdefault(route.path, {})[route.verb] = route

    def all(self) -> list[Route]:
        """Every route, for the OpenAPI document."""
        return [r for verbs in self._exact.values() for r in verbs.values()] + [r for _, r in self._patterns]

    def find(self, verb: str, path: str) -> tuple[Route, dict[str, str]]:
        """The route, and the values of its `{names}`. Raises ApiError 404 or 405."""
        verbs = self._exact.get(path)
        if verbs is not None and verb in verbs:
            return verbs[verb], {}
        known = set(verbs or ())
        for pattern, route in self._patterns:
            if found := pattern.fullmatch(path):
                if route.verb == verb:
                    return route, found.groupdict()
                known.add(route.verb)
        if known:
            allow = ", ".join(sorted(known))
            refused = ApiError(405, "method_not_allowed", text("serve.verb", verb=allow))
            refused.allow = allow
            raise refused
        raise ApiError(404, "not_found", text("serve.no_route"))
