"""Attention over a whole packed row in one step of autograd, on a CPU in bf16.

The products are torch's, of padded batches of segments, a few for each group. What stands between them (gathering
tokens, scaling, the mask, softmax, and adding gradients up) are compiled loops over all groups at once that read and
write every number once. Segments that only fill the row up are not attended to: their result is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable

from inhouse.train import team
from inhouse.train.segments import Layout, Places

Heads = tuple[int, int, int]  # of queries, of keys and values; numbers of each


def fits(layout: Layout, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether a row can be read so: bf16 on a CPU, and no segment so long that its scores are not all held at once."""
    alike = query.shape[-1] == key.shape[-1] == value.shape[-1]
    return alike and team.fits(query, key, value) and all(places.group.together for places in layout.groups)


class RowAttention(torch.autograd.Function):  # type: ignore[misc]
    """softmax(q kᵀ) v of every segment: query (1, H, T, D), key and value (1, K, T, D) -> (1, T, H, D)."""

    @staticmethod
    def forward(ctx: Any, call: tuple[Layout, float, int | None], query: Any, key: Any, value: Any) -> torch.Tensor:
        layout, scale, window = call
        tables = _tables(layout, (query.shape[1], key.shape[1], query.shape[3]))
        asked, keys, values = tables.own.spread(query), tables.seen.spread(key), tables.seen.spread(value)
        weights = query.new_empty(tables.scores)
        for group in tables.groups:
            torch.bmm(group.asked(asked), group.seen(keys).transpose(1, 2), out=group.scores(weights))
        tables.softmax(weights, scale, window)
        found = torch.empty_like(asked)
        for group in tables.groups:
            torch.bmm(group.scores(weights), group.seen(values), out=group.asked(found))
        ctx.save_for_backward(asked, keys, values, weights)
        ctx.tables, ctx.scale = tables, scale
        return tables.own.collect(found)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, above: Any) -> Any:
        tables: Tables = ctx.tables
        asked, keys, values, weights = ctx.saved_tensors  # once: activations that are computed again are given once
        above = above.to(asked.dtype).transpose(1, 2)
        given = tables.own.spread(above if above.stride(-1) == 1 else above.contiguous())
        for_seen, for_scores = torch.empty_like(keys), torch.empty_like(weights)
        for group in tables.groups:
            torch.bmm(group.scores(weights).transpose(1, 2), group.asked(given), out=group.seen(for_seen))
            torch.bmm(group.asked(given), group.seen(values).transpose(1, 2), out=group.scores(for_scores))
        for_values = tables.seen.collect(for_seen)
        tables.softmax_back(weights, for_scores, ctx.scale)
        for group in tables.groups:
            torch.bmm(group.scores(for_scores), group.seen(keys), out=group.asked(given))
            torch.bmm(group.scores(for_scores).transpose(1, 2), group.asked(asked), out=group.seen(for_seen))
        found = tables.own.collect(given), tables.seen.collect(for_seen), for_values
        return None, *[one.transpose(1, 2) for one in found]


@dataclass(frozen=True)
class Slots:
    """Padded batches of segments, for some heads: which token is in each slot, and which slots hold each token.

    `tokens` (slots, 3), `starts` (T + 1) and `slots` (N, 2) as `kernels.loops` reads them; `numbers` of all batches.
    """

    heads: int
    size: int
    numbers: int
    tokens: torch.Tensor
    starts: torch.Tensor
    slots: torch.Tensor

    def spread(self, row: torch.Tensor) -> torch.Tensor:
        """(1, heads, T, D) -> the batches behind each other, zeros where a slot is empty."""
        found = row.new_empty(self.numbers)
        numbers = (self.heads, self.size, row.data_ptr(), row.stride(2), row.stride(1), self.tokens.data_ptr())
        team.run("spread", len(self.tokens), *numbers, found.data_ptr())
        return found

    def collect(self, batches: torch.Tensor) -> torch.Tensor:
        """Batches -> (1, T, heads, D): what stands in a token's slots, added up."""
        length = len(self.starts) - 1
        found = batches.new_empty((1, length, self.heads, self.size))
        room = torch.empty(torch.get_num_threads() * self.size)
        numbers = (self.heads, self.size, batches.data_ptr(), self.starts.data_ptr(), self.slots.data_ptr())
        team.run("collect", length, *numbers, found.data_ptr(), room.data_ptr())
        return found


