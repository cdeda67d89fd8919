"""The keys that are valid now, kept in step with the registry."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from inhouse.core.errors import InhouseError
from inhouse.release.keys import Key, active_keys, hash_token

if TYPE_CHECKING:
    from sqlalchemy import Engine

REREAD_S = 0.05  # unknown keys make the registry be read no oftener than this
log = logging.getLogger("inhouse.serve")


class KeyRing:
    """Valid keys by the hash of their token. `read` is called at every look at the registry."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._reread = asyncio.Lock()
        self._reread_at = float("-inf")
        self.keys: dict[str, Key] = {}
        self.read()

    def read(self) -> None:
        """Read the keys again."""
        with self._lock:  # so that an older reading never replaces a newer one
            self.keys = active_keys(self._engine)

    async def find(self, token: str) -> Key | None:
        """The key that this token belongs to, when it is valid now.

        For an unknown one the keys are read again before it is refused: it may have been made a moment ago.
        Requests that wait for this share one reading.
        """
        hashed = hash_token(token)
        if hashed not in self.keys:
            asked = time.monotonic()
            async with self._reread:
                if self._reread_at < asked:
                    await asyncio.sleep(self._reread_at + REREAD_S - asked)
                    self._reread_at = time.monotonic()
                    await self._try_read()
        key = self.keys.get(hashed)
        return key if key is not None and key.valid(datetime.now(UTC)) else None

    async def _try_read(self) -> None:
        from sqlalchemy.exc import SQLAlchemyError

        try:
            await asyncio.to_thread(self.read)
        except (InhouseError, SQLAlchemyError) as error:
            log.warning("the registry cannot be read: %s", error)
