"""What arms did: counters that gateways add to, and what people said of answers."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from inhouse.database import reading, writing
from inhouse.release.arms import Arm, Role
from inhouse.release.audit import now
from inhouse.release.stored import clean

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, Row

# Seconds, each 1.2 times the one before: 5 ms to 8 minutes. A quantile read between two of them is off by a fifth at
# most; that is finer than the differences that a canary is taken back for.
STEP = 1.2
BOUNDS: tuple[float, ...] = tuple(0.005 * STEP**step for step in range(64))
MOST_COMMENT = 2000


def no_latencies() -> list[int]:
    """Empty counts of a histogram: one for each bound, one for what lies above."""
    return [0] * (len(BOUNDS) + 1)


@dataclass
class Counters:
    """What happened in one arm: add to it with `count`, in one thread."""

    requests: int = 0
    errors: int = 0  # answers that were our fault: 5xx, a broken stream
    alarms: int = 0  # of guards
    latency_s: float = 0.0
    histogram: list[int] = field(default_factory=no_latencies)
    prompt_tokens: int = 0
    answer_tokens: int = 0
    looked_at: int | None = 0  # answers that a guard looked at; None: counted before this was stored

    def count(self, seconds: float, failed: bool = False, alarm: bool | None = None) -> None:
        """One request that took so long; `alarm` is None where no guard looked. Add its tokens yourself."""
        self.requests += 1
        self.errors += failed
        self.alarms += bool(alarm)
        self.looked_at = added(self.looked_at, int(alarm is not None))
        self.latency_s += seconds
        self.histogram[bisect_left(BOUNDS, seconds)] += 1

    def add(self, other: Counters) -> None:
        """Count what another counted too."""
        self.requests += other.requests
        self.errors += other.errors
        self.alarms += other.alarms
        self.latency_s += other.latency_s
        self.histogram = [ours + theirs for ours, theirs in zip(self.histogram, other.histogram, strict=True)]
        self.prompt_tokens += other.prompt_tokens
        self.answer_tokens += other.answer_tokens
        self.looked_at = added(self.looked_at, other.looked_at)

    def quantile(self, share: float) -> float | None:
        """Latency that this share of the requests stayed below, in seconds; None without requests."""
        return quantile(self.histogram, share)


def added(one: int | None, other: int | None) -> int | None:
    """The sum of two counts; unknown where one of them is."""
    return None if one is None or other is None else one + other


def quantile(histogram: Sequence[int], share: float) -> float | None:
    """A quantile of a histogram over BOUNDS, between two bounds by their logarithms."""
    total = sum(histogram)
    if total == 0:
        return None
    left = share * total
    for place, count in enumerate(histogram):
        if count and left <= count:
            if place == len(BOUNDS):
                return BOUNDS[-1]
            return BOUNDS[place] / STEP * float(STEP ** (left / count))
        left -= count
    return BOUNDS[-1]


@dataclass(frozen=True)
class Scores:
    """How an arm's answers were judged, each from -1 to 1."""

    count: int = 0
    total: float = 0.0

    @property
    def mean(self) -> float | None:
        """None when nobody said anything."""
        return self.total / self.count if self.count else None


@dataclass(frozen=True)
class Feedback:
    """What a person said of one answer: -1 bad to 1 good."""

    request_id: str
    deployment: str
    release: int
    role: Role
    key: int
    score: float
    comment: str | None = None


def add_results(engine: Engine, deployment: str, found: Iterable[tuple[Arm, Counters]]) -> None:
    """Add what was counted since the last call; of several gateways, each adds its own."""
    with writing(engine) as connection:
        for arm, counters in found:
            _add(connection, deployment, arm, counters)


def read_results(engine: Engine, deployment: str, arms: Iterable[Arm]) -> list[Counters]:
    """What was counted for each arm since it was added, in the order asked for."""
    with reading(engine) as connection:
        return [_counters(_result(connection, deployment, arm)) for arm in arms]


def add_feedback(engine: Engine, said: Feedback) -> None:
    """Keep feedback; a second one of the same key on the same request replaces the first."""
    from sqlalchemy import insert, update

    from inhouse.release.tables import feedback

    comment = None if said.comment is None else clean(said.comment, MOST_COMMENT)
    request = clean(said.request_id, 64)
    values = {**vars(said), "request_id": request, "comment": comment, "at": now()}
    values["score"] = max(-1.0, min(1.0, said.score))
    mine = (feedback.c.key == said.key) & (feedback.c.request_id == request)
    with writing(engine) as connection:
        if connection.execute(update(feedback).where(mine).values(values)).rowcount == 0:
            connection.execute(insert(feedback).values(values))


def read_scores(engine: Engine, deployment: str, arms: Iterable[Arm]) -> list[Scores]:
    """How each arm was judged since it was added, in the order asked for."""
    from sqlalchemy import func, select

    from inhouse.release.tables import feedback as table

    found = []
    with reading(engine) as connection:
        for arm in arms:
            mine = (table.c.deployment == deployment) & (table.c.release == arm.release.id) & (table.c.role == arm.role)
            query = select(func.count(), func.coalesce(func.sum(table.c.score), 0.0)).where(
                mine, table.c.at >= arm.since
            )
            count, total = connection.execute(query).one()
            found.append(Scores(count, float(total)))
    return found


def _result(connection: Connection, deployment: str, arm: Arm) -> Row[Any] | None:
    from sqlalchemy import select

    return connection.execute(select(_table()).where(_is(deployment, arm))).first()


def _counters(row: Row[Any] | None) -> Counters:
    if row is None:
        return Counters()
    return Counters(
        row.requests, row.errors, row.alarms, row.latency_s, json.loads(row.histogram), row.prompt_tokens,
        row.answer_tokens, row.looked_at,
    )  # fmt: skip


def _add(connection: Connection, deployment: str, arm: Arm, more: Counters) -> None:
    from sqlalchemy import insert, update

    row = _result(connection, deployment, arm)
    old = _counters(row)
    histogram = [a + b for a, b in zip(old.histogram, more.histogram, strict=True)]
    names = ("requests", "errors", "alarms", "latency_s", "prompt_tokens", "answer_tokens")
    values = {name: getattr(old, name) + getattr(more, name) for name in names}
    values |= {"histogram": json.dumps(histogram), "looked_at": added(old.looked_at, more.looked_at)}
    if row is not None:
        connection.execute(update(_table()).where(_is(deployment, arm)).values(values))
        return
    arm_of = {"deployment": deployment, "release": arm.release.id, "role": arm.role, "since": arm.since}
    connection.execute(insert(_table()).values({**arm_of, **values}))


def _is(deployment: str, arm: Arm) -> Any:
    columns = _table().c
    mine = (columns.deployment == deployment) & (columns.release == arm.release.id)
    return mine & (columns.role == arm.role) & (columns.since == arm.since)


def _table() -> Any:
    from inhouse.release.tables import arm_results

    return arm_results
