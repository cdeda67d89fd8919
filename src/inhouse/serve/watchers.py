"""Who is told of every finished request: metrics, the recent ones by id, the request log, tracing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from inhouse.core.serving import Ask
from inhouse.serve.deployments import Deployments
from inhouse.serve.measured import Measured
from inhouse.serve.metrics import Labels, Metrics
from inhouse.serve.request_log import RequestLog

RECENT = 4096  # requests of a key whose stages can be asked for by id
TENANTS = 256  # keys of which they are kept; those that asked longest ago are forgotten
CONTENT_CHARS = 20_000
Trace = Callable[[Measured], None]
Reading = tuple[str, str, dict[Labels, float]]


class Watchers:
    """Tells everybody."""

    def __init__(self, metrics: Metrics, log: RequestLog | None, trace: Trace | None) -> None:
        self.metrics = metrics
        self.log = log
        self.trace = trace
        self._recent: OrderedDict[str, OrderedDict[str, Measured]] = OrderedDict()  # tenant -> id -> request

    def finished(self, seen: Measured) -> None:
        """One request is over."""
        seen.end()
        if not seen.aside:
            self.metrics.observe(seen)
        self.remember(seen)
        if self.trace is not None:
            self.trace(seen)
        self._log(seen)
        seen.ask, seen.said = None, ""  # recent requests are kept, but not what was said

    def refused(self, seen: Measured) -> None:
        """One request was refused before it had a release: it can be found, and is in no figure of a release."""
        seen.end()
        self.remember(seen)
        self._log(seen)

    def remember(self, seen: Measured) -> None:
        """Keep it among the recent ones of its key."""
        mine = self._recent.get(seen.tenant)
        if mine is None:
            mine = self._recent[seen.tenant] = OrderedDict()
            if len(self._recent) > TENANTS:
                self._recent.popitem(last=False)
        else:
            self._recent.move_to_end(seen.tenant)
        mine[seen.request_id] = seen
        if len(mine) > RECENT:
            mine.popitem(last=False)

    def _log(self, seen: Measured) -> None:
        if self.log is not None and self.log.wants(seen.status != 200):
            record: dict[str, Any] = seen.facts()
            if seen.ask is not None:
                record["content"] = {"prompt": _prompt(seen.ask)[:CONTENT_CHARS], "answer": seen.said[:CONTENT_CHARS]}
            self.log.add(record)

    @property
    def keeps_content(self) -> bool:
        """Whether answers are put together for the log."""
        return self.log is not None and self.log.params.content == "redacted"

    def recent(self, request_id: str, tenant: str | None) -> Measured | None:
        """A recent request of this tenant; None asks for everybody's."""
        tenants = self._recent if tenant is None else (tenant,)
        found = (self._recent[name].get(request_id) for name in tenants if name in self._recent)
        return next((seen for seen in found if seen is not None), None)


def gauges(deployments: Deployments) -> list[Reading]:
    """What is asked of the engines when somebody looks at the metrics."""
    running: dict[Labels, float] = {}
    waiting: dict[Labels, float] = {}
    restarts: dict[Labels, float] = {}
    for target in deployments.targets():
        who = (target.release.label, "-")
        running[who] = target.admission.running
        waiting[who] = target.admission.waiting
        restarts[who] = target.pool.restarts
    return [
        ("num_requests_running", "Requests in the engines.", running),
        ("num_requests_waiting", "Requests in the queue.", waiting),
        ("engine_restarts", "Times that engines were started again after a crash.", restarts),
    ]


def _prompt(ask: Ask) -> str:
    if ask.messages is None:
        return ask.prompt if isinstance(ask.prompt, str) else " ".join(map(str, ask.prompt or ()))
    return "\n".join(f"{message.get('role')}: {message.get('content') or ''}" for message in ask.messages)