@dataclass(frozen=True)
class Batch:
    """Where a group's batches lie: B segments and K heads of keys, each read by G heads of queries.

    Shape, strides and beginning of queries (B K, G W, D), of keys and values (B K, S, D), of scores (B K, G W, S).
    """

    queries: tuple[tuple[int, ...], tuple[int, ...], int]
    keys: tuple[tuple[int, ...], tuple[int, ...], int]
    products: tuple[tuple[int, ...], tuple[int, ...], int]

    def asked(self, batches: torch.Tensor) -> torch.Tensor:
        """The group's part of queries, of results or of their gradients."""
        return batches.as_strided(*self.queries)

    def seen(self, batches: torch.Tensor) -> torch.Tensor:
        """The group's part of keys, values or their gradients."""
        return batches.as_strided(*self.keys)

    def scores(self, batches: torch.Tensor) -> torch.Tensor:
        """The group's part of scores, weights or their gradients."""
        return batches.as_strided(*self.products)


@dataclass(frozen=True)
class Tables:
    """A row's groups as the loops read them, made once for all layers with so many heads."""

    groups: tuple[Batch, ...]
    own: Slots
    seen: Slots
    scores: int  # numbers of all scores
    rows: int  # of all scores
    widest: int
    softmaxes: torch.Tensor

    def softmax(self, scores: torch.Tensor, scale: float, window: int | None) -> None:
        """Of scaled scores under the causal mask, in place."""
        room = torch.empty(torch.get_num_threads() * self.widest)
        numbers = (len(self.groups), self.softmaxes.data_ptr(), scores.data_ptr(), window or self.widest)
        team.run("softmax", self.rows, *numbers, team.bits(scale), room.data_ptr(), self.widest)

    def softmax_back(self, weights: torch.Tensor, above: torch.Tensor, scale: float) -> None:
        """The gradient of the scores, in place of that of the weights."""
        numbers = (len(self.groups), self.softmaxes.data_ptr(), weights.data_ptr(), team.bits(scale), above.data_ptr())
        team.run("softmax_back", self.rows, *numbers)


def _tables(layout: Layout, heads: Heads) -> Tables:
    """A row's tables for so many heads; kept with the row."""
    if heads not in layout.tables:
        layout.tables[heads] = _made(layout, heads)
    found: Tables = layout.tables[heads]
    return found


def _made(layout: Layout, heads: Heads) -> Tables:
    asking, held, size = heads
    groups, softmaxes, parts = [], [], []
    queries = keys = scores = rows = 0
    for places in (one for one in layout.groups if not one.group.filling):
        segments, slots = places.seen.shape
        before = slots - places.group.width
        batch, wide = segments * held, asking // held * places.group.width
        shapes = (batch, wide, size), (batch, slots, size), (batch, wide, slots)
        starts = (queries, keys, scores)
        groups.append(Batch(*[(s, (s[1] * s[2], s[2], 1), at) for s, at in zip(shapes, starts, strict=True)]))
        softmaxes.append((batch * wide, places.group.width, before, before - places.group.before, scores))
        parts.append((places, before, queries, keys))
        queries, keys, scores = (at + s[0] * s[1] * s[2] for at, s in zip(starts, shapes, strict=True))
        rows += batch * wide
    own = np.concatenate([_slots(places, before, at, (asking, size)) for places, before, at, _ in parts])
    seen = np.concatenate([_slots(places, 0, at, (held, size)) for places, _, _, at in parts])
    widest = max(places.seen.shape[1] for places, *_ in parts)
    return Tables(
        tuple(groups),
        Slots(asking, size, queries, *_both_ways(own, layout.length)),
        Slots(held, size, keys, *_both_ways(seen, layout.length)),
        scores, rows, widest, torch.tensor(softmaxes),
    )  # fmt: skip


def _slots(places: Places, first: int, start: int, heads: tuple[int, int]) -> np.ndarray:
    """Of each slot from `first` on: its token, where its first head begins, and the stride of heads (slots, 3)."""
    tokens = places.seen[:, first:].numpy()
    segments, slots = tokens.shape
    count, size = heads
    segment, slot = np.indices(tokens.shape).reshape(2, -1)
    begin = start + (segment * count * slots + slot) * size
    return np.stack([tokens.ravel(), begin, np.full(segments * slots, slots * size)], 1)


def _both_ways(slots: np.ndarray, length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The slots, and those of each token: where they begin, and their places and strides."""
    held = slots[slots[:, 0] >= 0]
    held = held[np.argsort(held[:, 0], kind="stable")]
    starts = np.searchsorted(held[:, 0], np.arange(length + 1))
    return torch.from_numpy(slots), torch.from_numpy(starts), torch.from_numpy(np.ascontiguousarray(held[:, 1:]))
