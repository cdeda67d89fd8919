"""The batch API: /v1/batches."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from inhouse.core.messages import text
from inhouse.release.batches import Batch, add_batch, cancel_batch, get_batch, list_batches
from inhouse.release.stored import Page, new_id
from inhouse.serve.batch_lines import ENDPOINTS
from inhouse.serve.batch_worker import WEBHOOK
from inhouse.serve.errors import ApiError, invalid
from inhouse.serve.http import Call
from inhouse.serve.registry_writes import written
from inhouse.serve.requests import Body, read_body
from inhouse.serve.routes import Route, Services
from inhouse.serve.routes.files import page_of, paged
from inhouse.serve.webhooks import allowed

Json = dict[str, Any]
DAY_S = 86_400
MOST_OPEN = 100  # of one key
Label = Annotated[str, StringConstraints(max_length=64)]
Value = Annotated[str, StringConstraints(max_length=512)]
MOMENTS = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")


class Webhook(Body):
    """Who is told when the batch has ended."""

    url: Annotated[str, StringConstraints(max_length=2000)]


class BatchBody(Body):
    """POST /v1/batches."""

    input_file_id: Annotated[str, StringConstraints(max_length=80)]
    endpoint: Annotated[str, StringConstraints(max_length=100)]
    completion_window: Literal["24h"]
    metadata: Annotated[dict[Label, Value], Field(max_length=16)] | None = None
    webhook: Webhook | None = None


async def create(services: Services, call: Call) -> None:
    """POST /v1/batches."""
    assert call.key is not None
    body = read_body(BatchBody, await call.json_body())
    if body.endpoint not in ENDPOINTS:
        raise invalid(text("serve.batch_endpoint", known=", ".join(ENDPOINTS)), "endpoint")
    if body.webhook is not None and not allowed(body.webhook.url, services.settings.batches.webhooks):
        raise invalid(text("serve.webhook_host"), "webhook.url")
    metadata = body.metadata or {}
    if WEBHOOK in metadata:
        raise invalid(text("serve.webhook_host"), "metadata")
    file = await services.files.get(call.key.id, body.input_file_id)
    if file.purpose != "batch":
        raise invalid(text("serve.file_purpose"), "input_file_id")
    await _check_open(services, call.key.id)
    now = int(time.time())
    batch = Batch(
        id=new_id("batch_"),
        key=call.key.id,
        endpoint=body.endpoint,
        input_file=file.id,
        status="validating",
        created=now,
        expires=now + DAY_S,
        metadata=metadata if body.webhook is None else {**metadata, WEBHOOK: body.webhook.url},
    )
    made = await written(add_batch, services.files.engine, batch)
    services.batches.wake()
    call.connection.ignore(sorted(body.model_extra or {}))
    await call.reply(shown(made))


async def retrieve(services: Services, call: Call) -> None:
    """GET /v1/batches/{id}."""
    assert call.key is not None
    found = await asyncio.to_thread(get_batch, services.files.engine, call.key.id, call.parts["id"])
    await call.reply(shown(_known(found, call.parts["id"])))


async def cancel(services: Services, call: Call) -> None:
    """POST /v1/batches/{id}/cancel."""
    assert call.key is not None
    own = call.parts["id"]
    found = await written(cancel_batch, services.files.engine, call.key.id, own, int(time.time()))
    batch = _known(found, own)
    if batch.status not in ("cancelling", "cancelled"):
        raise ApiError(409, "batch_ended", text("serve.batch_ended", status=batch.status))
    services.batches.wake()
    await call.reply(shown(batch))


async def listing(services: Services, call: Call) -> None:
    """GET /v1/batches."""
    assert call.key is not None
    page = page_of(call, usual=20, most=100)
    wanted = Page(page.limit + 1, page.after, page.newest_first)
    found = await asyncio.to_thread(list_batches, services.files.engine, call.key.id, wanted)
    await call.reply(paged([shown(batch) for batch in found], page.limit))


async def _check_open(services: Services, key: int) -> None:
    page = Page(MOST_OPEN)
    recent = await asyncio.to_thread(list_batches, services.files.engine, key, page)
    if sum(batch.status in ("validating", "in_progress") for batch in recent) >= MOST_OPEN:
        raise ApiError(429, "rate_limit_exceeded", text("serve.batch_many", most=MOST_OPEN))


def _known(found: Batch | None, own: str) -> Batch:
    if found is None:
        raise ApiError(404, "not_found", text("serve.no_batch", id=own[:80]), "batch_id")
    return found


def shown(batch: Batch) -> Json:
    """A batch as OpenAI shows it."""
    errors = {"object": "list", "data": list(batch.errors)} if batch.errors else None
    webhook = batch.metadata.get(WEBHOOK)
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": errors,
        "input_file_id": batch.input_file,
        "completion_window": batch.window,
        "status": batch.status,
        "output_file_id": batch.output_file,
        "error_file_id": batch.error_file,
        "created_at": batch.created,
        "expires_at": batch.expires,
        **{f"{status}_at": batch.moments.get(status) for status in MOMENTS},
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "metadata": {name: value for name, value in batch.metadata.items() if name != WEBHOOK} or None,
        **({"webhook": {"url": webhook}} if webhook else {}),
    }


ROUTES = (
    Route("POST", "/v1/batches", create, scope="files"),
    Route("GET", "/v1/batches", listing, scope="files"),
    Route("GET", "/v1/batches/{id}", retrieve, scope="files"),
    Route("POST", "/v1/batches/{id}/cancel", cancel, scope="files"),
)
