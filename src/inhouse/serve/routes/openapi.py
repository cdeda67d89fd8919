"""GET /openapi.json: what can be asked here, for generators of clients and for tests."""

from __future__ import annotations

import asyncio

from inhouse.serve.http import Call
from inhouse.serve.openapi import encoded
from inhouse.serve.routes import Route, Services


async def openapi(services: Services, call: Call) -> None:
    """GET /openapi.json."""
    await call.connection.reply(200, await asyncio.to_thread(encoded))


ROUTES = (Route("GET", "/openapi.json", openapi),)
