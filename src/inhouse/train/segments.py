"""Samples packed into one row without padding: a tree of segments, so that what samples share is read once.

A segment is a run of tokens that follows the tokens of its ancestors: an instruction that eight samples begin with is
one segment, and the rest of each sample is a child of it. A question with a better and a worse answer is a segment
with two children. Every token sees its ancestors and the tokens before it in its own segment, so each sample is read
as if it stood alone, and the gradient of a shared segment is the sum over the samples that follow it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from inhouse.train.tokens import Sample

LEAST_SHARED = 8  # a shorter shared beginning costs more to read apart than it saves
ROUND, WIDE = 64, 16  # rows and segments are filled up to multiples of these, so that few shapes occur
SQUARE = 512 * 512  # segments whose scores are more than this are attended to one by one
APART = 96 * 96  # padding, in scores, that costs as much as attending to one more batch of segments (on a CPU)


@dataclass(frozen=True)
class Group:
    """Segments that follow the same tokens. They stand one after the other in the packed row, from `start` on."""

    start: int
    lengths: tuple[int, ...]
    context: tuple[tuple[int, int], ...]  # the ancestors' ranges in the packed row, first to last
    filling: bool = False  # it only makes the row longer: nobody reads what is computed for it

    @property
    def stop(self) -> int:
        """Where the last of the segments ends."""
        return self.start + sum(self.lengths)

    @property
    def before(self) -> int:
        """How many tokens the segments follow."""
        return sum(stop - start for start, stop in self.context)

    @property
    def width(self) -> int:
        """Slots of each segment where they are attended to together."""
        return _rounded(max(self.lengths))

    @cached_property
    def together(self) -> bool:
        """Whether the segments are attended to as one padded batch: the scores of one are not too many."""
        return self.width * (self.width + self.before) <= SQUARE


def _rounded(length: int) -> int:
    return -(-length // WIDE) * WIDE


@dataclass(frozen=True)
class Packed:
    """One row (T tokens) that holds all samples of a batch.

    `ids`, `positions` (T): tokens and their places in their samples. `places` (N): where a learned token is predicted;
    `targets` (N): that token; `owners` (N): the sample it belongs to. `lasts` (B): where each sample's last token is.
    """

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    groups: tuple[Group, ...]
    places: tuple[int, ...]
    targets: tuple[int, ...]
    owners: tuple[int, ...]
    lasts: tuple[int, ...]


@dataclass
class _Row:
    """A packed row while it grows."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    at: dict[int, tuple[tuple[int, int], ...]] = field(default_factory=dict)  # sample -> its ranges in the row


@dataclass(frozen=True)
class _Branch:
    """Samples that share their first `depth` tokens, which stand at `context` in the row."""

    members: tuple[int, ...]
    depth: int
    context: tuple[tuple[int, int], ...]


def pack(samples: Sequence[Sample], share: bool = True) -> Packed:
    """Lay the samples of a batch out as one row; with `share`, beginnings that several have stand there once."""
    row = _Row()
    level = [_Branch(tuple(range(len(samples))), 0, ())]
    while level:
        level = [branch for before in level for branch in _grow(row, before, samples, share)]
    _fill_up(row)
    places, targets, owners = [], [], []
    for number, sample in enumerate(samples):
        spots = [place for start, stop in row.at[number] for place in range(start, stop)]
        for index, learned in enumerate(sample.learned):
            if learned and index:
                places.append(spots[index - 1])
                targets.append(sample.ids[index])
                owners.append(number)
    lasts = tuple(row.at[number][-1][1] - 1 for number in range(len(samples)))
    found = (tuple(places), tuple(targets), tuple(owners), lasts)
    return Packed(tuple(row.ids), tuple(row.positions), tuple(row.groups), *found)


def _fill_up(row: _Row) -> None:
    """A last segment that nothing is learned from.

    The CPU's library for matrix products compiles and keeps code for every new number of rows: 20 MB a batch.
    """
    missing = -len(row.ids) % ROUND
    if missing:
        row.groups.append(Group(len(row.ids), (missing,), (), filling=True))
        row.ids += [row.ids[-1]] * missing
        row.positions += range(missing)


def _grow(row: _Row, branch: _Branch, samples: Sequence[Sample], share: bool) -> list[_Branch]:
    """Write the segments that follow a branch, and return the branches that follow those."""
    parts = _split(branch, samples) if share else _alone(branch.members, samples)
    start = len(row.ids)
    later = []
    for members, until in parts:
        at = len(row.ids)
        row.ids += samples[members[0]].ids[branch.depth : until]
        row.positions += range(branch.depth, until)
        ranges = (*branch.context, (at, len(row.ids)))
        if len(members) == 1:
            row.at[members[0]] = ranges
        else:
            later.append(_Branch(members, until, ranges))
    lengths = tuple(until - branch.depth for _, until in parts)
    row.groups.append(Group(start, lengths, branch.context))
    return later


