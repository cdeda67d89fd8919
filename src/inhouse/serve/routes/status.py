"""Routes that tell of the server itself."""

from __future__ import annotations

from typing import Any

from inhouse import __version__
from inhouse.core.messages import text
from inhouse.release.arms import Arm
from inhouse.serve.cache_usage import cache_usage
from inhouse.serve.errors import ApiError, unavailable
from inhouse.serve.http import Call
from inhouse.serve.router import Serving
from inhouse.serve.routes import Route, Services


async def health(services: Services, call: Call) -> None:
    """The process answers. Needs no key and tells nothing more."""
    await call.connection.reply(200, b'{"status":"ok"}')


async def ready(services: Services, call: Call) -> None:
    """Whether the engines can answer now, of the deployments that this key may use."""
    key = call.key
    assert key is not None
    every = services.deployments.serving.items()
    seen = [serving for name, serving in every if key.may_use(name) or key.allows("admin")]
    if not all(serving.main.pool.ready for serving in seen):
        raise unavailable()
    found = [_told(serving) for serving in seen]
    await call.reply({"status": "ready", "release": found[0]["release"] if found else None, "deployments": found})


def _told(serving: Serving) -> dict[str, Any]:
    """A deployment for people: what answers, and its engines."""
    arms = [
        {"release": arm.release.label, "role": arm.role, "weight": arm.weight, **_engines(serving, arm)}
        for arm in serving.deployment.arms
    ]
    return {"name": serving.deployment.name, "release": serving.main.release.label, "arms": arms}


def _engines(serving: Serving, arm: Arm) -> dict[str, Any]:
    target = serving.targets.get(arm.release.id)
    return {"state": "not loaded"} if target is None else target.told()


async def version(services: Services, call: Call) -> None:
    """The version of inhouse."""
    await call.reply({"version": __version__})


async def metrics(services: Services, call: Call) -> None:
    """Prometheus metrics; what other keys did is told to `admin` alone."""
    assert call.key is not None
    key = None if call.key.allows("admin") else (call.key.name, str(call.key.id))
    held = await cache_usage((each.release.label, each.pool.replicas) for each in services.deployments.targets())
    await call.connection.reply(200, services.metrics.text(key, [held]), b"text/plain; version=0.0.4; charset=utf-8")


async def stages(services: Services, call: Call) -> None:
    """GET /inhouse/requests/{id}: how long each stage of a recent request took. Others' requests are not told."""
    assert call.key is not None
    tenant = None if call.key.allows("admin") else str(call.key.id)
    found = services.watchers.recent(call.parts["id"], tenant)
    if found is None:
        raise ApiError(404, "request_not_found", text("serve.request_unknown"))
    await call.reply(found.facts())


ROUTES = (
    Route("GET", "/inhouse/requests/{id}", stages),
    Route("GET", "/health", health),
    Route("GET", "/ready", ready),
    Route("GET", "/version", version),
    Route("GET", "/metrics", metrics, scope="metrics"),
)
