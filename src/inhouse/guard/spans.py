"""What a detector says: where, of which type, how sure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, get_args

PiiType = Literal[
    "phone",
    "cn_resident_id",
    "bank_card",
    "email",
    "ipv4",
    "ipv6",
    "passport",
    "plate",
    "wechat",
    "qq",
    "name",
    "address",
]
TYPES: tuple[PiiType, ...] = get_args(PiiType)


class Span(NamedTuple):
    """Characters [start, end) of a text hold personal data; score from 0 to 1."""

    start: int
    end: int
    type: PiiType
    score: float


def settle(spans: Iterable[Span]) -> list[Span]:
    """Spans that do not overlap, in order: of those that do, the surest stays, then the longest, then the first."""
    settled: list[Span] = []
    cluster: list[Span] = []
    reach = 0
    for span in sorted(set(spans)):
        if span.start >= reach:
            settled += _settle_cluster(cluster)
            cluster = []
        cluster.append(span)
        reach = max(reach, span.end)
    return settled + _settle_cluster(cluster)


def _settle_cluster(spans: list[Span]) -> list[Span]:
    """Settle spans of which each overlaps its neighbour: few, where a text may hold many."""
    kept: list[Span] = []
    for span in sorted(spans, key=lambda s: (-s.score, s.start - s.end, s.start, s.type)):
        if all(span.end <= other.start or other.end <= span.start for other in kept):
            kept.append(span)
    return sorted(kept)
