"""What became of requests: the request log, newest first, and one request by its id."""

from __future__ import annotations

from itertools import islice
from typing import Any

from pydantic import Field

from inhouse.api.request import Request
from inhouse.core.artifact import Frozen
from inhouse.core.errors import UserError
from inhouse.release.request_records import read_records

SHOWN = 8  # characters of an id that lists show


class RequestsRequest(Request):
    """Which requests."""

    last: int = Field(20, ge=1, le=10_000, description="how many, the newest first")
    failed: bool = Field(False, description="only those that failed")
    slower_s: float | None = Field(None, ge=0, description="only those that took longer than so many seconds")
    deployment: str | None = Field(None, description="only those of this deployment")
    by: str | None = Field(None, description="only those of the key with this name")


class OneRequest(Request):
    """One request."""

    id: str = Field(description="its id (or its first 8 characters), from the header x-request-id of the answer")


class RequestLine(Frozen):
    """One request, without a word of what was said. Seconds; tokens as the engine counted them."""

    request_id: str
    at: float
    key: str = "-"
    deployment: str = "-"
    release: str = "-"
    arm: str | None = None
    engine: str = "-"
    route: str = "-"
    status: int
    error: str | None = None
    finish: str | None = None
    cache: str = "-"
    alarms: tuple[str, ...] | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    answer_tokens: int = 0
    queue_s: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    first_token_s: float | None = None
    total_s: float = 0.0
    content: dict[str, str] | None = None


class Requests(Frozen):
    """Requests, the newest first."""

    requests: tuple[RequestLine, ...]


def list_requests(request: RequestsRequest) -> Requests:
    """The latest requests of the log that meet the conditions."""
    found = (record for record in read_records(request.store.root) if _wanted(record, request))
    return Requests(requests=tuple(RequestLine.model_validate(record) for record in islice(found, request.last)))


def show_request(request: OneRequest) -> RequestLine:
    """One request of the log; raises serve.request_not_logged."""
    for record in read_records(request.store.root):
        if len(request.id) >= SHOWN and str(record.get("request_id", "")).startswith(request.id):
            return RequestLine.model_validate(record)
    raise UserError("serve.request_not_logged", id=request.id[:128], folder=request.store.root / "logs")


def _wanted(record: dict[str, Any], asked: RequestsRequest) -> bool:
    return (
        (not asked.failed or record.get("status", 200) >= 400)
        and (asked.slower_s is None or record.get("total_s", 0.0) > asked.slower_s)
        and asked.deployment in (None, record.get("deployment"))
        and asked.by in (None, record.get("key"))
    )
