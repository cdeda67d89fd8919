"""Routes that tell of the server itself."""

from __future__ import annotations

from inhouse import __version__
from inhouse.serve.errors import unavailable
from inhouse.serve.http import Call
from inhouse.serve.routes import Route, Services


async def health(services: Services, call: Call) -> None:
    """The process answers. Needs no key and tells nothing more."""
    await call.connection.reply(200, b'{"status":"ok"}')


async def ready(services: Services, call: Call) -> None:
    """Whether the engine can answer now."""
    if not services.deployments.ready:
        raise unavailable()
    await call.reply({"status": "ready", "release": services.deployments.current.target.release.label})


async def version(services: Services, call: Call) -> None:
    """The version of inhouse."""
    await call.reply({"version": __version__})


async def metrics(services: Services, call: Call) -> None:
    """Prometheus metrics."""
    await call.connection.reply(200, services.metrics.text(), b"text/plain; version=0.0.4; charset=utf-8")


ROUTES = (
    Route("GET", "/health", health),
    Route("GET", "/ready", ready),
    Route("GET", "/version", version),
    Route("GET", "/metrics", metrics, scope="metrics"),
)
