"""Talk to the engine: one streamed request, as parsed chunks."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from inhouse.core.messages import text
from inhouse.engines.llamacpp import RunningEngine
from inhouse.serve.errors import ApiError, invalid, too_long
from inhouse.serve.requests import Asked

if TYPE_CHECKING:
    import aiohttp

LINE_BYTES = 2**20  # a chunk with 20 log-probabilities per token is about 4 KB
CONNECT_S = 5.0


class EngineLost(Exception):
    """The engine's process ended, or the connection to it broke, before the answer was whole."""


class EngineSilent(Exception):
    """The engine sent nothing for too long: a chat template that loops, or a process that hangs."""


def open_session() -> aiohttp.ClientSession:
    """Connections to engines on this machine, one a request; must be made inside the event loop."""
    import aiohttp

    # llama.cpp closes a connection after a stream without saying so: a request that reuses it would fail.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    return aiohttp.ClientSession(connector=connector, read_bufsize=LINE_BYTES, trust_env=False)


async def stream(
    session: aiohttp.ClientSession, engine: RunningEngine, asked: Asked, silence_s: float
) -> AsyncGenerator[dict[str, Any], None]:
    """Every chunk of the engine's answer. Closing this iterator closes the connection, which frees the slot.

    Raises ApiError for a refusal, EngineLost, EngineSilent.
    """
    import aiohttp
    from aiohttp.http_exceptions import HttpProcessingError  # a line that is too long is no ClientError

    limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=silence_s)
    url = engine.url + asked.path
    try:
        async with session.post(url, json=asked.payload, headers=engine.headers, timeout=limits) as response:
            if response.status != 200:
                raise _refusal(await response.read(), response.status, engine.context_length)
            async for line in response.content:
                if not line.startswith(b"data: "):
                    continue
                if line.startswith(b"data: [DONE]"):
                    return
                chunk = json.loads(line[6:])
                if isinstance(chunk, dict):  # llama.cpp sends a `null` first in some cases
                    if "error" in chunk:
                        raise _refusal(line[6:], 500, engine.context_length)
                    yield chunk
    except aiohttp.SocketTimeoutError as error:
        raise EngineSilent from error
    except (aiohttp.ClientError, HttpProcessingError, OSError, ValueError) as error:
        raise EngineLost from error
    raise EngineLost


def _refusal(body: bytes, status: int, context: int) -> ApiError:
    """Our words for the engine's: its messages may name paths and addresses."""
    try:
        error = json.loads(body)["error"]
        kind, tokens = error.get("type"), error.get("n_prompt_tokens", "?")
    except (ValueError, KeyError, TypeError, AttributeError):
        kind, tokens = None, "?"
    if kind == "exceed_context_size_error":
        return too_long(text("serve.tokens", count=tokens), context)
    if status in (400, 413, 422):
        return invalid(text("serve.refused_by_engine"))
    return ApiError(500, "engine_error", text("serve.engine_error"))
