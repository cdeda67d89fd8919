from __future__ import annotations

import pytest
import torch

from inhouse.train import attention, team
from inhouse.train.segments import Packed, layout, pack
from inhouse.train.spans import Sample

HEADS, KEYS, SIZE = 6, 2, 16


class Layer:
    is_causal = True


def _samples() -> list[Sample]:
    """Lengths apart, one beginning that all share, and a longer one that two share."""
    lengths = (5, 23, 31, 60, 90)
    made = [[*range(1, 20), *range(100 * n, 100 * n + length)] for n, length in enumerate(lengths, 1)]
    made.append([*made[3][:50], *range(900, 918)])
    return [Sample(tuple(ids), tuple(place > 48 for place in range(len(ids)))) for ids in made]


def _tensors(length: int, dtype: torch.dtype) -> list[torch.Tensor]:
    torch.manual_seed(4)
    drawn = [torch.randn(1, length, heads, SIZE).bfloat16() for heads in (HEADS, KEYS, KEYS, HEADS)]
    return [one.to(dtype).transpose(1, 2) for one in drawn]


def _seen(packed: Packed) -> torch.Tensor:
    """Who sees whom (T, T), place by place from the groups themselves."""
    found = torch.zeros(len(packed.ids), len(packed.ids), dtype=torch.bool)
    for group in packed.groups:
        start = group.start
        for length in group.lengths:
            for place in range(start, start + length):
                for first, stop in group.context:
                    found[place, first:stop] = True
                found[place, start : place + 1] = True
            start += length
    return found


def _exact(packed: Packed, window: int | None) -> list[torch.Tensor]:
    """Dense attention in float64, and its gradients."""
    query, key, value, above = _tensors(len(packed.ids), torch.float64)
    given = [one.requires_grad_() for one in (query, key, value)]
    seen = _seen(packed)
    if window:
        places = torch.tensor(packed.positions)
        seen &= places[:, None] - places[None, :] < window
    keys, values = (one.repeat_interleave(HEADS // KEYS, 1) for one in given[1:])
    scores = (query @ keys.transpose(2, 3) * 0.3).masked_fill(~seen, -torch.inf)
    out = (scores.softmax(-1) @ values).transpose(1, 2)
    return [out.detach(), *torch.autograd.grad(out, given, above.transpose(1, 2))]


def _found(packed: Packed, window: int | None) -> list[torch.Tensor]:
    *given, above = _tensors(len(packed.ids), torch.bfloat16)
    given = [one.requires_grad_() for one in given]
    attention.use_layout(layout(packed, torch.device("cpu")))
    out, _ = attention.attend(Layer, *given, None, scaling=0.3, sliding_window=window)
    return [out.detach(), *torch.autograd.grad(out, given, above.transpose(1, 2))]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("window", [None, 7, 40])
@pytest.mark.parametrize("share", [True, False])
def test_row_in_bf16_is_as_near_to_exact_attention_as_products_of_torch(
    share: bool, window: int | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, before = pack(_samples(), share), torch.get_num_threads()
    assert len(packed.groups) > (3 if share else 1)
    torch.set_num_threads(threads)
    try:
        found = _found(packed, window)
        monkeypatch.setattr(team, "able", lambda: False)
        usual = _found(packed, window)
    finally:
        torch.set_num_threads(before)
    filling = packed.groups[-1]
    assert filling.filling and filling.stop == len(packed.ids) and not any(one.filling for one in packed.groups[:-1])
    for exact, plain, own in zip(_exact(packed, window), usual, found, strict=True):
        exact, plain, own = (
            one if one.shape[1] == len(packed.ids) else one.transpose(1, 2) for one in (exact, plain, own)
        )
        assert not own[:, filling.start :].any()  # nobody reads it
        exact, plain, own = (one[:, : filling.start] for one in (exact, plain, own))
        scale = exact.abs().mean()
        assert (own - exact).abs().mean() <= 1.05 * (plain - exact).abs().mean()
        assert (own - exact).abs().mean() < 0.005 * scale


def test_row_read_twice_with_two_threads_gives_the_same_bits() -> None:
    packed, before = pack(_samples()), torch.get_num_threads()
    found = []
    try:
        torch.set_num_threads(2)
        for _ in range(2):
            found.append(_found(packed, None))
    finally:
        torch.set_num_threads(before)
    for first, second in zip(*found, strict=True):
        assert torch.equal(first, second)


def test_score_that_is_no_number_stays_none() -> None:
    packed = pack(_samples())
    query, key, value, _ = _tensors(len(packed.ids), torch.bfloat16)
    query[0, 1, 8, 3] = torch.nan
    attention.use_layout(layout(packed, torch.device("cpu")))
    out, _ = attention.attend(Layer, query, key, value, None, scaling=0.3)
    assert out[0, 8, 1].isnan().all()
    assert not out[0, 8, 0].isnan().any()
    assert not out[0, 9:].isnan().any()
