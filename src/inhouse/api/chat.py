"""A small chat client for any OpenAI-compatible endpoint: the answer, piece by piece."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from ssl import SSLContext
from typing import Any

from inhouse.core.addresses import stays_here
from inhouse.core.errors import UserError
from inhouse.core.rows import Message
from inhouse.remote.trust import trusting

CONNECT_S = 5.0
READ_S = 600.0


@dataclass(frozen=True)
class Endpoint:
    """An address that answers, the key for it, and the one certificate to trust; without one, the machine's issuers."""

    url: str
    key: str | None
    certificate: Path | None = None


def stream_chat(
    endpoint: Endpoint, model: str, messages: Sequence[Message], max_tokens: int | None = None
) -> Iterator[str]:
    """Ask, and yield the answer's text as it comes. The endpoint's address may end in `/v1` or not.

    Raises chat.bad_key, chat.unreachable, chat.refused (with the server's reason), chat.broken_answer.
    """
    import httpx
    from httpx_sse import SSEError, connect_sse

    url, key = endpoint.url, endpoint.key
    address = f"{url.rstrip('/').removesuffix('/v1')}/v1/chat/completions"
    turns = [message.as_dict() for message in messages]
    body: dict[str, Any] = {"model": model, "messages": turns, "stream": True}
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    headers = authorization(key)
    waiting = httpx.Timeout(READ_S, connect=CONNECT_S)
    try:
        with (
            httpx.Client(timeout=waiting, verify=_trust(endpoint), trust_env=not stays_here(url)) as client,
            connect_sse(client, "POST", address, json=body, headers=headers) as source,
        ):
            if source.response.status_code != 200:
                source.response.read()
                reason = _reason(source.response.text)
                raise UserError("chat.refused", url=url, status=source.response.status_code, reason=reason)
            yield from _texts((event.data for event in source.iter_sse()), url)
    except (httpx.RemoteProtocolError, SSEError) as error:
        raise UserError("chat.broken_answer", url=url, reason=str(error)) from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UserError("chat.unreachable", url=url, reason=str(error) or type(error).__name__) from None


def authorization(key: str | None) -> dict[str, str]:
    """The header that carries a key, where there is one. Raises chat.bad_key, which does not show it."""
    sent = (key or "").strip()
    if not (sent.isascii() and sent.isprintable()):
        raise UserError("chat.bad_key")
    return {"Authorization": f"Bearer {sent}"} if sent else {}


def _trust(endpoint: Endpoint) -> SSLContext | bool:
    if endpoint.certificate is None:
        return True
    try:
        return trusting(endpoint.certificate)
    except OSError as error:
        raise UserError("chat.unreachable", url=endpoint.url, reason=error.strerror or str(error)) from None


def _texts(events: Iterator[str], url: str) -> Iterator[str]:
    """The text in each event, until `[DONE]`."""
    for data in events:
        if data == "[DONE]":
            return
        try:
            chunk = json.loads(data)
            if "error" in chunk:
                raise UserError("chat.broken_answer", url=url, reason=_reason(data))
            pieces = [choice["delta"].get("content") for choice in chunk["choices"]]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError("chat.broken_answer", url=url, reason="not an OpenAI stream") from None
        yield from (piece for piece in pieces if piece)
    raise UserError("chat.broken_answer", url=url, reason="the stream ended early")


def _reason(body: str) -> str:
    """The message of an OpenAI-shaped error, else the beginning of whatever came."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200]
