"""Attention over a packed row: every segment sees its ancestors and itself, and nothing else is computed.

Registered with transformers as the attention `segments`, so that any model that takes its attention from there can
read packed rows. A dense mask over the whole row would make packing nearly worthless: eight samples cost eight times
the scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from inhouse.train.row_attention import RowAttention, fits
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


@dataclass(frozen=True)
class How:
    """Scale of the scores, how many tokens back are seen (None: all), and the share of weights dropped."""

    scale: float
    window: int | None
    dropout: float


class Unpackable(RuntimeError):
    """Attention of a kind that is not computed here: the model must read its batches padded."""


UNKNOWN = ("s_aux", "softcap", "head_mask", "position_bias", "attention_bias", "indices")  # they change the scores


def attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **settings: Any
) -> tuple[torch.Tensor, None]:
    """Attention of a packed row: query (1, H, T, D), key and value (1, K, T, D), H a multiple of K -> (1, T, H, D)."""
    scale = settings.get("scaling") or query.shape[-1] ** -0.5
    if not getattr(module, "is_causal", True) or any(settings.get(name) is not None for name in UNKNOWN):
        raise Unpackable(type(module).__name__)
    how = How(scale, settings.get("sliding_window") or None, settings.get("dropout") or 0.0)
    layout = _current[0]
    # Where weights are float32 (method: full), rotary embedding makes queries and keys float32 beside bf16 values.
    query, key = query.to(value.dtype), key.to(value.dtype)
    if not how.dropout and fits(layout, query, key, value):
        with torch.autocast(query.device.type, enabled=False):
            return RowAttention.apply((layout, how.scale, how.window), query, key, value), None
    sizes = [places.group.stop - places.group.start for places in layout.groups]
    # Split, not sliced: the gradient of a slice is as long as the whole row.
    parts = list(zip(*(tensor[0].transpose(0, 1).split(sizes) for tensor in (query, key, value)), strict=True))
    found = []
    for places, part in zip(layout.groups, parts, strict=True):
        before = [_context(places, layout, [one[kind] for one in parts]) for kind in (1, 2)]
        found.append(_group(places, part, before, how))
    return torch.cat(found)[None], None


def _context(places: Places, layout: Layout, parts: list[torch.Tensor]) -> torch.Tensor:
    """Keys or values (P, K, D) that a group's segments follow, out of those of every group."""
    found = []
    for start, stop in places.group.context:
        number, owner = next((n, one.group) for n, one in enumerate(layout.groups) if start < one.group.stop)
        own = parts[number]
        found.append(own if len(own) == stop - start else own[start - owner.start : stop - owner.start])
    return found[0] if len(found) == 1 else torch.cat(found) if found else parts[0][:0]


def _group(places: Places, part: Sequence[torch.Tensor], before: Sequence[torch.Tensor], how: How) -> torch.Tensor:
    """Attention of a group's tokens: query (N, H, D), key and value (N, K, D), and what they follow (P, K, D)."""
    query = part[0]
    if query.is_cuda and not places.group.before and query.dtype != torch.float32 and not how.dropout:
        return _varlen(places, part, how)
    if places.group.together and not how.dropout:
        # Autocast would change types between the products, and the backward pass runs without it.
        with torch.autocast(query.device.type, enabled=False):
            return SegmentAttention.apply((places, how), *part, *before)
    return _one_by_one(places, part, before, how)


