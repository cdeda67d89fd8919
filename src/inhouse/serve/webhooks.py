"""Tell somebody outside that a batch has ended; only hosts that the operator named."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

PAUSES_S = (1.0, 5.0, 30.0)
TIMEOUT_S = 10.0
log = logging.getLogger("inhouse.serve")


def allowed(url: str, hosts: Sequence[str]) -> bool:
    """Whether this address may be told: http or https, a host that was named (with its port, or the usual one)."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        return False
    own = parts.hostname if port is None else f"{parts.hostname}:{port}"
    usual = port in (None, 443 if parts.scheme == "https" else 80)
    return own in hosts or (usual and parts.hostname in hosts)


async def announce(url: str, event: str, subject: str) -> None:
    """POST one event; tried again a few times, never redirected. Of the answer only its status is looked at."""
    import httpx

    body = {
        "id": f"evt_{secrets.token_hex(12)}",
        "object": "event",
        "type": event,
        "created_at": int(time.time()),
        "data": {"id": subject},
    }
    async with httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=TIMEOUT_S) as http:
        for pause in (*PAUSES_S, None):
            try:
                if (await http.post(url, json=body)).is_success:
                    return
            except httpx.HTTPError:
                pass
            if pause is not None:
                await asyncio.sleep(pause)
    log.warning("the webhook of %s was not accepted", subject)
