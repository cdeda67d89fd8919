"""What can go wrong on the way to an endpoint, in the user's words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from inhouse.core.errors import UserError

if TYPE_CHECKING:
    import httpx


@contextmanager
def reaching(url: str, timeout_s: float) -> Iterator[None]:
    """Tell what went wrong on the way to an endpoint: remote.timeout or remote.unreachable."""
    import httpx

    try:
        yield
    except httpx.TimeoutException:
        raise UserError("remote.timeout", url=url, seconds=timeout_s) from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UserError("remote.unreachable", url=url, problem=str(error) or type(error).__name__) from None


def check(response: httpx.Response, url: str, model: str) -> None:
    """Raise remote.refused with the endpoint's own words unless it answered."""
    if not response.is_success:
        detail = response.read()[:300].decode(errors="replace")
        raise UserError("remote.refused", url=url, status=response.status_code, model=model, detail=detail)
