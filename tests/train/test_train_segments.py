from __future__ import annotations

from itertools import combinations, pairwise

import pytest
import torch

from inhouse.train.segments import APART, WIDE, Group, by_length, layout, pack
from inhouse.train.spans import Sample


def _cost(lengths: tuple[int, ...], before: int) -> int:
    width = -(-max(lengths) // WIDE) * WIDE
    return APART + len(lengths) * width * (width + before)


@pytest.mark.parametrize("lengths", [(5,), (33, 36, 40), (29, 45, 67, 68, 138, 142, 157, 227), (200, 210, 220, 230)])
@pytest.mark.parametrize("before", [0, 26])
def test_group_is_cut_where_a_search_through_all_ways_finds_the_least(lengths: tuple[int, ...], before: int) -> None:
    found = by_length(Group(90, lengths, ((0, before),) if before else ()))
    places = range(1, len(lengths))
    ways = [(0, *cut, len(lengths)) for count in range(len(lengths)) for cut in combinations(places, count)]
    least = min(sum(_cost(lengths[a:b], before) for a, b in pairwise(way)) for way in ways)
    assert sum(_cost(part.lengths, before) for part in found) == least
    assert tuple(length for part in found for length in part.lengths) == lengths
    assert [part.start for part in found] == [90, *(part.stop for part in found[:-1])]
    assert {part.before for part in found} == {before}


@pytest.mark.parametrize("share", [True, False])
def test_segments_of_a_packed_row_stand_from_short_to_long(share: bool) -> None:
    samples = [Sample((*range(20), *range(100, 100 + n)), (False,) * 20 + (True,) * n) for n in (140, 12, 150, 9)]
    packed = pack(samples, share)
    assert all(list(group.lengths) == sorted(group.lengths) for group in packed.groups)
    for number, sample in enumerate(samples):
        assert packed.ids[packed.lasts[number]] == sample.ids[-1]


def test_layout_on_a_cpu_cuts_groups_and_elsewhere_leaves_them() -> None:
    samples = [Sample((n, *range(n)), (False, *(True,) * n)) for n in (10, 12, 240, 250)]
    packed = pack(samples, share=False)
    cut, whole = layout(packed, torch.device("cpu")), layout(packed, torch.device("meta"))
    assert [places.group for places in whole.groups] == list(packed.groups)
    assert [places.group.lengths for places in cut.groups][:2] == [(11, 13), (241, 251)]


def test_mask_is_made_once_for_all_layers() -> None:
    places = layout(pack([Sample((1, 2, 3), (False, True, True))]), torch.device("cpu")).groups[0]
    like = torch.zeros(1)
    assert places.mask(None, like) is places.mask(None, like)
    assert not torch.equal(places.mask(2, like), places.mask(None, like))
