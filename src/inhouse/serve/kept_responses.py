"""Responses that are kept for their client: conversations that go on, background work that is asked for later."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from inhouse.core.messages import text
from inhouse.release.batches import is_dead, this_worker
from inhouse.release.stored import StoredResponse, delete_response, drop_expired_responses, get_response, put_response
from inhouse.serve.errors import ApiError, invalid
from inhouse.serve.registry_writes import written

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

Json = dict[str, Any]
MOST_TURNS = 200  # that one conversation goes back
OPEN = ("queued", "in_progress")
DAY_S = 86_400
LATE_S = 60  # after the deadlines of a response that another machine makes


@dataclass(frozen=True)
class KeptResponses:
    """The responses of every key; each question names the key that asks it."""

    engine: Engine
    days: int
    being_made: Callable[[int, str], bool]  # here, by key and id
    deadline_s: float

    @property
    def off(self) -> bool:
        """Whether nothing is kept."""
        return self.days == 0

    async def put(self, key: int, shown: Json, items: list[Any]) -> None:
        """Keep a response, and the items that its client sent; or replace what is kept of it."""
        created = int(shown["created_at"])
        body = {"response": shown, "items": items, "worker": this_worker()}
        kept = StoredResponse(
            id=shown["id"],
            key=key,
            model=shown["model"],
            created=created,
            previous=shown["previous_response_id"],
            status=shown["status"],
            body=body,
            expires=created + self.days * DAY_S,
        )
        writing = asyncio.create_task(written(put_response, self.engine, kept))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait({writing})  # a thread is not cancelled: what is written after this comes after it
            raise

    async def get(self, key: int, response: str) -> StoredResponse:
        """A response of this key. One that nobody makes any more has failed.

        Raises ApiError 404.
        """
        made = self.being_made(key, response)  # asked first: it is written down before it is no longer being made
        return self._as_it_is(await self._read(key, response), made)

    async def delete(self, key: int, response: str) -> None:
        """Forget a response of this key. Raises ApiError 404."""
        if not await written(delete_response, self.engine, key, response):
            raise ApiError(404, "not_found", text("serve.no_response", id=response[:80]), "response_id")

    async def cancel(self, key: int, response: str) -> Json:
        """What is kept of a response that was ended: as it is when it was done just before, else as cancelled."""
        found = await self._read(key, response)
        shown: Json = found.body["response"]
        if found.status in OPEN:
            shown |= {"status": "cancelled"}
            await self.put(key, shown, found.body["items"])
        return shown

    async def before(self, key: int, previous: str) -> list[Any]:
        """The items of the conversation up to and with response `previous`. Raises ApiError 400."""
        turns: list[list[Any]] = []
        following: str | None = previous
        while following is not None:
            try:
                found = await self.get(key, following)
            except ApiError:
                raise _no_previous(following) from None
            if len(turns) >= MOST_TURNS:
                raise _no_previous(following)
            if found.status in OPEN:
                raise invalid(text("serve.response_open", id=following[:80]), "previous_response_id")
            if found.status == "failed":
                raise invalid(found.body["response"]["error"]["message"], "previous_response_id")
            turns.append([*found.body["items"], *found.body["response"]["output"]])
            following = found.previous
        return [item for turn in reversed(turns) for item in turn]

    def tidy(self) -> None:
        """Forget those whose time is over."""
        drop_expired_responses(self.engine, int(time.time()))

    async def _read(self, key: int, response: str) -> StoredResponse:
        found = await asyncio.to_thread(get_response, self.engine, key, response, int(time.time()))
        if found is None:
            raise ApiError(404, "not_found", text("serve.no_response", id=response[:80]), "response_id")
        return found

    def _as_it_is(self, found: StoredResponse, made: bool) -> StoredResponse:
        if made or found.status not in OPEN or not self._is_lost(found):
            return found
        error = {"code": "server_error", "message": text("serve.response_lost")}
        shown = {**found.body["response"], "status": "failed", "error": error}
        return replace(found, status="failed", body={**found.body, "response": shown})

    def _is_lost(self, found: StoredResponse) -> bool:
        """Whether nobody makes it: not this process, as was asked, nor another that lives and has time left.

        Twice the deadline: it may read along with another request first, and then be answered by itself.
        """
        worker = found.body["worker"]
        late = found.created + 2 * self.deadline_s + LATE_S < time.time()
        return worker == this_worker() or is_dead(worker) or late


def _no_previous(response: str) -> ApiError:
    message = text("serve.no_response", id=response[:80])
    return ApiError(400, "previous_response_not_found", message, "previous_response_id")
