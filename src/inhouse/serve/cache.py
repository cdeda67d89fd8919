"""Answers kept for requests that would be answered the same again, and one engine run for equal requests at once.

Only greedy requests are kept: a sampled answer is meant to differ. Never across tenants: the key of the request is
part of every entry's name.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from operator import attrgetter

from cachetools import TTLCache

from inhouse.core.serving import Ask, Delta, Sampling, Usage
from inhouse.release.settings import CacheParams

CHOSEN = attrgetter(*(field.name for field in fields(Sampling)))
ENTRY_BYTES = 512  # an entry's own weight, besides its text
DELTA_BYTES = 100


@dataclass(frozen=True, slots=True)
class Kept:
    """A whole answer: one delta a choice and what it used."""

    deltas: tuple[Delta, ...]
    usage: Usage
    until: float = math.inf  # of the monotonic clock

    @property
    def bytes(self) -> int:
        """Roughly what it holds in memory."""
        return ENTRY_BYTES + sum(DELTA_BYTES + 4 * len(d.text) + 200 * len(d.logprobs or ()) for d in self.deltas)


class Flight:
    """A request that is being answered now; equal ones that come meanwhile read along."""

    def __init__(self) -> None:
        self.pieces: list[list[Delta]] = []
        self.usage: Usage | None = None  # set when it is whole
        self.failed = False
        self.elsewhere = False  # answered by the overflow, not by a release
        self._changed: asyncio.Event | None = None  # made for the first who reads along
        self.followers = 0

    def add(self, deltas: list[Delta]) -> None:
        """Tell those who read along."""
        self.pieces.append(deltas)
        if self._changed is not None:
            self._changed.set()

    def end(self, usage: Usage | None) -> None:
        """The answer is whole; None when it will never be."""
        self.usage = usage
        self.failed = usage is None
        if self._changed is not None:
            self._changed.set()

    def restart(self) -> None:
        """The engine was lost and the answer begins again; nobody has been sent anything of it."""
        self.pieces.clear()

    async def follow(self, at: int = 0, leads: bool = False) -> AsyncGenerator[list[Delta], None]:
        """Its pieces from number `at` on, as they come. Ends early when the leader fails: look at `failed`.

        The leader itself, which reads for its own client, is no follower.
        """
        self.followers += not leads
        changed = self._changed = self._changed or asyncio.Event()
        try:
            while True:
                while at < len(self.pieces):
                    at += 1
                    yield self.pieces[at - 1]
                if self.usage is not None or self.failed:
                    return
                changed.clear()
                await changed.wait()
        finally:
            self.followers -= not leads


class AnswerCache:
    """Kept answers, and the requests in flight."""

    def __init__(self, params: CacheParams) -> None:
        self.params = params
        self.flights: dict[str, Flight] = {}
        self._kept: TTLCache[str, Kept] = TTLCache(
            maxsize=params.most_mb * 2**20, ttl=params.ttl_s, getsizeof=lambda kept: kept.bytes
        )

    def name(self, ask: Ask, tenant: str, release: str) -> str | None:
        """What equal requests share; None for one that must not be answered from memory."""
        if not self.params.exact or ask.sampling.temperature > 0:
            return None
        return request_name(ask, tenant, release)

    def find(self, name: str) -> Kept | None:
        """The kept answer."""
        return self._kept.get(name)

    def keep(self, name: str, kept: Kept) -> None:
        """Keep an answer, unless it is larger than everything may be."""
        if kept.bytes < self._kept.maxsize:
            self._kept[name] = kept

    def clear(self) -> None:
        """Forget everything: the release has changed."""
        self._kept.clear()


def request_name(ask: Ask, tenant: str, release: str) -> str:
    """A hash over everything that decides the answer."""
    limit = None if ask.constraint is None else (ask.constraint.kind, ask.constraint.value)
    said = (tenant, release, ask.messages, ask.prompt, limit, ask.tools, ask.tool_choice, ask.parallel_tool_calls)
    # The text of these plain values is a fifth of the work of writing them as JSON.
    text = repr((*said, ask.adapter, CHOSEN(ask.sampling)))
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=20).hexdigest()


def kept_answer(pieces: Sequence[list[Delta]], n: int, usage: Usage, ttl_s: float) -> Kept | None:
    """An answer of `n` choices as one delta each; None for what is not kept: calls, thoughts, what broke off."""
    deltas = list(chain.from_iterable(pieces))
    if any([delta.tool_calls or delta.reasoning for delta in deltas]):
        return None
    if {delta.index for delta in deltas} != set(range(n)):
        return None
    found = [_joined(deltas if n == 1 else [each for each in deltas if each.index == index]) for index in range(n)]
    if any(delta.finish is None for delta in found):
        return None
    return Kept(tuple(found), usage, time.monotonic() + ttl_s)


def _joined(deltas: list[Delta]) -> Delta:
    return Delta(
        "".join([delta.text for delta in deltas]),
        deltas[0].index,
        sum([delta.tokens for delta in deltas]),
        next((delta.finish for delta in reversed(deltas) if delta.finish), None),
        [entry for delta in deltas if delta.logprobs for entry in delta.logprobs] or None,
        stop=next((delta.stop for delta in reversed(deltas) if delta.stop), None),
    )


def said(pieces: Sequence[list[Delta]]) -> str:
    """The text of an answer, every choice on lines of its own."""
    texts: dict[int, list[str]] = {}
    for delta in chain.from_iterable(pieces):
        texts.setdefault(delta.index, []).append(delta.text)
    return "\n".join("".join(each) for each in texts.values() if any(each))