def _split(branch: _Branch, samples: Sequence[Sample]) -> list[tuple[tuple[int, ...], int]]:
    """The segments that follow a branch: their samples, and the depth that each segment reaches.

    Neighbours in the order of their tokens are joined while they share enough beyond the branch.
    """
    order = sorted(branch.members, key=lambda member: samples[member].ids)
    parts: list[tuple[tuple[int, ...], int]] = []
    run, shared = [order[0]], _end(samples[order[0]])
    for one, other in pairwise(order):
        common = min(shared, _common(samples[one], samples[other]))
        if common - branch.depth >= LEAST_SHARED:
            run, shared = [*run, other], common
        else:
            parts.append(_part(run, shared, samples))
            run, shared = [other], _end(samples[other])
    parts.append(_part(run, shared, samples))
    return sorted(parts, key=lambda part: (part[1], part[0]))  # like lengths beside each other


def _alone(members: tuple[int, ...], samples: Sequence[Sample]) -> list[tuple[tuple[int, ...], int]]:
    """Every sample a segment of its own, from short to long."""
    return sorted((((member,), len(samples[member].ids)) for member in members), key=lambda part: (part[1], part[0]))


def _part(run: list[int], shared: int, samples: Sequence[Sample]) -> tuple[tuple[int, ...], int]:
    return (tuple(sorted(run)), shared) if len(run) > 1 else ((run[0],), len(samples[run[0]].ids))


def _end(sample: Sample) -> int:
    """How much of a sample may be shared: all before the place that predicts its first learned token."""
    first = next((index for index, learned in enumerate(sample.learned) if learned and index), len(sample.ids))
    return first - 1


def _common(one: Sample, other: Sample) -> int:
    most = min(_end(one), _end(other))
    return next((index for index in range(most) if one.ids[index] != other.ids[index]), most)


def by_length(group: Group) -> list[Group]:
    """A group cut between segments, so that the least is computed: what is padded, and the cost of each part.

    Its segments stand from short to long, so that those of like length are neighbours.
    """
    costs, starts = [0], [0]  # of the first n segments: what they cost at least, and where their last part begins
    for stop, longest in enumerate(group.lengths, 1):
        width = _rounded(longest)
        each = width * (width + group.before)
        cost, start = min((costs[start] + (stop - start) * each, start) for start in range(stop))
        costs.append(cost + APART)
        starts.append(start)
    ends = [len(group.lengths)]
    while ends[-1]:
        ends.append(starts[ends[-1]])
    parts, place = [], group.start
    for start, stop in pairwise(reversed(ends)):
        parts.append(replace(group, start=place, lengths=group.lengths[start:stop]))
        place = parts[-1].stop
    return parts


@dataclass(frozen=True)
class Layout:
    """A packed row's groups as index tensors on one device, made once for all layers of a model."""

    length: int
    groups: tuple[Places, ...]
    tables: dict[Any, Any] = field(default_factory=dict, repr=False)  # kept by those who read it otherwise


@dataclass(frozen=True)
class Places:
    """Where a group's tokens stand. `own` (B*W) place in the row of every slot of the padded batch, 0 for padding;
    `slots` (N) the slot of each of the group's tokens, in their order in the row. `seen` (B, R+W): the places of what
    each segment sees, its own tokens last, -1 for padding; R is P filled up in front to a round number."""

    group: Group
    own: torch.Tensor
    slots: torch.Tensor
    seen: torch.Tensor
    masks: dict[tuple[int | None, torch.dtype], torch.Tensor] = field(default_factory=dict, repr=False)

    def mask(self, window: int | None, like: torch.Tensor) -> torch.Tensor:
        """What may be seen (W, P + W), 0 or the least number of the type; the same for every segment of the group."""
        if (window, like.dtype) not in self.masks:
            self.masks[window, like.dtype] = self._mask(window, like)
        return self.masks[window, like.dtype]

    def _mask(self, window: int | None, like: torch.Tensor) -> torch.Tensor:
        import torch

        width, before = self.group.width, self.group.before
        place = torch.arange(width, device=like.device)[:, None] + before
        other = torch.arange(before + width, device=like.device)[None, :]
        hidden = other > place
        if window:
            hidden |= place - other >= window
        return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(
            hidden, torch.finfo(like.dtype).min
        )


def layout(packed: Packed, device: torch.device) -> Layout:
    """The index tensors of a packed row. On a CPU, segments of a group that differ in length become several groups."""
    import torch

    found = []
    groups = packed.groups if device.type != "cpu" else [part for group in packed.groups for part in by_length(group)]
    for group in groups:
        width = group.width
        own = torch.zeros(len(group.lengths) * width, dtype=torch.long)
        slots = torch.empty(sum(group.lengths), dtype=torch.long)
        before = _rounded(group.before)
        seen = torch.full((len(group.lengths), before + width), -1)
        if group.before:
            seen[:, before - group.before : before] = torch.cat([torch.arange(*context) for context in group.context])
        done = 0
        for number, length in enumerate(group.lengths):
            here = torch.arange(length)
            seen[number, before : before + length] = group.start + done + here
            own[number * width : number * width + length] = group.start + done + here
            slots[done : done + length] = number * width + here
            done += length
        found.append(Places(group, own.to(device), slots.to(device), seen.to(device)))
    return Layout(len(packed.ids), tuple(found))
