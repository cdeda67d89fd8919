"""Cloud and edge: what waits too long here goes to another endpoint, unless it holds personal data."""

from __future__ import annotations

import asyncio
import logging
from importlib.util import find_spec

from inhouse.core.serving import Ask
from inhouse.release.rules import Overflow
from inhouse.release.settings import RemoteParams
from inhouse.serve.pool import Pool
from inhouse.serve.router import Way
from inhouse.serve.starting import remote

SEARCHER = "numba"  # what finds personal data needs it; without it nothing leaves this machine
log = logging.getLogger("inhouse.serve")


class Overflows:
    """The endpoints that the rules of deployments name."""

    def __init__(self) -> None:
        self._pools: dict[tuple[str, str], Pool] = {}
        self._told = False

    async def beyond(self, rule: Overflow, way: Way, ask: Ask, background: bool) -> Pool | None:
        """Where this request goes because too many wait here; None: it stays.

        What holds personal data stays, always; so does what only this release can answer, and work that can wait.
        """
        if background or way.adapter is not None or way.target.admission.waiting < rule.queue:
            return None
        pool = self._pool(rule)
        if not pool.ready or not self._can_search() or await asyncio.to_thread(holds_personal_data, ask):
            return None
        return pool

    async def close(self) -> None:
        """Let go of every connection."""
        for pool in self._pools.values():
            await pool.disconnect()
            pool.close()

    def _pool(self, rule: Overflow) -> Pool:
        name = (rule.url, rule.model)
        if name not in self._pools:
            self._pools[name] = Pool(f"overflow {rule.url}", [remote(0, RemoteParams(url=rule.url, model=rule.model))])
        return self._pools[name]

    def _can_search(self) -> bool:
        found = find_spec(SEARCHER) is not None
        if not found and not self._told:
            self._told = True
            log.error("nothing goes to the overflow: personal data is found with the extra `data`, which is missing")
        return found


def holds_personal_data(ask: Ask) -> bool:
    """Whether anything in the request's text is personal data; token ids cannot be read, and count as such."""
    from inhouse.guard.pii import find

    if ask.messages is None:
        return not isinstance(ask.prompt, str) or bool(find(ask.prompt))
    said = [str(message.get("content") or "") for message in ask.messages]
    said += [str(call) for message in ask.messages for call in message.get("tool_calls") or ()]
    return any(find(words) for words in said)
