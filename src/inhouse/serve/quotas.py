"""How much a key may ask: requests a minute, tokens a minute and a day, counted by the `limits` library."""

from __future__ import annotations

from dataclasses import dataclass

from limits import RateLimitItem, RateLimitItemPerDay, RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter, SlidingWindowCounterRateLimiter

from inhouse.core.messages import text
from inhouse.release.keys import Key
from inhouse.serve.errors import ApiError


@dataclass(frozen=True)
class Bound:
    """One limit of a key."""

    item: RateLimitItem
    name: str
    tokens: bool


class Quotas:
    """What every key has used. A key without limits costs nothing."""

    def __init__(self) -> None:
        storage = MemoryStorage()
        self._requests = MovingWindowRateLimiter(storage)
        self._tokens = SlidingWindowCounterRateLimiter(storage)

    async def enter(self, key: Key) -> None:
        """Count a request. Raises ApiError 429 with the time to wait when a limit is reached."""
        for bound in _bounds(key):
            if bound.tokens:
                free = await self._tokens.test(bound.item, str(key.id))
            else:
                free = await self._requests.hit(bound.item, str(key.id))
            if not free:
                raise await self._refusal(bound, key)

    async def spend(self, key: Key, tokens: int) -> None:
        """Count the tokens of a finished request; the one that goes over a limit is still answered."""
        for bound in _bounds(key):
            if bound.tokens and tokens:
                stats = await self._tokens.get_window_stats(bound.item, str(key.id))
                await self._tokens.hit(bound.item, str(key.id), cost=min(tokens, stats.remaining))

    async def _refusal(self, bound: Bound, key: Key) -> ApiError:
        import time

        limiter = self._tokens if bound.tokens else self._requests
        stats = await limiter.get_window_stats(bound.item, str(key.id))
        wait = max(1, round(stats.reset_time - time.time()))
        said = text("serve.quota", limit=bound.name, most=bound.item.amount, seconds=wait)
        return ApiError(429, "rate_limit_exceeded", said, retry_after_s=wait)


def _bounds(key: Key) -> list[Bound]:
    limits = key.limits
    found = []
    if limits.requests_per_minute is not None:
        found.append(Bound(RateLimitItemPerMinute(limits.requests_per_minute), "requests_per_minute", False))
    if limits.tokens_per_minute is not None:
        found.append(Bound(RateLimitItemPerMinute(limits.tokens_per_minute, 1, "T"), "tokens_per_minute", True))
    if limits.tokens_per_day is not None:
        found.append(Bound(RateLimitItemPerDay(limits.tokens_per_day, 1, "T"), "tokens_per_day", True))
    return found
