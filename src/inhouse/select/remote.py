"""A model that another server holds: any OpenAI-compatible URL (vLLM, TGI, Ollama, another inhouse)."""

from __future__ import annotations

from typing import Any

from inhouse.core.errors import UserError
from inhouse.core.model import ModelFacts
from inhouse.core.settings import openai_headers

TIMEOUT_S = 10.0


def look_up(url: str, wanted: str | None, offline: bool) -> ModelFacts:
    """Ask `GET {url}/models` and choose the model called `wanted`, or the only one there is.

    Raises select.remote_offline, select.remote_down, select.remote_answer, select.remote_choose.
    """
    if offline:
        raise UserError("select.remote_offline", url=url)
    names = list_models(url)
    if wanted is None and len(names) == 1:
        wanted = names[0]
    if wanted not in names:
        raise UserError("select.remote_choose", url=url, names=", ".join(names[:20]) or "-", wanted=wanted or "-")
    return ModelFacts(format="remote", main=url.rstrip("/"), name=str(wanted))


def list_models(url: str) -> list[str]:
    """The ids of the models that the server offers."""
    import httpx

    try:
        answer = httpx.get(f"{url.rstrip('/')}/models", headers=openai_headers(url), timeout=TIMEOUT_S)
        answer.raise_for_status()
        data: Any = answer.json()
        return [str(model["id"]) for model in data["data"]]
    except httpx.HTTPStatusError as error:
        reason = f"HTTP {error.response.status_code}"
        raise UserError("select.remote_answer", url=url, reason=reason) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UserError("select.remote_down", url=url, reason=str(error) or type(error).__name__) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError("select.remote_answer", url=url, reason="not a list of models") from error
