"""Routes that list what clients may ask for."""

from __future__ import annotations

from typing import Any

from inhouse.core.messages import text
from inhouse.serve.errors import ApiError
from inhouse.serve.http import Call
from inhouse.serve.routes import Route, Services


async def models(services: Services, call: Call) -> None:
    """GET /v1/models."""
    names = services.deployments.names(call.key)
    await call.reply({"object": "list", "data": [_entry(services, name) for name in names]})


async def model(services: Services, call: Call) -> None:
    """GET /v1/models/{id}."""
    wanted = call.parts["id"]
    if wanted not in services.deployments.names(call.key):
        raise ApiError(404, "model_not_found", text("serve.model_unknown", model=wanted[:100]), "model")
    await call.reply(_entry(services, wanted))


def _entry(services: Services, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": services.started_at, "owned_by": "inhouse"}


ROUTES = (Route("GET", "/v1/models", models), Route("GET", "/v1/models/{id}", model))
