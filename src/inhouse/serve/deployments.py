"""Follow deployments: run the engines of their releases, and change over live when the registry says so."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from inhouse.core.errors import InhouseError
from inhouse.core.messages import text
from inhouse.database import Versions
from inhouse.release.arms import Deployment, Release
from inhouse.release.keys import Key
from inhouse.release.registry import Registry
from inhouse.release.settings import ServeParams
from inhouse.serve.errors import ApiError
from inhouse.serve.key_ring import KeyRing
from inhouse.serve.router import ADAPTER_MARK, Serving, Way, way_of
from inhouse.serve.target import Target
from inhouse.serve.trials import Trials

POLL_S = 0.25
SAVE_S = 5.0
RETRY_FIRST_S = 2.0
RETRY_MOST_S = 300.0
JOIN_S = 5.0
log = logging.getLogger("inhouse.serve")


@dataclass
class Trouble:
    """A release that did not load."""

    generation: int
    failures: int = 0
    retry_at: float = 0.0


class Deployments:
    """The served deployments and the valid keys, kept in step with the registry by a thread.

    Releases load in a thread of their own, and another writes to the registry: keys are re-read at every look, also
    while a release loads or somebody holds the registry's lock. A deployment changes over when all of its arms answer;
    until then, and when one of them does not load, it stays as it was.
    """

    def __init__(self, registry: Registry, names: Sequence[str], params: ServeParams) -> None:
        self.registry = registry
        self.params = params
        self.keys = KeyRing(registry.engine)
        self.on_switch: Callable[[str], None] = lambda result: None
        self.trials = Trials(registry)
        self.saved: list[Callable[[], None]] = [self.trials.save]  # called every few seconds, and at the end
        self._saved_at = time.monotonic()
        self._saving = threading.Lock()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._retiring: list[threading.Thread] = []
        self._targets: dict[int, Target] = {}
        self._trouble: dict[int, Trouble] = {}
        self._loading: threading.Thread | None = None
        self._versions = Versions(registry.engine)
        self._followed: tuple[int | None, ...] | None = None  # the registry's version that is served
        self.serving: dict[str, Serving] = {}
        self._wanted = {name: registry.deployment(name) for name in names}
        try:
            for found in self._wanted.values():
                for release in _releases(found):
                    if release.id not in self._targets:
                        self._targets[release.id] = Target(registry, release, params)
                self.serving[found.name] = self._serving(found)
        except BaseException:  # also Ctrl-C: no engine is left behind
            for target in self._targets.values():
                target.retire(0.0)
            raise
        self._threads = [
            threading.Thread(target=self._again, args=(self._follow,), name="follow registry", daemon=True),
            threading.Thread(target=self._again, args=(self._judge_and_save,), name="write registry", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def ready(self) -> bool:
        """Whether every deployment can answer."""
        return all(serving.main.pool.ready for serving in self.serving.values())

    def names(self, key: Key | None = None) -> list[str]:
        """Model names that clients may ask for: deployments, the releases of their arms, and adapters.

        A release of several deployments also has each one's name before its own. With a key, those that it may use.
        """
        found: dict[str, None] = {}
        counted = Counter(arm.release.label for serving in self.serving.values() for arm in serving.answering)
        for name, serving in self.serving.items():
            if key is not None and not key.may_use(name):
                continue
            labels = [arm.release.label for arm in serving.answering]
            found[name] = None
            adapters = [own for arm in serving.answering for own in serving.targets[arm.release.id].adapters]
            found |= {f"{name}{ADAPTER_MARK}{adapter}": None for adapter in adapters}
            found |= dict.fromkeys(labels)
            found |= {f"{name}{ADAPTER_MARK}{label}": None for label in labels if counted[label] > 1}
        return list(found)

    def targets(self) -> list[Target]:
        """Every release that is being served."""
        return list({id(t): t for serving in self.serving.values() for t in serving.targets.values()}.values())

    def enter(self, model: str, who: Callable[[Deployment], str | None], key: Key | None = None) -> Way:
        """Where a request for `model` goes, with this request counted in; pair it with `leave`.

        `who` tells of a deployment's rules who shall stay with one arm.
        """
        with self._lock:
            way = self._find(model, who, key)
            if way is None:
                raise ApiError(404, "model_not_found", text("serve.model_unknown", model=model[:100]), "model")
            way.target.inside += 1
            return way

    def leave(self, target: Target) -> None:
        """This request is done with its target."""
        with self._lock:
            target.inside -= 1

    def join(self, target: Target) -> bool:
        """Count a copy of a request, or one that was elsewhere before, in; False when this is no longer served."""
        with self._lock:
            if all(target is not other for other in self.targets()):
                return False
            target.inside += 1
            return True

    def close(self, drain_s: float) -> None:
        """Stop following, and stop every engine."""
        with self._lock:
            self._stop.set()  # an engine that still loads is not taken up; that child ends with this process
        for thread in self._threads:
            thread.join(JOIN_S)
        self._versions.close()
        self._save()
        ending = [threading.Thread(target=t.retire, args=(drain_s,), daemon=True) for t in self._targets.values()]
        for thread in ending:
            thread.start()
        for thread in (*ending, *self._retiring):
            thread.join(drain_s + JOIN_S)

    def _save(self) -> None:
        from sqlalchemy.exc import SQLAlchemyError

        with self._saving:  # the last time may come while the one before waits: nothing is added twice
            self._saved_at = time.monotonic()
            for save in self.saved:
                try:
                    save()
                except (InhouseError, SQLAlchemyError) as error:  # what was counted stays, for the next time
                    log.warning("what was counted since the last time cannot be saved: %s", error)

    def _find(self, model: str, who: Callable[[Deployment], str | None], key: Key | None) -> Way | None:
        serving = self.serving.get(model)
        if serving is not None:
            return way_of(serving, who(serving.deployment))
        # A release that several deployments have counts for one that this key may use.
        ways = [way for serving in self.serving.values() if (way := serving.way_to(model)) is not None]
        if ways:
            return next((way for way in ways if key is None or key.may_use(way.deployment)), ways[0])
        name, _, rest = model.partition(ADAPTER_MARK)
        serving = self.serving.get(name)
        if serving is None:
            return None
        return way_of(serving, who(serving.deployment), rest) if serving.arms_with(rest) else serving.way_to(rest)

    def _serving(self, found: Deployment) -> Serving:
        there = {arm.release.id for arm in found.arms} & set(self._targets)
        return Serving(found, {id: self._targets[id] for id in there})

    def _again(self, work: Callable[[], None]) -> None:
        from sqlalchemy.exc import SQLAlchemyError

        while not self._stop.wait(POLL_S):
            try:
                work()
            except (InhouseError, SQLAlchemyError) as error:  # served is what was served before; look again
                log.warning("the registry cannot be used: %s", error)
            except Exception:  # whatever it is: without this thread, revoked keys would go on working
                log.exception("the registry cannot be followed")

    def _judge_and_save(self) -> None:
        for serving in list(self.serving.values()):
            self.trials.look(serving.deployment)
        if time.monotonic() - self._saved_at > SAVE_S:
            self._save()

    def _follow(self) -> None:
        now = self._versions.now()
        if now is not None and now == self._followed:
            return
        self._followed = None  # unless all of it is read, and served
        self.keys.read()
        self._wanted = {found.name: found for found in self.registry.deployments() if found.name in self.serving}
        if self._wanted.keys() == self.serving.keys() and all(self._in_step(found) for found in self._wanted.values()):
            self._followed = now
            return
        idle = self._loading is None or not self._loading.is_alive()
        if idle and (missing := self._missing()):
            self._loading = threading.Thread(target=self._load, args=missing, name="load release", daemon=True)
            self._loading.start()
        self._change_over()

    def _in_step(self, found: Deployment) -> bool:
        now = self.serving[found.name]
        return now.deployment.generation == found.generation and len(now.targets) == len(_releases(found))

    def _missing(self) -> tuple[Deployment, Release] | None:
        """A release that a deployment wants and that may be tried now."""
        for found in self._wanted.values():
            for release in _releases(found):
                trouble = self._trouble.get(release.id)
                later = trouble is not None and trouble.generation == found.generation
                if release.id in self._targets or (later and trouble and time.monotonic() < trouble.retry_at):
                    continue
                return found, release
        return None

    def _load(self, wanted: Deployment, release: Release) -> None:
        """Start the engines of a release; when they do not, it is tried again after a growing pause."""
        try:
            new = Target(self.registry, release, self.params)
        except Exception as error:  # noqa: BLE001  whatever a release breaks: what is served stays, and is said
            self._refused(wanted, release, error)
            return
        with self._lock:
            taken = not self._stop.is_set()
            if taken:
                self._targets[release.id] = new
                self._trouble.pop(release.id, None)
        if not taken:
            new.pool.close()
            return
        self._change_over()

    def _change_over(self) -> None:
        """Let every deployment be answered by its arms, once all of them run; let go of releases nobody wants."""
        with self._lock:
            for name in self.serving.keys() - self._wanted.keys():
                self.serving = {other: serving for other, serving in self.serving.items() if other != name}
                log.warning("%s was removed, and nothing answers for it any more", name)
                self.on_switch("done")
            for name, found in self._wanted.items():
                before = self.serving[name]
                if any(arm.release.id not in self._targets for arm in found.arms if arm.role != "shadow"):
                    continue  # what does not load keeps nobody waiting who only looks on
                self.serving[name] = self._serving(found)
                told = _layout(found)
                if told != _layout(before.deployment):
                    log.warning("%s now answers with %s, before %s", name, told, _layout(before.deployment))
                    self.on_switch("done")
            needed = {id for serving in self.serving.values() for id in serving.targets}
            needed |= {release.id for found in self._wanted.values() for release in _releases(found)}
            leaving = [self._targets.pop(id) for id in list(self._targets) if id not in needed]
        for target in leaving:
            thread = threading.Thread(target=target.retire, args=(self.params.deadline_s,), daemon=True)
            thread.start()
            self._retiring = [*(t for t in self._retiring if t.is_alive()), thread]

    def _refused(self, wanted: Deployment, release: Release, error: Exception) -> None:
        now = self._wanted.get(wanted.name)
        if now is None or now.generation != wanted.generation:
            return
        trouble = self._trouble.get(release.id)
        if trouble is None or trouble.generation != wanted.generation:
            trouble = self._trouble[release.id] = Trouble(wanted.generation)
        pause = min(RETRY_FIRST_S * 2.0 ** min(trouble.failures, 16), RETRY_MOST_S)
        trouble.retry_at = time.monotonic() + pause
        trouble.failures += 1
        kept = self.serving[wanted.name].deployment.release.label
        known = isinstance(error, InhouseError | OSError | ValueError)
        log.error(
            "%s cannot be served and %s stays; next try in %g s: %s", release.label, kept, pause, error,
            exc_info=None if known else error,
        )  # fmt: skip
        if trouble.failures == 1:  # the tries that follow are in the log only
            self.on_switch("failed")
            detail = {"release": release.label, "kept": kept, "reason": str(error)}
            self.registry.note("switch_failed", wanted.name, "serve", detail)


def _releases(found: Deployment) -> list[Release]:
    """The releases of all arms, the main one first."""
    return [found.release, *(arm.release for arm in found.arms if arm.release.id != found.release.id)]


def _layout(found: Deployment) -> str:
    return ", ".join(
        arm.release.label if len(found.arms) == 1 else f"{arm.release.label} ({arm.role} {arm.weight / 10:g} %)"
        for arm in found.arms
    )
