"""Find out what answers at an address: which kind of endpoint, which models, how long a request may be."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inhouse.core.errors import UserError
from inhouse.core.settings import openai_headers, upstream_key
from inhouse.engines.remote_kinds import Found, Kind
from inhouse.remote.http import reaching

if TYPE_CHECKING:
    import httpx

LOOK_S = 10.0
OWNERS: dict[str, Kind] = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llama-server", "library": "ollama"}


def headers_for(url: str, api_key_env: str | None, headers: Mapping[str, str]) -> dict[str, str]:
    """What goes with every request to an endpoint. Raises remote_serving.no_key, remote_serving.bad_header."""
    for name, value in headers.items():
        if not (name + value).isprintable() or not (name + value).isascii():
            raise UserError("remote_serving.bad_header", name=ascii(name))
    if api_key_env is None:
        return {**headers, **openai_headers(url)}
    key = upstream_key(api_key_env)
    if key is None:
        raise UserError("remote_serving.no_key", variable=api_key_env, url=url)
    return {**headers, "Authorization": f"Bearer {key}"}


def discover(url: str, model: str, client: httpx.Client, context_length: int | None) -> Found:
    """Ask an endpoint what it is. `context_length` is taken where given, else it must be told by the endpoint.

    Raises remote.unreachable, remote.timeout, remote.refused, remote.not_openai,
    remote_serving.no_model, remote_serving.no_context.
    """
    with reaching(url, LOOK_S):
        api, listed = _models(client, url.rstrip("/"), model)
        names = [str(entry.get("id")) for entry in listed]
        # Ollama adds a tag to a name that has none; a provider may answer for names that it does not list.
        entry = next((e for e in listed if e.get("id") in (model, f"{model}:latest")), None)
        if entry is None and names:
            raise UserError("remote_serving.no_model", url=url, model=model, names=", ".join(names[:20]))
        root = api.removesuffix("/v1")
        kind, told = _kind(client, root, str((entry or {}).get("owned_by")))
    adapters = tuple(str(e["id"]) for e in listed if e.get("parent") == model)
    found = Found(kind, str(told.get("version", "")), api, root, model, _context(entry or {}, told), adapters)
    context = context_length or found.context_length
    if context is None:
        raise UserError("remote_serving.no_context", url=url, kind=kind)
    return replace(found, context_length=context)


def reached(found: Found, client: httpx.Client) -> bool:
    """Whether an endpoint answers now."""
    import httpx

    try:
        return client.get(f"{found.api}/models").status_code < 500
    except httpx.HTTPError:
        return False


def looking(headers: Mapping[str, str], certificates: Path | None) -> httpx.Client:
    """A client for looks at an endpoint: it must see what the hot path will, so no proxies and no redirects."""
    import httpx

    tls = authorities(certificates)
    return httpx.Client(headers=dict(headers), timeout=LOOK_S, verify=tls, trust_env=False, follow_redirects=False)


@cache
def authorities(certificates: Path | None) -> ssl.SSLContext:
    """Who vouches for an endpoint: the machine's issuers, or those in a PEM file instead.

    Read once: it takes 20 ms, and an endpoint is looked at twice a second.
    """
    return ssl.create_default_context(cafile=certificates)


def _models(client: httpx.Client, url: str, model: str) -> tuple[str, list[dict[str, Any]]]:
    """The address of the API, with the /v1 that may have been left out, and the models it lists."""
    for place in [url] if url.endswith("/v1") else [f"{url}/v1", url]:
        response = client.get(f"{place}/models")
        if response.status_code == 200:
            try:
                return place, [entry for entry in response.json()["data"] if isinstance(entry, dict)]
            except (ValueError, KeyError, TypeError):
                continue
    detail = response.text[:300]
    if response.status_code == 200:
        raise UserError("remote.not_openai", url=url, got=detail)
    raise UserError("remote.refused", url=url, status=response.status_code, model=model, detail=detail)


def _kind(client: httpx.Client, root: str, owner: str) -> tuple[Kind, dict[str, Any]]:
    """Which kind it is, by who it says owns the model, else by the route that only one kind has."""
    routes: dict[Kind, str] = {
        "vllm": "/version", "sglang": "/get_server_info", "llama-server": "/props", "ollama": "/api/version",
    }  # fmt: skip
    if (kind := OWNERS.get(owner)) is not None:
        return kind, _json(client, root + routes[kind])
    if "max_total_tokens" in (told := _json(client, f"{root}/info")):
        return "tgi", told
    if "default_generation_settings" in (told := _json(client, f"{root}/props")):
        return "llama-server", told
    return "openai", {}


def _json(client: httpx.Client, url: str) -> dict[str, Any]:
    """What a route tells; nothing where there is no such route."""
    response = client.get(url)
    try:
        found = response.json() if response.status_code == 200 else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _context(entry: Mapping[str, Any], told: Mapping[str, Any]) -> int | None:
    """Tokens of one request, from whichever field the kind has for it."""
    slot = told.get("default_generation_settings")
    places = (
        entry.get("max_model_len"), slot.get("n_ctx") if isinstance(slot, dict) else None,
        told.get("max_total_tokens"), told.get("context_length"), entry.get("context_length"),
    )  # fmt: skip
    return next((value for value in places if isinstance(value, int) and value > 0), None)
