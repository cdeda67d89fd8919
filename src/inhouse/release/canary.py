"""Whether a canary stays as it is, gets more requests, or is taken back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from inhouse.release.results import Counters
from inhouse.release.rules import CanaryRules

Action = Literal["keep", "advance", "roll_back"]
Reason = Literal["too_few", "too_early", "last_step", "healthy", "errors", "alarms", "latency"]


@dataclass(frozen=True)
class CanaryStep:
    """What to do now. `weight` is the canary's new one; `detail` has the figures behind it, for the audit."""

    action: Action
    reason: Reason
    weight: int
    detail: str


def judge_canary(live: Counters, canary: Counters, seconds: float, weight: int, rules: CanaryRules) -> CanaryStep:
    """Judge what live arms and canary did in the `seconds` since the canary has this weight.

    Too many errors or alarms take it back at once: as soon as it could not keep the allowed rate over `min_requests`
    any more, even if everything that is left went well. So does latency once both have `min_requests`. It is never
    taken back for what the live arm suffers as much. It advances when the window is over without any of that.
    """
    bad = _breach(live, canary, rules)
    if bad is not None:
        reason, detail = bad
        return CanaryStep("roll_back", reason, 0, detail)
    counted = f"{canary.requests} requests in {seconds:.0f} s"
    if canary.requests < rules.min_requests:
        return CanaryStep("keep", "too_few", weight, counted)
    if seconds < rules.window_s:
        return CanaryStep("keep", "too_early", weight, counted)
    following = rules.after(weight)
    if following is None:
        return CanaryStep("keep", "last_step", weight, counted)
    return CanaryStep("advance", "healthy", following, counted)


def _breach(live: Counters, canary: Counters, rules: CanaryRules) -> tuple[Reason, str] | None:
    at_least = max(rules.min_requests, canary.requests)
    if canary.errors > rules.max_error_rate * at_least and _rate(canary.errors, canary) > _rate(live.errors, live):
        return "errors", _told("errors", canary.errors, canary, live.errors, live)
    if canary.alarms > rules.max_alarm_rate * at_least and _rate(canary.alarms, canary) > _rate(live.alarms, live):
        return "alarms", _told("alarms", canary.alarms, canary, live.alarms, live)
    ours, theirs = canary.quantile(0.95), live.quantile(0.95)
    enough = min(canary.requests, live.requests) >= rules.min_requests
    if enough and ours is not None and theirs is not None and ours > rules.max_latency_ratio * theirs:
        return "latency", f"p95 {ours:.3g} s, live {theirs:.3g} s"
    return None


def _rate(count: int, counters: Counters) -> float:
    return count / counters.requests if counters.requests else 0.0


def _told(what: str, count: int, canary: Counters, live_count: int, live: Counters) -> str:
    return f"{count} {what} in {canary.requests} requests, live {live_count} in {live.requests}"
