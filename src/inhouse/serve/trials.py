"""What each arm of a deployment does: counted, written to the registry, and judged where a canary is on trial."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field

from inhouse.release.arms import Arm, Deployment
from inhouse.release.audit import BY_SERVER
from inhouse.release.canary import judge_canary
from inhouse.release.registry import Registry
from inhouse.release.results import Counters, add_results
from inhouse.serve.errors import STOPPING
from inhouse.serve.measured import CLIENT_LEFT, Measured

OURS = 500  # from this status on, a failure is ours and not the client's
Unsaved = dict[str, dict[tuple[int, str, str], tuple[Arm, Counters]]]  # by deployment, then by arm
log = logging.getLogger("inhouse.serve")


@dataclass
class Window:
    """What live arms and canary did since the canary has this weight."""

    canary: tuple[int, int]  # release and weight
    began: float = field(default_factory=time.monotonic)
    live: Counters = field(default_factory=Counters)
    on_trial: Counters = field(default_factory=Counters)


class Trials:
    """Counts for every arm. `look` is called by the thread that follows the registry, `count` by requests."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._lock = threading.Lock()
        self._unsaved: Unsaved = {}
        self._windows: dict[str, Window] = {}

    def count(self, deployment: str, arm: Arm, seen: Measured) -> None:
        """One request that is over, or copy of one. A client's mistake is not the release's.

        One whose client did not wait any longer counts with the time that it did: were it left out, a release whose
        answers take too long for anybody would look quick.
        """
        if (
            seen.elsewhere
            or seen.aside
            or seen.error == STOPPING
            or seen.cache in ("hit", "shared", "semantic")
            or (400 <= seen.status < OURS and seen.status != CLIENT_LEFT)
        ):
            return
        failed, seconds, usage = seen.status >= OURS, seen.total_s, seen.usage
        alarm = None if seen.alarms is None else bool(seen.alarms)
        with self._lock:
            arms = self._unsaved.setdefault(deployment, {})
            name = (arm.release.id, arm.role, arm.since)
            if name not in arms:
                arms[name] = (arm, Counters())
            counters = arms[name][1]
            counters.count(seconds, failed, alarm)
            counters.prompt_tokens += usage.prompt
            counters.answer_tokens += usage.answer
            window = self._windows.get(deployment)
            if window is not None and arm.role != "shadow":
                ours = arm.role == "canary" and arm.release.id == window.canary[0]
                (window.on_trial if ours else window.live).count(seconds, failed, alarm)

    def look(self, found: Deployment) -> None:
        """Judge the canary, and take it back, leave it or give it more."""
        canary = found.canary
        if canary is None:
            self._windows.pop(found.name, None)
            return
        now = (canary.release.id, canary.weight)
        with self._lock:
            window = self._windows.get(found.name)
            if window is None or window.canary != now:
                self._windows[found.name] = Window(now)
                return
            seconds = time.monotonic() - window.began
            step = judge_canary(window.live, window.on_trial, seconds, canary.weight, found.rules.canary)
        if step.action == "roll_back":
            log.error("canary %s is taken back: %s", canary.release.label, step.detail)
            self._registry.roll_back_canary(found.name, canary, f"{step.reason}: {step.detail}", BY_SERVER)
        elif step.action == "advance":
            log.warning("canary %s gets %g %%: %s", canary.release.label, step.weight / 10, step.detail)
            self._registry.advance_canary(found.name, canary, step.weight, BY_SERVER)

    def save(self) -> None:
        """Add to the registry what was counted since the last time."""
        with self._lock:
            unsaved, self._unsaved = self._unsaved, {}
        try:
            for deployment in list(unsaved):
                add_results(self._registry.engine, deployment, unsaved[deployment].values())
                del unsaved[deployment]
        finally:
            self._give_back(unsaved)

    def _give_back(self, unsaved: Unsaved) -> None:
        """Keep for the next time what could not be saved."""
        with self._lock:
            for deployment, arms in unsaved.items():
                mine = self._unsaved.setdefault(deployment, {})
                for name, (arm, counters) in arms.items():
                    if name in mine:
                        mine[name][1].add(counters)
                    else:
                        mine[name] = (arm, counters)
