"""Cloud and edge: what waits too long here goes to another endpoint, unless it holds personal data."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

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

    def __init__(self, silence_s: float) -> None:
        self._silence_s = silence_s
        self._pools: dict[tuple[str, str], Pool] = {}
        self._told = False

    async def beyond(self, rule: Overflow, way: Way, ask: Ask, background: bool) -> Pool | None:
        """Where this request goes because too many wait here; None: it stays.

        What holds personal data stays, always; so does what only this release can answer (an adapter, numbers of its
        tokens), and work that can wait.
        """
        pool = self.pool(rule)
        own = way.adapter is not None or bool(ask.sampling.logit_bias)
        if background or own or way.target.admission.waiting < rule.queue:
            return None
        if not pool.could_answer(ask) or not self._can_search() or await asyncio.to_thread(holds_personal_data, ask):
            return None
        return pool

    async def close(self) -> None:
        """Let go of every connection."""
        for pool in self._pools.values():
            await pool.disconnect()
            pool.close()

    def pool(self, rule: Overflow) -> Pool:
        """The endpoint that a rule names; it is looked for from the first call on, so call it before it is needed."""
        name = (rule.url, rule.model)
        if name not in self._pools:
            asked = RemoteParams(url=rule.url, model=rule.model)
            self._pools[name] = Pool(f"overflow {rule.url}", [remote(0, asked, self._silence_s)])
        return self._pools[name]

    def _can_search(self) -> bool:
        found = find_spec(SEARCHER) is not None
        if not found and not self._told:
            self._told = True
            log.error("nothing goes to the overflow: personal data is found with the extra `data`, which is missing")
        return found


def holds_personal_data(ask: Ask) -> bool:
    """Whether any text of the request is personal data, wherever it stands; token ids cannot be read, and count."""
    from inhouse.guard.pii import find

    if ask.messages is None and not isinstance(ask.prompt, str):
        return True
    limits = [limit.value for limit in (ask.constraint, ask.forced) if limit is not None]
    sent = [ask.prompt, ask.messages, ask.tools, ask.tool_choice, ask.sampling.stop, limits]
    try:
        return any(find(words) for words in _texts(sent))
    except RecursionError:  # nested too deeply to be read
        return True


def _texts(value: Any) -> Iterator[str]:
    """Every text inside of JSON values; what is encoded as JSON once more, as the arguments of a call are, as it is."""
    if isinstance(value, str):
        yield value
        if value[:1] in ("{", "["):
            try:
                inside = json.loads(value)
            except (ValueError, RecursionError):
                return
            yield from _texts(inside)  # there `\n` stands before a number, and hides it
    elif isinstance(value, Mapping):
        for name, one in value.items():
            yield from _texts(name)
            yield from _texts(one)
    elif isinstance(value, Iterable):
        for one in value:
            yield from _texts(one)
    elif value is not None and not isinstance(value, bool):
        yield str(value)
