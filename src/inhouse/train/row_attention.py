"""Attention over a whole packed row in one step of autograd, on a CPU in bf16.

The products are torch's, of padded batches of segments; what stands between them (gathering tokens, scaling, the mask,
softmax, and adding gradients up) are compiled loops that read and write every number once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from inhouse.train import team
from inhouse.train.segments import Layout, Places


def fits(layout: Layout, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether a row can be read so: bf16 on a CPU, and no segment so long that its scores are not all held at once."""
    alike = query.shape[-1] == key.shape[-1] == value.shape[-1]
    return alike and team.fits(query, key, value) and all(places.group.together for places in layout.groups)


class RowAttention(torch.autograd.Function):  # type: ignore[misc]
    """softmax(q kᵀ) v of every segment: query (1, H, T, D), key and value (1, K, T, D) -> (1, T, H, D)."""

    @staticmethod
    def forward(ctx: Any, call: tuple[Layout, float, int | None], query: Any, key: Any, value: Any) -> torch.Tensor:
        layout, scale, window = call
        out = query.new_empty((1, query.shape[2], query.shape[1], query.shape[3]))
        held = []
        for places in layout.groups:
            shape = (len(places.group.lengths) * key.shape[1], -1, query.shape[3])
            asked = _spread(query, places, _before(places)).view(shape)
            keys, values = (_spread(one, places, 0).view(shape) for one in (key, value))
            weights = torch.bmm(asked, keys.transpose(1, 2))
            _softmax("softmax", places, (scale, window), weights)
            _put_back(torch.bmm(weights, values), places, out)
            held += [asked, keys, values, weights]
        ctx.save_for_backward(*held)
        ctx.call, ctx.shapes = call, (query.shape, key.shape)
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, above: Any) -> Any:
        layout, scale, window = ctx.call
        kept = ctx.saved_tensors  # once: activations that are computed again are given once
        above = above.to(kept[0].dtype).transpose(1, 2)
        above = above if above.stride(-1) == 1 else above.contiguous()
        asked_of, held_of = ctx.shapes
        for_query = above.new_empty((1, asked_of[2], asked_of[1], asked_of[3]))
        for_keys, for_values = (above.new_zeros((1, held_of[2], held_of[1], held_of[3])) for _ in range(2))
        saved = [kept[at : at + 4] for at in range(0, len(kept), 4)]
        for places, (asked, keys, values, weights) in zip(layout.groups, saved, strict=True):
            given = _spread(above, places, _before(places)).view(asked.shape)
            _collect(torch.bmm(weights.transpose(1, 2), given), places, for_values)
            scores = torch.bmm(given, values.transpose(1, 2))
            _softmax("softmax_back", places, (scale, window), weights, scores)
            _put_back(torch.bmm(scores, keys), places, for_query)
            _collect(torch.bmm(scores.transpose(1, 2), asked), places, for_keys)
        return None, *[one.transpose(1, 2) for one in (for_query, for_keys, for_values)]


def _before(places: Places) -> int:
    """The first slot of a segment's own tokens."""
    slots: int = places.seen.shape[1]
    return slots - places.group.width


def _seen(places: Places, first: int) -> tuple[int, int]:
    """Where the places of the slots from `first` on lie, and the stride from segment to segment."""
    return places.seen.data_ptr() + first * places.seen.element_size(), places.seen.stride(0)


def _spread(heads: torch.Tensor, places: Places, first: int) -> torch.Tensor:
    """(1, H, T, D) -> (B, H, slots, D): what segments see from slot `first` on, zeros where there is nothing."""
    samples, slots = len(places.seen), places.seen.shape[1] - first
    found = heads.new_empty((samples, heads.shape[1], slots, heads.shape[3]))
    team.run("spread", samples * slots, slots, heads.shape[1], heads.shape[3], heads.data_ptr(), heads.stride(2),
             heads.stride(1), *_seen(places, first), found.data_ptr())  # fmt: skip
    return found


def _collect(batch: torch.Tensor, places: Places, row: torch.Tensor) -> None:
    """Add keys' or values' gradients, of all slots, to those of the row (1, T, K, D)."""
    samples, slots = places.seen.shape
    team.run("collect", slots, samples, slots, _before(places), row.shape[2], row.shape[3], batch.data_ptr(),
             *_seen(places, 0), row.data_ptr())  # fmt: skip


def _put_back(batch: torch.Tensor, places: Places, row: torch.Tensor) -> None:
    """Write a group's own tokens into the row (1, T, H, D); every token belongs to one group."""
    width, first = places.group.width, _before(places)
    team.run("put_back", width, len(places.seen), width, row.shape[2], row.shape[3], batch.data_ptr(),
             *_seen(places, first), row.data_ptr())  # fmt: skip


def _softmax(loop: str, places: Places, how: tuple[float, int | None], *scores: torch.Tensor) -> None:
    """Of scaled scores (B * K, G * W, R + W) under the causal mask, or its gradient, in place."""
    scale, window = how
    size, width, before = places.seen.shape[1], places.group.width, _before(places)
    if loop == "softmax":
        scores = (*scores, torch.empty(torch.get_num_threads() * size))
    first, last = [tensor.data_ptr() for tensor in scores]
    rows, hidden = scores[0].shape[0] * scores[0].shape[1], before - places.group.before
    team.run(loop, rows, width, before, hidden, window or size, first, team.bits(scale), last)
