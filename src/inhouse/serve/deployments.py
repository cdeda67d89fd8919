"""Follow a deployment: run the engine of its release, and change over live when the registry says so."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from inhouse.core.errors import InhouseError
from inhouse.core.messages import text
from inhouse.release.keys import Key, active_keys, hash_token
from inhouse.release.registry import Deployment, Registry
from inhouse.release.settings import ServeParams
from inhouse.serve.errors import ApiError
from inhouse.serve.target import Target

POLL_S = 0.25
REREAD_S = 0.05  # unknown keys make the registry be read no oftener than this
RETRY_FIRST_S = 2.0
RETRY_MOST_S = 300.0
JOIN_S = 5.0
log = logging.getLogger("inhouse.serve")


@dataclass(frozen=True)
class Serving:
    """What requests meet at one moment; replaced whole, so that nobody sees half a change."""

    target: Target
    generation: int


class Deployments:
    """The served deployment and the valid keys, kept in step with the registry by a thread.

    A release that is promoted loads in a thread of its own: keys are re-read at every look, also meanwhile.
    """

    def __init__(self, registry: Registry, deployment: str, params: ServeParams) -> None:
        self.registry = registry
        self.name = deployment
        self.params = params
        self.on_switch: Callable[[str], None] = lambda result: None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._retiring: list[threading.Thread] = []
        self._key_lock = threading.Lock()
        self._reread = asyncio.Lock()
        self._reread_at = float("-inf")
        self.keys: dict[str, Key] = {}
        self._read_keys()
        found = registry.deployment(deployment)
        self.current = Serving(Target(registry, found.release, params), found.generation)
        self._seen = found.generation
        self._loading: threading.Thread | None = None
        self._failures = 0  # of the generation seen last
        self._retry_at = 0.0
        self._thread = threading.Thread(target=self._watch, name="follow registry", daemon=True)
        self._thread.start()

    def names(self) -> list[str]:
        """Model names that clients may ask for: the deployment, and the release it points at."""
        return [self.name, self.current.target.release.label]

    def targets(self) -> list[Target]:
        """Every release that is being served."""
        return [self.current.target]

    def deployment_of(self, model: str) -> str:
        """The deployment that answers for a model name."""
        return self.name

    def enter(self, model: str) -> Target:
        """The target that answers for `model`, with this request counted in; pair it with `leave`."""
        with self._lock:
            target = self.current.target
            if model not in (self.name, target.release.label):
                raise ApiError(404, "model_not_found", text("serve.model_unknown", model=model[:100]), "model")
            target.inside += 1
            return target

    def leave(self, target: Target) -> None:
        """This request is done with its target."""
        with self._lock:
            target.inside -= 1

    async def authorised(self, token: str) -> Key | None:
        """The key that this token belongs to, when it is valid now.

        Keys are re-read with every look at the registry, and for an unknown one before it is refused: it may have
        been made a moment ago. Requests that wait for this share one reading.
        """
        hashed = hash_token(token)
        if hashed not in self.keys:
            asked = time.monotonic()
            async with self._reread:
                if self._reread_at < asked:
                    await asyncio.sleep(self._reread_at + REREAD_S - asked)
                    self._reread_at = time.monotonic()
                    await self._try_keys()
        key = self.keys.get(hashed)
        return key if key is not None and key.valid(datetime.now(UTC)) else None

    async def _try_keys(self) -> None:
        from sqlalchemy.exc import SQLAlchemyError

        try:
            await asyncio.to_thread(self._read_keys)
        except (InhouseError, SQLAlchemyError) as error:
            log.warning("the registry cannot be read: %s", error)

    def _read_keys(self) -> None:
        with self._key_lock:  # so that an older reading never replaces a newer one
            self.keys = active_keys(self.registry.engine)

    @property
    def ready(self) -> bool:
        """Whether the engine can answer."""
        return self.current.target.pool.ready

    def close(self, drain_s: float) -> None:
        """Stop following, and stop every engine."""
        with self._lock:
            self._stop.set()  # an engine that still loads is not taken up; that child ends with this process
        self._thread.join(JOIN_S)
        self.current.target.retire(drain_s)
        for thread in self._retiring:
            thread.join(drain_s)

    def _watch(self) -> None:
        from sqlalchemy.exc import SQLAlchemyError

        while not self._stop.wait(POLL_S):
            try:
                self._follow()
            except (InhouseError, SQLAlchemyError) as error:  # served is what was served before; look again
                log.warning("the registry cannot be read: %s", error)
            except Exception:  # whatever it is: without this thread, revoked keys would go on working
                log.exception("the registry cannot be followed")

    def _follow(self) -> None:
        self._read_keys()
        found = self.registry.deployment(self.name)
        if found.generation != self._seen:
            self._seen, self._failures, self._retry_at = found.generation, 0, 0.0
        if found.release.id == self.current.target.release.id or time.monotonic() < self._retry_at:
            return
        if self._loading is None or not self._loading.is_alive():
            self._loading = threading.Thread(target=self._load, args=(found,), name="load release", daemon=True)
            self._loading.start()

    def _load(self, wanted: Deployment) -> None:
        """Change over to a release once its engine runs; when it does not, try again after a growing pause."""
        try:
            new = Target(self.registry, wanted.release, self.params)
        except Exception as error:  # noqa: BLE001  whatever a release breaks: what is served stays, and is said
            self._refused(wanted, error)
            return
        with self._lock:
            old = self.current.target
            taken = wanted.generation == self._seen and not self._stop.is_set()
            if taken:
                self.current = Serving(new, wanted.generation)
        if not taken:  # the deployment has moved on, or closes: nobody asks for this one
            new.pool.close()
            return
        self.on_switch("done")
        log.warning("%s now answers with %s, before %s", self.name, new.release.label, old.release.label)
        leaving = threading.Thread(target=old.retire, args=(self.params.deadline_s,), daemon=True)
        leaving.start()
        self._retiring = [*(t for t in self._retiring if t.is_alive()), leaving]

    def _refused(self, wanted: Deployment, error: Exception) -> None:
        if wanted.generation != self._seen:
            return
        label, kept = wanted.release.label, self.current.target.release.label
        pause = min(RETRY_FIRST_S * 2.0 ** min(self._failures, 16), RETRY_MOST_S)
        self._retry_at = time.monotonic() + pause
        self._failures += 1
        known = isinstance(error, InhouseError | OSError | ValueError)
        log.error(
            "%s cannot be served and %s stays; next try in %g s: %s", label, kept, pause, error,
            exc_info=None if known else error,
        )  # fmt: skip
        if self._failures == 1:  # the tries that follow are in the log only
            self.on_switch("failed")
            detail = {"release": label, "kept": kept, "reason": str(error)}
            self.registry.note("switch_failed", self.name, "serve", detail)
