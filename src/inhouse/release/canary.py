"""Whether a canary stays as it is, gets more requests, or is taken back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from inhouse.release.results import Counters
from inhouse.release.rules import CanaryRules

Action = Literal["keep", "advance", "roll_back"]
Share = tuple[int, int]  # how many, of how many
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
    ours, theirs = (canary.errors, canary.requests), (live.errors, live.requests)
    if _too_many(ours, theirs, rules.max_error_rate, rules.min_requests):
        return "errors", _told("errors", ours, theirs, "requests")
    # Answers that no guard looked at, as those of long queues, say nothing of alarms.
    ours, theirs = (canary.alarms, canary.looked_at or 0), (live.alarms, live.looked_at or 0)
    if _too_many(ours, theirs, rules.max_alarm_rate, rules.min_requests):
        return "alarms", _told("alarms", ours, theirs, "answers looked at")
    slow, usual = canary.quantile(0.95), live.quantile(0.95)
    enough = min(canary.requests, live.requests) >= rules.min_requests
    if enough and slow is not None and usual is not None and slow > rules.max_latency_ratio * usual:
        return "latency", f"p95 {slow:.3g} s, live {usual:.3g} s"
    return None


def _too_many(ours: Share, theirs: Share, allowed: float, least: int) -> bool:
    return ours[0] > allowed * max(least, ours[1]) and _rate(ours) > _rate(theirs)


def _rate(share: Share) -> float:
    count, of = share
    return count / of if of else 0.0


def _told(what: str, ours: Share, theirs: Share, of: str) -> str:
    return f"{ours[0]} {what} in {ours[1]} {of}, live {theirs[0]} in {theirs[1]}"
