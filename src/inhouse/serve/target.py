"""A release that is being served: its engines, its limits, its queue, and the requests inside."""

from __future__ import annotations

import time

from inhouse.core.errors import UserError
from inhouse.core.store import read_json
from inhouse.engines.backend import EngineSettings
from inhouse.engines.llamacpp_serving import start
from inhouse.release.registry import Registry, Release
from inhouse.release.settings import ServeParams
from inhouse.serve.admission import Admission
from inhouse.serve.pool import Pool
from inhouse.serve.requests import Limits


class Target:
    """A release that is being served: its engine under supervision, and the requests inside."""

    def __init__(self, registry: Registry, release: Release, params: ServeParams) -> None:
        self.release = release
        path = registry.check_files(release)
        served = read_json(registry.store.path(release.artifact) / "release.json")
        bundled = served["engine"] if isinstance(served["engine"], dict) else {}
        settings = ServeParams.model_validate(params.model_dump() | bundled)
        if path.suffix != ".gguf":
            raise UserError("serve.not_gguf", release=release.label, path=path.name)
        engine = EngineSettings(
            context_length=settings.context_length,
            parallel=settings.parallel,
            threads=settings.threads,
            load_timeout_s=settings.load_timeout_s,
            silence_s=params.first_token_s,
            embeddings=params.embeddings,
        )
        self.pool = Pool(release.label, lambda: start(path, engine, release.label))
        context = self.pool.context_length
        self.limits = Limits(context, settings.parallel, settings.max_tokens, settings.temperature)
        self.admission = Admission(settings.parallel, params.queue)
        self.inside = 0

    def retire(self, wait_s: float) -> None:
        """Let the requests inside finish, then stop the engine."""
        until = time.monotonic() + wait_s
        while self.inside and time.monotonic() < until:
            time.sleep(0.05)
        self.pool.close()
