"""Counters and histograms of the gateway, under `inhouse:` with vLLM's names where the meaning is the same."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from inhouse.core.serving import Delta, Usage

LABELS = ("model_name", "engine")
FIRST_TOKEN_S = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
WHOLE_S = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)


@dataclass
class Measured:
    """What becomes of one request; `add` follows it while it is answered."""

    model: str = "-"
    engine: str = "-"
    status: int = 500
    finish: str | None = None
    began: float = field(default_factory=time.monotonic)
    first_token_s: float | None = None
    usages: list[Usage] = field(default_factory=list)

    def add(self, deltas: list[Delta]) -> None:
        """Follow what arrived."""
        if self.first_token_s is None:
            self.first_token_s = time.monotonic() - self.began
        for delta in deltas:
            if delta.finish is not None:
                self.finish = delta.finish
            if delta.usage is not None:
                self.usages.append(delta.usage)

    def from_memory(self) -> None:
        """The answer was there already, or another request's: no engine has worked for it."""
        self.engine, self.usages = "cache", []

    def reset(self) -> None:
        """Begin again with another engine."""
        self.finish, self.first_token_s, self.usages = None, None, []

    @property
    def usage(self) -> Usage:
        """Of all choices: they share the prompt."""
        if not self.usages:
            return Usage(0, 0)
        first = self.usages[0]
        answer = sum(usage.answer for usage in self.usages)
        return Usage(first.prompt, answer, first.cached, first.prefill_s, first.decode_s)


class Metrics:
    """The numbers of one gateway. `running` and `waiting` are asked when somebody looks."""

    def __init__(self, running: Callable[[], int], waiting: Callable[[], int], restarts: Callable[[], int]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series per counter that nobody reads
        self.registry = CollectorRegistry()
        for name, says, read in (
            ("inhouse:num_requests_running", "Requests in the engine.", running),
            ("inhouse:num_requests_waiting", "Requests in the queue.", waiting),
            ("inhouse:engine_restarts", "Times the engine in use was started again after a crash.", restarts),
        ):
            Gauge(name, says, registry=self.registry).set_function(read)
        self.requests = self._counter("inhouse:requests", "Requests by HTTP status.", "status")
        self.success = self._counter("inhouse:request_success", "Answers by the reason they ended.", "finished_reason")
        self.prompt_tokens = self._counter("inhouse:prompt_tokens", "Prompt tokens processed.")
        self.answer_tokens = self._counter("inhouse:generation_tokens", "Tokens generated.")
        self.first_token = self._histogram(
            "inhouse:time_to_first_token_seconds", "Until the first token.", FIRST_TOKEN_S
        )
        self.whole = self._histogram("inhouse:e2e_request_latency_seconds", "Until the last token.", WHOLE_S)
        self.switches = Counter(
            "inhouse:release_switches", "Changes of the served release.", ("result",), registry=self.registry
        )

    def observe(self, seen: Measured, seconds: float) -> None:
        """Count one finished request."""
        labels = (seen.model, seen.engine)
        usage = seen.usage
        self.requests.labels(*labels, str(seen.status)).inc()
        self.prompt_tokens.labels(*labels).inc(usage.prompt)
        self.answer_tokens.labels(*labels).inc(usage.answer)
        if seen.first_token_s is not None:
            self.first_token.labels(*labels).observe(seen.first_token_s)
        if seen.finish is not None:
            self.success.labels(*labels, seen.finish).inc()
            self.whole.labels(*labels).observe(seconds)

    def text(self) -> bytes:
        """The numbers in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, says: str, *labels: str) -> Counter:
        return Counter(name, says, (*LABELS, *labels), registry=self.registry)

    def _histogram(self, name: str, says: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, says, LABELS, registry=self.registry, buckets=buckets)
