"""The files API: /v1/files, for the input and the results of batches."""

from __future__ import annotations

import asyncio
from typing import Any

from inhouse.core.messages import text
from inhouse.release.stored import MOST_LISTED, Page, StoredFile, list_files
from inhouse.serve.errors import invalid
from inhouse.serve.file_store import READ_BYTES
from inhouse.serve.http import Call
from inhouse.serve.routes import Route, Services

Json = dict[str, Any]


async def upload(services: Services, call: Call) -> None:
    """POST /v1/files."""
    assert call.key is not None
    made, form = await services.files.receive(call, call.key.id)
    known = {"purpose", "expires_after[seconds]", "expires_after[anchor]"}
    call.connection.ignore(sorted(form.fields.keys() - known))
    await call.reply(shown(made))


async def listing(services: Services, call: Call) -> None:
    """GET /v1/files."""
    assert call.key is not None
    page = page_of(call, usual=MOST_LISTED, most=MOST_LISTED)
    wanted = Page(page.limit + 1, page.after, page.newest_first)
    found = await asyncio.to_thread(list_files, services.files.engine, call.key.id, wanted, call.query("purpose"))
    await call.reply(paged([shown(file) for file in found], page.limit))


async def retrieve(services: Services, call: Call) -> None:
    """GET /v1/files/{id}."""
    assert call.key is not None
    await call.reply(shown(await services.files.get(call.key.id, call.parts["id"])))


async def content(services: Services, call: Call) -> None:
    """GET /v1/files/{id}/content: the bytes, as they were sent."""
    assert call.key is not None
    file = await services.files.get(call.key.id, call.parts["id"])
    length = [(b"content-length", str(file.bytes).encode())]
    with services.files.path(file.id).open("rb") as source:
        await call.connection.start(200, b"application/octet-stream", length)
        while piece := await asyncio.to_thread(source.read, READ_BYTES):
            await call.connection.write(piece)
        await call.connection.write(b"", more=False)


async def delete(services: Services, call: Call) -> None:
    """DELETE /v1/files/{id}."""
    assert call.key is not None
    await services.files.delete(call.key.id, call.parts["id"])
    await call.reply({"id": call.parts["id"], "object": "file", "deleted": True})


def shown(file: StoredFile) -> Json:
    """A file as OpenAI shows it."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created,
        "expires_at": file.expires,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": file.status,
        "status_details": None,
    }


def page_of(call: Call, usual: int, most: int) -> Page:
    """Which part of a list is asked for. Raises ApiError 400."""
    told = call.query("limit")
    if told is not None and not (told.isascii() and told.isdigit() and len(told) < 9 and 1 <= int(told) <= most):
        raise invalid(text("serve.page_limit", most=most), "limit")
    order = call.query("order") or "desc"
    if order not in ("asc", "desc"):
        raise invalid(text("serve.page_order"), "order")
    # One fewer than the registry lists at most: one more is asked for, to know whether there are more.
    return Page(min(usual if told is None else int(told), MOST_LISTED - 1), call.query("after"), order == "desc")


def paged(entries: list[Json], limit: int) -> Json:
    """A page as OpenAI's lists have it; one entry too many says that there are more."""
    data = entries[:limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(entries) > limit,
    }


ROUTES = (
    Route("POST", "/v1/files", upload, scope="files"),
    Route("GET", "/v1/files", listing, scope="files"),
    Route("GET", "/v1/files/{id}", retrieve, scope="files"),
    Route("DELETE", "/v1/files/{id}", delete, scope="files"),
    Route("GET", "/v1/files/{id}/content", content, scope="files"),
)
