"""What a detector says: where, of which type, how sure."""

from __future__ import annotations

from bisect import bisect
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
    kept: list[Span] = []
    for span in sorted(set(spans), key=lambda s: (-s.score, s.start - s.end, s.start, s.type)):
        at = bisect(kept, span)
        clear = (at == 0 or kept[at - 1].end <= span.start) and (at == len(kept) or span.end <= kept[at].start)
        if clear:
            kept.insert(at, span)
    return kept