def _varlen(places: Places, part: Sequence[torch.Tensor], how: How) -> torch.Tensor:
    """On a GPU: flash attention over segments of differing lengths in one call. Written, and never run on one."""
    from torch.nn.attention.varlen import varlen_attn

    query, key, value = part
    ends = torch.tensor([0, *places.group.lengths], device=query.device).cumsum(0).to(torch.int32)
    width = max(places.group.lengths)
    back = -1 if how.window is None else how.window - 1
    found: torch.Tensor = varlen_attn(
        query, key, value, ends, ends, width, width,
        scale=how.scale, window_size=(back, 0), enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip
    return found


def _one_by_one(places: Places, part: Sequence[torch.Tensor], before: Sequence[torch.Tensor], how: How) -> torch.Tensor:
    """Long segments: torch's own attention for each, which never holds all scores."""
    from torch.nn.functional import scaled_dot_product_attention

    lengths, held = places.group.lengths, places.group.before
    mask = places.mask(how.window, part[0]) if held or how.window else None
    found = []
    for query, key, value in zip(*(tensor.split(lengths) for tensor in part), strict=True):
        keys, values = (
            torch.cat([old, own]).transpose(0, 1)[None] for old, own in zip(before, (key, value), strict=True)
        )
        own = scaled_dot_product_attention(
            query.transpose(0, 1)[None],
            keys,
            values,
            attn_mask=None if mask is None else mask[: len(query), : held + len(query)],
            dropout_p=how.dropout,
            is_causal=mask is None,
            scale=how.scale,
            enable_gqa=True,
        )
        found.append(own[0].transpose(0, 1))
    return torch.cat(found)


class SegmentAttention(torch.autograd.Function):  # type: ignore[misc]
    """softmax(q kᵀ) v of short segments as one padded batch of matrix products.

    For segments of a hundred tokens this is four times as fast on a CPU as torch's flash attention, whose
    backward pass is made for long rows.
    """

    @staticmethod
    def forward(ctx: Any, call: tuple[Places, How], *tensors: Any) -> torch.Tensor:
        """Query (N, H, D), key, value (N, K, D), and the keys and values (P, K, D) that they follow -> (N, H, D)."""
        (places, how), (query, key, value, old_keys, old_values) = call, tensors
        shape = _Shape(places, query, key)
        keys = shape.with_context(key, old_keys)
        values = shape.with_context(value, old_values)
        asked = shape.spread_query(query * how.scale)
        mask = places.mask(how.window, query).repeat(shape.sharing, 1)
        weights = torch.softmax(torch.baddbmm(mask, asked, keys.transpose(1, 2)), -1)
        ctx.save_for_backward(asked, keys, values, weights)
        ctx.shape, ctx.scale = shape, how.scale
        return shape.collect_query(torch.bmm(weights, values))

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
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
        return None, for_query, key, value, old_key, old_value


class _Shape:
    """Between a group's tokens (N, heads, D) and the padded batch (B * K, …, D) that is multiplied."""

    def __init__(self, places: Places, query: torch.Tensor, key: torch.Tensor) -> None:
        lengths = places.group.lengths
        self.rows, self.width, self.before = len(lengths), places.group.width, places.group.before
        self.heads, self.groups = query.shape[1], key.shape[1]
        self.sharing = self.heads // self.groups  # heads that read the same key
        self.own, self.slots = places.own - places.group.start, places.slots
        self.own = self.own.clamp_(min=0)
        self.even = min(lengths) == self.width  # nothing is padding

    def _spread(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if self.even else tensor.index_select(0, self.own)

    def _gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if self.even else tensor.index_select(0, self.slots)

    def spread_query(self, query: torch.Tensor) -> torch.Tensor:
        """(N, H, D) -> (B * K, G * W, D): the heads that share a key are rows of one product."""
        parted = self._spread(query).view(self.rows, self.width, self.groups, self.sharing, -1)
        return parted.permute(0, 2, 3, 1, 4).reshape(self.rows * self.groups, -1, parted.shape[-1])

    def spread_gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        """As `spread_query`, with zeros at padding."""
        if self.even:
            return self.spread_query(gradient)
        padded = gradient.new_zeros((self.rows * self.width, *gradient.shape[1:]))
        padded.index_copy_(0, self.slots, gradient)
        parted = padded.view(self.rows, self.width, self.groups, self.sharing, -1)
        return parted.permute(0, 2, 3, 1, 4).reshape(self.rows * self.groups, -1, parted.shape[-1])

    def collect_query(self, batch: torch.Tensor) -> torch.Tensor:
        """(B * K, G * W, D) -> (N, H, D)."""
        parted = batch.view(self.rows, self.groups, self.sharing, self.width, -1).permute(0, 3, 1, 2, 4)
        return self._gather(parted.reshape(self.rows * self.width, self.heads, -1))

    def with_context(self, own: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """(N, K, D) and (P, K, D) -> (B * K, P + W, D)."""
        parted = self._spread(own).view(self.rows, self.width, self.groups, -1)
        if self.before:
            parted = torch.cat([context.expand(self.rows, -1, -1, -1), parted], dim=1)
        return parted.transpose(1, 2).reshape(self.rows * self.groups, -1, own.shape[-1])

    def collect_key(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B * K, P + W, D) -> (N, K, D), and (P, K, D) summed over the segments."""
        parted = batch.view(self.rows, self.groups, self.before + self.width, -1).transpose(1, 2)
        own = parted[:, self.before :].reshape(self.rows * self.width, self.groups, -1)
        return self._gather(own), parted[:, : self.before].sum(0)
