"""Answers for requests that are the same byte for byte as one before: without reading them again.

A way around the checks that an equal body has passed already, for the same key. Only where nothing else decides: whole
greedy answers of a deployment with one release, for a key without quotas. Everything else goes the usual way.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cachetools import LRUCache

from inhouse.release.keys import UNLIMITED, Key
from inhouse.serve.ids import new_id
from inhouse.serve.measured import Measured
from inhouse.serve.router import Serving

if TYPE_CHECKING:
    from inhouse.serve.pipeline import Caller

MOST_BODY = 16 * 1024
MOST_BYTES = 16 * 2**20
ID = b'{"id": "'  # how every answer begins; the id in it is its own
Name = tuple[int, str, bytes]


@dataclass(frozen=True)
class Known:
    """An answer, and what must still be as it was."""

    serving: Serving
    kind: str
    rest: bytes  # of the answer, from behind its id on
    until: float


class QuickAnswers:
    """Answers by key, route and body."""

    def __init__(self) -> None:
        self._known: LRUCache[Name, Known] = LRUCache(MOST_BYTES, getsizeof=lambda known: len(known.rest) + MOST_BODY)

    def find(self, key: Key, route: str, body: bytes, serving: dict[str, Serving]) -> tuple[bytes, Measured] | None:
        """The answer with an id of its own, and its record; None where this body has to be read."""
        if len(body) > MOST_BODY:
            return None
        known = self._known.get((key.id, route, body))
        if known is None:
            return None
        name = known.serving.deployment.name
        if serving.get(name) is not known.serving or known.until < time.monotonic() or key.limits != UNLIMITED:
            del self._known[key.id, route, body]
            return None
        label = known.serving.main.release.label
        seen = Measured("-", key.name, str(key.id), label, name, "cache", route, "hit", 200)
        seen.arm = known.serving.deployment.arms[0]
        return ID + new_id(known.kind).encode() + known.rest, seen

    def keep(self, caller: Caller, body: bytes, answer: bytes, serving: Serving) -> None:
        """Remember an answer that came from the cache, for as long as it stays there."""
        key, route, until = caller.key, caller.route, caller.kept_until
        deployment = serving.deployment
        if len(body) > MOST_BODY or not answer.startswith(ID) or len(deployment.arms) != 1 or key.limits != UNLIMITED:
            return
        kind, _, _ = answer[len(ID) :].partition(b"-")
        rest = answer[answer.index(b'"', len(ID)) :]
        if len(rest) + MOST_BODY < MOST_BYTES and until is not None:
            self._known[key.id, route, body] = Known(serving, kind.decode(), rest, until)
