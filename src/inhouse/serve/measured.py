"""What becomes of one request, followed while it is answered: the source of metrics, traces, log lines and costs."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from inhouse.core.serving import Ask, Delta, Usage
from inhouse.release.arms import Arm
from inhouse.serve.errors import STOPPING, ApiError

if TYPE_CHECKING:
    from inhouse.serve.guards import Overheard

NOTHING = Usage(0, 0)
CLIENT_LEFT = 499  # nginx's


@dataclass(slots=True)  # thousands are kept
class Measured:
    """One request. Moments are of the monotonic clock; None until they come."""

    request_id: str = "-"
    key: str = "-"
    tenant: str = "-"
    model: str = "-"  # the release that answers
    deployment: str = "-"
    engine: str = "-"
    route: str = "-"
    cache: str = "-"  # hit, shared, miss; '-' where the cache was not asked
    status: int = 500
    error: str | None = None
    finish: str | None = None
    asked_tokens: int = 0
    choices: int = 1
    at: float = field(default_factory=time.time)
    began: float = field(default_factory=time.monotonic)
    admitted: float | None = None
    first: float | None = None
    last: float | None = None
    ended: float | None = None
    gaps: list[float] = field(default_factory=list)  # seconds between pieces
    usages: list[Usage] = field(default_factory=list)
    prompt_guess: int = 0  # tokens, where the engine never told because the client left
    written: int = 0  # tokens that have come so far
    arm: Arm | None = None
    elsewhere: bool = False  # answered by the overflow, not by a release
    aside: bool = False  # tokens or a rendered prompt: nothing that a release answers
    ask: Ask | None = None  # only where the log holds content
    said: str = ""
    overheard: Overheard | None = None  # the answer, for a guard; forgotten when it has looked
    alarms: tuple[str, ...] | None = None  # of guards; None where none looked
    parent: bytes | None = None  # the client's own trace, as W3C's header `traceparent` names it

    def turn(self) -> None:
        """Its turn has come."""
        self.admitted = time.monotonic()

    def add(self, deltas: list[Delta]) -> None:
        """Follow what arrived together."""
        now, before = time.monotonic(), self.written
        for delta in deltas:
            self.written += delta.tokens
            if delta.finish is not None:
                self.finish = delta.finish
            if delta.usage is not None:
                self.usages.append(delta.usage)
        if self.first is None:
            self.first = self.last = now
        elif self.last is not None and self.written > before:  # what only says that the answer has ended is no token
            self.gaps.append(now - self.last)
            self.last = now

    def from_memory(self) -> None:
        """The answer was there already, or another request's: no engine has worked for it."""
        self.engine, self.usages, self.written, self.prompt_guess = "cache", [], 0, 0

    def reset(self) -> None:
        """Begin again with another engine."""
        self.finish = self.first = self.last = None
        self.usages, self.gaps, self.written = [], [], 0

    def fail(self, error: ApiError | asyncio.CancelledError) -> None:
        """It was refused, failed, or its client has gone."""
        if STOPPING in error.args:
            self.status, self.error = 503, STOPPING
        elif isinstance(error, ApiError):
            self.status, self.error = error.status, error.code or "invalid_request"
        else:
            self.status, self.error = CLIENT_LEFT, "client_closed"

    def end(self) -> None:
        """It is over."""
        self.ended = self.ended or time.monotonic()
        self.usages = [self.usage]

    @property
    def usage(self) -> Usage:
        """Of all choices: they share the prompt."""
        if not self.usages:
            return Usage(self.prompt_guess, self.written) if self.admitted is not None else NOTHING
        first = self.usages[0]
        if len(self.usages) == 1:
            return first
        answer = sum(usage.answer for usage in self.usages)
        return Usage(first.prompt, answer, first.cached, first.prefill_s, first.decode_s)

    @property
    def refused(self) -> bool:
        """Whether it was turned away, or failed, before anything was made for it. A client that left was not."""
        return self.status not in (200, CLIENT_LEFT) and not self.written and not self.usages

    @property
    def queue_s(self) -> float | None:
        """Until its turn came."""
        return None if self.admitted is None else self.admitted - self.began

    @property
    def first_token_s(self) -> float | None:
        """Until the first piece, the queue included."""
        return None if self.first is None else self.first - self.began

    @property
    def prefill_s(self) -> float | None:
        """From its turn to the first piece."""
        return None if self.first is None or self.admitted is None else self.first - self.admitted

    @property
    def decode_s(self) -> float | None:
        """From the first piece to the last."""
        return None if self.first is None or self.last is None else self.last - self.first

    @property
    def total_s(self) -> float:
        """From its arrival to its end, or to now."""
        return (time.monotonic() if self.ended is None else self.ended) - self.began

    def stages(self) -> dict[str, float | None]:
        """Seconds of each stage, for whoever looks for what was slow."""
        return {
            "queue_s": _short(self.queue_s),
            "prefill_s": _short(self.prefill_s),
            "decode_s": _short(self.decode_s),
            "first_token_s": _short(self.first_token_s),
            "total_s": _short(self.total_s),
        }

    def facts(self) -> dict[str, object]:
        """One record, without a word of what was said."""
        usage = self.usage
        return {
            "request_id": self.request_id,
            "at": round(self.at, 3),
            "key": self.key,
            "deployment": self.deployment,
            "release": self.model,
            "arm": None if self.arm is None else self.arm.role,
            "engine": self.engine,
            "route": self.route,
            "status": self.status,
            "error": self.error,
            "finish": self.finish,
            "cache": self.cache,
            "alarms": self.alarms,
            "prompt_tokens": usage.prompt,
            "cached_tokens": usage.cached,
            "answer_tokens": usage.answer,
            **self.stages(),
        }


def _short(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
