"""Compare the engines of a deployment's releases once more, whatever was found before."""

from __future__ import annotations

from typing import Any

from inhouse.release.registry import Registry
from inhouse.release.settings import ServeParams
from inhouse.serve.target import Target


def measure_again(registry: Registry, deployment: str, params: ServeParams) -> list[dict[str, Any]]:
    """What was found for each release that answers; `calibration` is null where one engine alone reads its model.

    Raises what keeps an engine from loading.
    """
    found = []
    for arm in registry.deployment(deployment).arms:
        target = Target(registry, arm.release, params.model_copy(update={"calibrate": "before"}), again=True)
        try:
            told = None if target.choice is None else target.choice.told()
        finally:
            target.retire(0.0)
        found.append({"release": arm.release.label, "calibration": told})
    return found
