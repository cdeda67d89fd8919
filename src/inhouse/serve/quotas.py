"""How much a key may ask: requests and tokens a minute, counted by the `limits` library, and tokens a day.

What a key used on a day is kept in the registry, so that a restart gives nobody a second day's tokens.
"""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import TYPE_CHECKING

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter, SlidingWindowCounterRateLimiter

from inhouse.core.messages import text
from inhouse.release.keys import Key, Used, add_usage, usage_on
from inhouse.serve.errors import ApiError

if TYPE_CHECKING:
    from sqlalchemy import Engine

JUMP_S = 5.0  # more than a clock is corrected by while it runs


class DailyUse:
    """Requests and tokens of each key today (UTC): what the registry knew, and what came since."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._unsaved: dict[str, dict[int, tuple[int, int]]] = {}
        self._day = _day()
        self._known = usage_on(engine, self._day)

    def tokens(self, key: Key) -> int:
        """Tokens of a key today."""
        with self._lock:
            self._turn_over()
            known = self._known.get(key.id)
            return (known.tokens if known else 0) + self._unsaved.get(self._day, {}).get(key.id, (0, 0))[1]

    def spend(self, key: Key, tokens: int) -> None:
        """Count a request and its tokens."""
        with self._lock:
            self._turn_over()
            today = self._unsaved.setdefault(self._day, {})
            requests, before = today.get(key.id, (0, 0))
            today[key.id] = (requests + 1, before + tokens)

    def save(self) -> None:
        """Add to the registry what came since the last time, and learn what other gateways have added."""
        with self._lock:
            unsaved = {day: list(used.items()) for day, used in self._unsaved.items()}
        for day, found in unsaved.items():
            add_usage(self._engine, day, [Used(key, requests, tokens) for key, (requests, tokens) in found])
        known = usage_on(self._engine, self._day) if unsaved else None
        with self._lock:
            for day, found in unsaved.items():
                self._saved(self._unsaved[day], dict(found))
            self._unsaved = {day: used for day, used in self._unsaved.items() if used}
            self._known = self._known if known is None else known

    @staticmethod
    def _saved(used: dict[int, tuple[int, int]], saved: dict[int, tuple[int, int]]) -> None:
        for key, (requests, tokens) in saved.items():
            left = (used[key][0] - requests, used[key][1] - tokens)
            if left == (0, 0):
                del used[key]
            else:
                used[key] = left

    def _turn_over(self) -> None:
        if (today := _day()) != self._day:
            self._day, self._known = today, {}


class Quotas:
    """What every key has used. A key without limits costs nothing."""

    def __init__(self, engine: Engine) -> None:
        self._storage = MemoryStorage()
        self._requests = MovingWindowRateLimiter(self._storage)
        self._tokens = SlidingWindowCounterRateLimiter(self._storage)
        self._set_at = _clock_set_at()
        self.daily = DailyUse(engine)

    async def enter(self, key: Key) -> None:
        """Count a request of this minute. Raises ApiError 429 with the time to wait when a limit is reached."""
        await self._check_tokens(key)
        most = key.limits.requests_per_minute
        if most is not None:  # last: what the others refuse is not counted here
            item = RateLimitItemPerMinute(most)
            if not await self._requests.hit(item, str(key.id)):
                raise await self._too_often(item, key)

    async def check(self, key: Key) -> None:
        """Raises as `enter`, and counts nothing."""
        await self._check_tokens(key)
        most = key.limits.requests_per_minute
        if most is not None and not await self._requests.test(item := RateLimitItemPerMinute(most), str(key.id)):
            raise await self._too_often(item, key)

    async def _too_often(self, item: RateLimitItem, key: Key) -> ApiError:
        reset = (await self._requests.get_window_stats(item, str(key.id))).reset_time
        return _refusal("requests_per_minute", item.amount, reset - time.time())

    async def _check_tokens(self, key: Key) -> None:
        limits = key.limits
        await self._follow_clock()
        if limits.tokens_per_minute is not None:
            tokens = _tokens_item(limits.tokens_per_minute)
            if not await self._tokens.test(tokens, str(key.id)):
                reset = (await self._tokens.get_window_stats(tokens, str(key.id))).reset_time
                raise _refusal("tokens_per_minute", limits.tokens_per_minute, reset - time.time())
        if limits.tokens_per_day is not None and self.daily.tokens(key) >= limits.tokens_per_day:
            raise _refusal("tokens_per_day", limits.tokens_per_day, _until_midnight_s())

    async def _follow_clock(self) -> None:
        # `limits` counts by the clock on the wall: set back by an hour, it would refuse a key for that hour.
        if abs((set_at := _clock_set_at()) - self._set_at) > JUMP_S:
            self._set_at = set_at
            await self._storage.reset()

    async def spend(self, key: Key, tokens: int) -> None:
        """Count a request that was not refused, and its tokens; the one that goes over a limit is still answered."""
        self.daily.spend(key, tokens)
        most = key.limits.tokens_per_minute
        if most is not None and tokens:
            item = _tokens_item(most)
            stats = await self._tokens.get_window_stats(item, str(key.id))
            await self._tokens.hit(item, str(key.id), cost=min(tokens, stats.remaining))


def _clock_set_at() -> float:
    """What the clock on the wall showed when the monotonic one began; it changes when somebody sets the clock."""
    return time.time() - time.monotonic()


def _tokens_item(most: int) -> RateLimitItem:
    return RateLimitItemPerMinute(most, 1, "TOKENS")


def _refusal(limit: str, most: int, wait_s: float) -> ApiError:
    wait = max(1, ceil(wait_s))  # who waits so long is not refused again
    said = text("serve.quota", limit=limit, most=most, seconds=wait)
    return ApiError(429, "rate_limit_exceeded", said, retry_after_s=wait)


def _day() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d")


def _until_midnight_s() -> float:
    now = datetime.now(UTC)
    return (datetime(now.year, now.month, now.day, tzinfo=UTC) + timedelta(days=1) - now).total_seconds()
