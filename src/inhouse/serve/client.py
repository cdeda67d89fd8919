"""A small chat client for any OpenAI-compatible endpoint: the answer, piece by piece."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from inhouse.core.errors import UserError
from inhouse.core.rows import Message
from inhouse.serve.app import is_loopback

CONNECT_S = 5.0
READ_S = 600.0


def stream_chat(url: str, key: str | None, model: str, messages: Sequence[Message], max_tokens: int) -> Iterator[str]:
    """Ask, and yield the answer's text as it comes. `url` is the server's address, with or without `/v1`.

    Raises serve.unreachable, serve.refused (with the server's reason), serve.broken_answer.
    """
    import httpx

    address = f"{url.rstrip('/').removesuffix('/v1')}/v1/chat/completions"
    body = {
        "model": model,
        "messages": [message.as_dict() for message in messages],
        "max_tokens": max_tokens,
        "stream": True,
    }
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Timeout(READ_S, connect=CONNECT_S)
    try:
        proxied = not is_loopback(httpx.URL(address).host)  # http_proxy is not meant for this machine
        with httpx.stream("POST", address, json=body, headers=headers, timeout=limits, trust_env=proxied) as response:
            if response.status_code != 200:
                response.read()
                raise UserError("serve.refused", url=url, status=response.status_code, reason=_reason(response.text))
            yield from _texts(response.iter_lines(), url)
    except httpx.RemoteProtocolError:
        raise UserError("serve.broken_answer", url=url, reason="the connection closed") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UserError("serve.unreachable", url=url, reason=str(error) or type(error).__name__) from None


def _texts(lines: Iterator[str], url: str) -> Iterator[str]:
    """The text in each `data:` line, until `[DONE]`."""
    for line in lines:
        if not line.startswith("data:"):
            continue
        data = line[5:].strip()
        if data == "[DONE]":
            return
        try:
            event = json.loads(data)
            if "error" in event:
                raise UserError("serve.broken_answer", url=url, reason=_reason(data))
            pieces = [choice["delta"].get("content") for choice in event["choices"]]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError("serve.broken_answer", url=url, reason="not an OpenAI stream") from None
        yield from (piece for piece in pieces if piece)
    raise UserError("serve.broken_answer", url=url, reason="the stream ended early")


def _reason(body: str) -> str:
    """The message of an OpenAI-shaped error, else the beginning of whatever came."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:200]
