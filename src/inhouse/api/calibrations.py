"""Measure again which engine answers faster for how many requests."""

from __future__ import annotations

import os
import subprocess
from typing import Any

from pydantic import Field

from inhouse.api.request import Request
from inhouse.api.serving import choose_deployment, server_command, told_by
from inhouse.core.artifact import Frozen
from inhouse.core.settings import child_environment
from inhouse.release.registry import open_registry


class CalibrateRequest(Request):
    """Whose releases."""

    deployment: str | None = Field(None, description="deployment; may be left out when there is only one")


class Calibrated(Frozen):
    """What was found for one release; `state` is done, failed, or off where one engine alone reads its model."""

    release: str
    state: str
    detail: str = ""
    few: str | None = None
    many: str | None = None
    crossover: int | None = None
    tokens_per_s: dict[str, dict[int, float]] = Field({}, description="engine -> clients -> output tokens a second")
    others_cpu: float | None = None


class Calibrations(Frozen):
    """What was found for every release of a deployment."""

    deployment: str
    releases: tuple[Calibrated, ...]


def calibrate_deployment(request: CalibrateRequest) -> Calibrations:
    """Compare the engines of a deployment's releases once more; servers use the result from their next start on."""
    name = choose_deployment(open_registry(request.store), request.deployment)
    argv = [*server_command(request.store, name), "--parent", str(os.getpid()), "--calibrate"]
    log = request.store.root / "serve.log"
    with log.open("wb") as errors:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, check=False,
            env=child_environment(request.offline),
        )  # fmt: skip
    lines = done.stdout.splitlines()
    told = told_by(lines[-1] if lines else b"", log)
    return Calibrations(deployment=name, releases=tuple(_line(each) for each in told["releases"]))


def _line(told: dict[str, Any]) -> Calibrated:
    found = told["calibration"] or {"state": "off"}
    kept = {name: value for name, value in found.items() if name in Calibrated.model_fields}
    return Calibrated(release=told["release"], **kept)
