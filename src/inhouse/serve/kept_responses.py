"""Responses that are kept for their client: conversations that go on, background work that is asked for later."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inhouse.core.messages import text
from inhouse.release.batches import is_dead, this_worker
from inhouse.release.stored import StoredResponse, delete_response, drop_expired_responses, get_response, put_response
from inhouse.serve.errors import ApiError, invalid

if TYPE_CHECKING:
    from sqlalchemy import Engine

Json = dict[str, Any]
MOST_TURNS = 200  # that one conversation goes back
OPEN = ("queued", "in_progress")
DAY_S = 86_400


@dataclass(frozen=True)
class KeptResponses:
    """The responses of every key; each question names the key that asks it."""

    engine: Engine
    days: int

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
        writing = asyncio.create_task(asyncio.to_thread(put_response, self.engine, kept))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await asyncio.wait({writing})  # a thread is not cancelled: what is written after this comes after it
            raise

    async def get(self, key: int, response: str) -> StoredResponse:
        """A response of this key. One that was being made by a process that is gone has failed.

        Raises ApiError 404.
        """
        found = await self._find(key, response)
        if found is None:
            raise ApiError(404, "not_found", text("serve.no_response", id=response[:80]), "response_id")
        if found.status in OPEN and is_dead(found.body["worker"]):
            shown = found.body["response"]
            shown |= {"status": "failed", "error": {"code": "server_error", "message": text("serve.response_lost")}}
        return found

    async def delete(self, key: int, response: str) -> None:
        """Forget a response of this key. Raises ApiError 404."""
        if not await asyncio.to_thread(delete_response, self.engine, key, response):
            raise ApiError(404, "not_found", text("serve.no_response", id=response[:80]), "response_id")

    async def before(self, key: int, previous: str) -> list[Any]:
        """The items of the conversation up to and with response `previous`. Raises ApiError 400."""
        turns: list[list[Any]] = []
        following: str | None = previous
        while following is not None:
            found = await self._find(key, following)
            if found is None or len(turns) >= MOST_TURNS:
                message = text("serve.no_response", id=following[:80])
                raise ApiError(400, "previous_response_not_found", message, "previous_response_id")
            if found.status in OPEN:
                raise invalid(text("serve.response_open", id=following[:80]), "previous_response_id")
            turns.append([*found.body["items"], *found.body["response"]["output"]])
            following = found.previous
        return [item for turn in reversed(turns) for item in turn]

    def tidy(self) -> None:
        """Forget those whose time is over."""
        drop_expired_responses(self.engine, int(time.time()))

    async def _find(self, key: int, response: str) -> StoredResponse | None:
        return await asyncio.to_thread(get_response, self.engine, key, response, int(time.time()))
