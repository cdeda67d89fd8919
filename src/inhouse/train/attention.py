"""Attention over a packed row: every segment sees its ancestors and itself, and nothing else is computed.

Registered with transformers as the attention `segments`, so that any model that takes its attention from there can
read packed rows. A dense mask over the whole row would make packing nearly worthless: eight samples cost eight times
the scores.
"""

from __future__ import annotations

from typing import Any

import torch

from inhouse.train.segments import Layout, Places

NAME = "segments"
_current: list[Layout] = []  # of the step being computed: kept until the next, for activations computed again


def use_layout(layout: Layout) -> None:
    """Say which packed row the model reads next."""
    _current[:] = [layout]


def register() -> None:
    """Make the attention known to transformers; it needs no mask, as the layout says who sees whom."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, _no_mask)


def _no_mask(*_: Any, **__: Any) -> None:
    return None


def attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **settings: Any
) -> tuple[torch.Tensor, None]:
    """Attention of a packed row: query (1, H, T, D), key and value (1, K, T, D), H a multiple of K -> (1, T, H, D)."""
    scale = settings.get("scaling") or query.shape[-1] ** -0.5
    window = settings.get("sliding_window") or None
    layout = _current[0]
    rows = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]
    parts = [_group(places, rows, scale, window) for places in layout.groups]
    found = parts[0] if len(parts) == 1 else torch.cat(parts)
    return found[None], None


def _group(places: Places, rows: list[torch.Tensor], scale: float, window: int | None) -> torch.Tensor:
    if places.group.together:
        query, key, value = rows
        context = [_context(places, tensor) for tensor in (key, value)]
        start, stop = places.group.start, places.group.stop
        return SegmentAttention.apply(
            query[start:stop], key[start:stop], value[start:stop], context[0], context[1], places, scale, window
        )
    return _one_by_one(places, rows, scale, window)


def _context(places: Places, tensor: torch.Tensor) -> torch.Tensor:
    """Keys or values (P, K, D) that a group's segments follow."""
    parts = [tensor[start:stop] for start, stop in places.group.context]
    return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else tensor[:0]


def _one_by_one(places: Places, rows: list[torch.Tensor], scale: float, window: int | None) -> torch.Tensor:
    """Long segments: torch's own attention for each, which never holds all scores."""
    from torch.nn.functional import scaled_dot_product_attention

    query, key, value = rows
    before = [_context(places, tensor) for tensor in (key, value)]
    mask = places.mask(window, query) if places.group.before or window else None
    found, at = [], places.group.start
    for length in places.group.lengths:
        own = slice(at, at + length)
        keys, values = (torch.cat([p, t[own]]).transpose(0, 1)[None] for p, t in zip(before, (key, value), strict=True))
        found.append(
            scaled_dot_product_attention(
                query[own].transpose(0, 1)[None],
                keys,
                values,
                attn_mask=None if mask is None else mask[:length, : places.group.before + length],
                is_causal=mask is None,
                scale=scale,
                enable_gqa=True,
            )[0].transpose(0, 1)
        )
        at += length
    return torch.cat(found)


class SegmentAttention(torch.autograd.Function):  # type: ignore[misc]
    """softmax(q kᵀ) v of short segments as one padded batch of matrix products.

    For segments of a hundred tokens this is four times as fast on a CPU as torch's flash attention, whose
    backward pass is made for long rows.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Any, key: Any, value: Any, old_keys: Any, old_values: Any, places: Places, scale: float,
        window: int | None,
    ) -> torch.Tensor:  # fmt: skip
        shape = _Shape(places, query, key)
        keys = shape.with_context(key, old_keys)
        values = shape.with_context(value, old_values)
        asked = shape.spread_query(query * scale)
        mask = places.mask(window, query)
        scores = torch.bmm(asked, keys.transpose(1, 2))
        scores.view(-1, *mask.shape).add_(mask)
        weights = torch.softmax(scores, -1)
        ctx.save_for_backward(asked, keys, values, weights)
        ctx.shape, ctx.scale = shape, scale
        return shape.collect_query(torch.bmm(weights, values))

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        asked, keys, values, weights = ctx.saved_tensors
        shape: _Shape = ctx.shape
        given = shape.spread_gradient(gradient)
        for_values = torch.bmm(weights.transpose(1, 2), given)
        for_scores = torch._softmax_backward_data(torch.bmm(given, values.transpose(1, 2)), weights, -1, weights.dtype)
        for_query = shape.collect_query(torch.bmm(for_scores, keys)).mul_(ctx.scale)
        for_keys = torch.bmm(for_scores.transpose(1, 2), asked)
        key, old_key = shape.collect_key(for_keys)
        value, old_value = shape.collect_key(for_values)
        return for_query, key, value, old_key, old_value, None, None, None


class _Shape:
    """Between a group's tokens (N, heads, D) and the padded batch (B * K, …, D) that is multiplied."""

    def __init__(self, places: Places, query: torch.Tensor, key: torch.Tensor) -> None:
        lengths = places.group.lengths
        self.rows, self.width, self.before = len(lengths), max(lengths), places.group.before
        self.heads, self.size = query.shape[1:]
        self.groups = key.shape[1]
        self.own, self.slots = places.own - places.group.start, places.slots
        self.own = self.own.clamp_(min=0)
        self.even = min(lengths) == self.width  # nothing is padding

    def _spread(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if self.even else tensor.index_select(0, self.own)

    def _gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if self.even else tensor.index_select(0, self.slots)

    def spread_query(self, query: torch.Tensor) -> torch.Tensor:
        """(N, H, D) -> (B * K, G * W, D): the heads that share a key are rows of one product."""
        parted = self._spread(query).view(self.rows, self.width, self.groups, -1, self.size)
        return parted.permute(0, 2, 3, 1, 4).reshape(self.rows * self.groups, -1, self.size)

    def spread_gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        """As `spread_query`, with zeros at padding."""
        if self.even:
            return self.spread_query(gradient)
        padded = gradient.new_zeros((self.rows * self.width, self.heads, self.size))
        padded.index_copy_(0, self.slots, gradient)
        parted = padded.view(self.rows, self.width, self.groups, -1, self.size)
        return parted.permute(0, 2, 3, 1, 4).reshape(self.rows * self.groups, -1, self.size)

    def collect_query(self, batch: torch.Tensor) -> torch.Tensor:
        """(B * K, G * W, D) -> (N, H, D)."""
        parted = batch.view(self.rows, self.groups, -1, self.width, self.size).permute(0, 3, 1, 2, 4)
        return self._gather(parted.reshape(self.rows * self.width, self.heads, self.size))

    def with_context(self, own: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """(N, K, D) and (P, K, D) -> (B * K, P + W, D)."""
        parted = self._spread(own).view(self.rows, self.width, self.groups, self.size)
        if self.before:
            parted = torch.cat([context.expand(self.rows, -1, -1, -1), parted], dim=1)
        return parted.transpose(1, 2).reshape(self.rows * self.groups, -1, self.size)

    def collect_key(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B * K, P + W, D) -> (N, K, D), and (P, K, D) summed over the segments."""
        parted = batch.view(self.rows, self.groups, self.before + self.width, self.size).transpose(1, 2)
        own = parted[:, self.before :].reshape(self.rows * self.width, self.groups, self.size)
        return self._gather(own), parted[:, : self.before].sum(0)
