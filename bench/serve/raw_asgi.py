"""The reference: a relay of nothing but raw ASGI on uvicorn and an aiohttp client. No keys, no checks, no figures.

    python bench/serve/raw_asgi.py UPSTREAM_URL [--parent PID]

What a gateway costs beyond this is what it does; what it costs below this its own client saves.
"""

from __future__ import annotations

import argparse
import json
import socket
from typing import Any

import aiohttp
import uvicorn


class Relay:
    """Passes bodies on, and bytes back."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        if self.session is None:
            self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = {"content-type": "application/json"}
        async with self.session.post(self.upstream + scope["path"], data=body, headers=headers) as response:
            kind = response.headers.get("content-type", "application/json").encode()
            await send({"type": "http.response.start", "status": response.status, "headers": [(b"content-type", kind)]})
            async for data in response.content.iter_any():
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("upstream")
    parser.add_argument("--parent", type=int)
    options = parser.parse_args()
    if options.parent:
        from inhouse.core.run import die_with_parent

        die_with_parent(options.parent)
    listener = socket.create_server(("127.0.0.1", 0))
    print(json.dumps({"ready": {"port": listener.getsockname()[1]}}), flush=True)
    config = uvicorn.Config(Relay(options.upstream), log_config=None, access_log=False, lifespan="off")
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
