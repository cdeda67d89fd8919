"""A release that is being served: its engines, its limits, its queue, and the requests inside."""

from __future__ import annotations

import itertools
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from inhouse.core.errors import UserError
from inhouse.core.model import ModelFacts
from inhouse.core.store import read_json
from inhouse.engines.backend import EngineSettings, Use
from inhouse.engines.openvino_file import extra_bytes
from inhouse.release.registry import Registry, Release
from inhouse.release.settings import ServeParams
from inhouse.release.whole import check_hash
from inhouse.serve import calibrate
from inhouse.serve.admission import Admission
from inhouse.serve.auto import AutoChoice, Second
from inhouse.serve.pool import Pool
from inhouse.serve.replica import Replica
from inhouse.serve.requests import Limits
from inhouse.serve.scale import Scaler
from inhouse.serve.starting import (
    check_bases,
    engine_settings,
    kinds_for,
    memory_of,
    remote,
    replica,
    versions,
    with_adapters,
)


@dataclass(frozen=True)
class Model:
    """What is served: the file or folder, its hash and its header, and how engines are to hold it."""

    path: Path
    sha256: str
    facts: ModelFacts
    engine: EngineSettings


class Target:
    """A release that is being served: its engines under supervision, and the requests inside."""

    def __init__(self, registry: Registry, release: Release, params: ServeParams, again: bool = False) -> None:
        self.release = release
        self._again = again  # the engines are compared whatever was found before
        registry.check_files(release)
        path = check_hash(registry.store, release.artifact)
        served: Any = read_json(registry.store.path(release.artifact) / "release.json")
        bundled = served["engine"] if isinstance(served["engine"], dict) else {}
        settings = ServeParams.model_validate(params.model_dump() | bundled)
        facts = ModelFacts.model_validate(registry.store.get(served["model"]["artifact"]).facts["model"])
        check_bases(registry.store, served["model"]["artifact"], settings.adapters)
        kinds = kinds_for(path, params.engine, release.label)
        engine = with_adapters(engine_settings(settings, params), registry.store, path, settings.adapters, kinds)
        engine = engine.model_copy(update={"cache": registry.store.root / "serve"})
        self.model = Model(path, served["model"]["sha256"], facts, engine)
        self._numbers = itertools.count(1)
        self.pool = Pool(release.label, self._first_replicas(kinds[0], params))
        try:
            context = self.pool.context_length
            self.limits = Limits(context, settings.parallel, settings.max_tokens, settings.temperature)
            self.admission = Admission(self.pool.parallel, params.queue)
            self.pool.on_change = self._resize
            needs = memory_of(path, self.model.engine, facts)
            self.scaler = Scaler(self.pool, params.replicas, lambda: self.admission.waiting, self._make, needs)
            self.choice = self._compare(kinds, registry.store.root, params, needs) if len(kinds) > 1 else None
        except BaseException:  # also Ctrl-C: no engine is left behind
            self.pool.close()
            raise
        self.inside = 0

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of its LoRA adapters; `deployment:name` asks for one."""
        return tuple(self.model.engine.adapters)

    def told(self) -> dict[str, Any]:
        """Its engines, and what measuring found, for people."""
        found: dict[str, Any] = {"replicas": self.pool.told()}
        return found if self.choice is None else found | {"calibration": self.choice.told()}

    def retire(self, wait_s: float) -> None:
        """Let the requests inside finish, then stop the engines."""
        self.scaler.close()
        if self.choice is not None:
            self.choice.close()
        until = time.monotonic() + wait_s
        while self.inside and time.monotonic() < until:
            time.sleep(0.05)
        self.pool.close()

    def _first_replicas(self, kind: Use, params: ServeParams) -> list[Replica]:
        made: list[Replica] = []
        try:
            for _ in range(params.replicas.least):
                made.append(self._make(kind))
        except BaseException:  # also Ctrl-C: those that run already are not left behind
            for each in made:
                each.close()
            raise
        return made + [remote(number, asked, params.first_token_s) for number, asked in enumerate(params.remotes, 1)]

    def _make(self, kind: str) -> Replica:
        return replica(kind, f"{self.release.label}#{next(self._numbers)}", self.model.path, self.model.engine)

    def _resize(self) -> None:
        """As many requests run as the engines take. Turns are the event loop's."""
        if self.pool.loop is not None and self.pool.loop.is_running():
            self.pool.loop.call_soon_threadsafe(self.admission.resize, self.pool.parallel)
        else:
            self.admission.resize(self.pool.parallel)

    def _compare(self, kinds: tuple[Use, ...], root: Path, params: ServeParams, needs: int) -> AutoChoice:
        from inhouse.select.hardware import processor

        machine = (processor(Path("/proc/cpuinfo"))[0], str(self.model.engine.threads))
        apart = {"load_timeout_s", "silence_s", "embeddings", "cache"}  # these change no speed
        settings = self.model.engine.model_dump(mode="json", exclude=apart)
        name = calibrate.name_of(self.model.sha256, machine, versions(kinds), settings)
        with suppress(UserError):  # a file that cannot be read is the engine's to refuse
            needs += extra_bytes(self.model.path) if kinds[1] == "openvino" else 0
        second = Second(partial(self._make, kinds[1]), needs, root / "serve" / "calibration" / f"{name}.json")
        return AutoChoice(self.pool, second, params.calibrate, self._again)
