"""Every strategy at every length: a control without the needle, a curve of perplexity, needles at every depth."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from inhouse.core.errors import Cancelled, InhouseError, UserError
from inhouse.core.run import Events
from inhouse.evaluate.long_context.haystack import (
    CHOICES,
    DIGITS,
    Haystack,
    Needle,
    Prompt,
    found_in,
    needle,
    scored_places,
)
from inhouse.evaluate.long_context.kept import Reading, Readings
from inhouse.evaluate.long_context.pace import Pace
from inhouse.evaluate.long_context.reader import Read, Reader
from inhouse.evaluate.long_context.result import Group, Point, Trial
from inhouse.evaluate.long_context.strategies import Strategy, StrategyName
from inhouse.evaluate.stats import BootstrapParams, Measure, difference, figure

BOOTSTRAP = BootstrapParams()
# Tokens of the texts that tell how fast a strategy reads. Of 512 attention takes a few percent only: of a 135M model
# 7.6 min were foretold by 128 and 512 tokens for what took more than 20 at 32,768.
CALIBRATION = (128, 512, 2048)
MOST_CALIBRATION = 0.05  # of the time that is left: a longer text is not read for one strategy's estimate
Open = Callable[[Strategy, int], Reader]
Blocks = list[list[tuple[float, int]]]  # for each part of the text, each block: summed loss, and tokens


class Grid(NamedTuple):
    """What is measured."""

    strategies: Sequence[Strategy]
    lengths: Sequence[int]
    depths: Sequence[float]
    trials: int
    seed: int


@dataclass
class Bench:
    """A run over the grid, short lengths first; what the time is too short for is refused."""

    grid: Grid
    hay: Haystack
    open: Open
    events: Events
    deadline: float
    keep: Callable[[list[Group]], None] = lambda groups: None  # is given what is measured so far
    readings: Readings = field(default_factory=Readings)  # of an earlier start too
    controls: dict[StrategyName, Pace] = field(default_factory=dict)  # scoring a curve takes long beside reading
    paces: dict[StrategyName, Pace] = field(default_factory=dict)
    blocks: dict[tuple[StrategyName, int], Blocks] = field(default_factory=dict)
    per_token: dict[StrategyName, tuple[float | None, int]] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)
    passed: float = 0.0  # seconds of what is done, as they were foretold
    total: float = 0.0

    def run(self) -> list[Group]:
        """Every length and strategy in turn; says first how long all would take."""
        self._calibrate()
        plan = [(length, one) for length in sorted(self.grid.lengths) for one in self.grid.strategies]
        costs = [self._cost(one, length) for length, one in plan]
        self.total, left = sum(costs), self._left()
        fits = sum(cost for cost, total in zip(costs, _running(costs), strict=True) if total <= left)
        self.events.note(
            "long_context.estimate", all=_minutes(sum(costs)), budget=_minutes(left), runs=_minutes(min(fits, left))
        )
        ends = list(_running(costs))
        for (length, one), end in zip(plan, ends, strict=True):
            self.events.progress(self.share(0.0), 100, "%", step=f"{one.name} {length:,}")
            self.groups.append(self._beside_full(self._guarded(one, length)))
            self.keep(self.groups)
            self.passed = end
        self.events.progress(100, 100, "%", step="")
        return [self._beside_full(group) for group in self.groups]  # `full` may stand behind others

    def share(self, seconds: float) -> int:
        """Percent of the whole that is done, so many seconds of work into the group that is under way."""
        self.passed += seconds
        return min(100, round(100 * self.passed / (self.total or 1.0)))

    def _calibrate(self) -> None:
        """Read short texts with each strategy; one that cannot be opened is refused later, with its reason."""
        for number, one in enumerate(self.grid.strategies):
            self.events.progress(number, len(self.grid.strategies), "", step="calibrate")
            control, pace = (kind.setdefault(one.name, Pace()) for kind in (self.controls, self.paces))
            if (opened := self._opened(one)) is None:
                continue
            reader, sizes = opened
            try:
                choices = [[at] * DIGITS for at in range(1, 1 + CHOICES)]
                reader.read(self.hay.ids[:8], [], choices)  # the first read makes kernels and is not counted
                for size in sizes:
                    if pace.known and control.seconds(size) + pace.seconds(size) > MOST_CALIBRATION * self._left():
                        break
                    control.add(size, self._spent(reader, size, choices, scored=True))
                    pace.add(size, self._spent(reader, size, choices, scored=False))
            finally:
                reader.close()

    def _opened(self, one: Strategy) -> tuple[Reader, list[int]] | None:
        """A reader and the lengths to try it with, short ones where it reads no long text."""
        for most in (max(self.grid.lengths), min(self.grid.lengths)):
            sizes = sorted({min(size, most) for size in CALIBRATION})
            with suppress(UserError):  # told with its group
                return self.open(one, sizes[-1]), sizes
        return None

    def _spent(self, reader: Reader, size: int, choices: list[list[int]], scored: bool) -> float:
        places = [place for part in scored_places(size) for block in part for place in block] if scored else []
        began = time.perf_counter()
        reader.read(self.hay.ids[:size], places, choices)
        return time.perf_counter() - began

    def _cost(self, one: Strategy, length: int, needles: bool = True) -> float:
        """Seconds of what is left to read."""
        wanted = self._needles() if needles else []
        reads = sum(self.readings.get(_name(one, length, at)) is None for at in wanted)
        control = self.readings.get(_name(one, length)) is None
        return control * self.controls[one.name].seconds(length) + reads * self.paces[one.name].seconds(length)

    def _needles(self) -> list[tuple[int, int]]:
        """Trial and place of every needle: the depths in turn, so that none is left out where time is short."""
        return [(trial, place) for trial in range(self.grid.trials) for place in range(len(self.grid.depths))]

    def _read(self, name: str, reader: Reader, prompt: Prompt, places: Sequence[int] = ()) -> Reading:
        """A text, read now or by an earlier start."""
        if (known := self.readings.get(name)) is not None:
            return known
        began = time.perf_counter()
        read = reader.read(prompt.ids, places, prompt.choices)
        found = Reading(read, time.perf_counter() - began, reader.bytes_per_token())
        self.readings.add(name, found)
        return found

    def _left(self) -> float:
        return self.deadline - time.monotonic()

    def _guarded(self, one: Strategy, length: int) -> Group:
        needles = self._cost(one, length) <= self._left()
        if not needles and self._cost(one, length, needles=False) > self._left():
            minutes = _minutes(self._cost(one, length, needles=False))
            error = UserError("long_context.no_time", minutes=minutes)
            return Group(strategy=one.name, length=length, refused=str(error))
        try:
            reader = self.open(one, length)
        except Cancelled:
            raise
        except InhouseError as error:
            return Group(strategy=one.name, length=length, refused=str(error))
        try:
            return self._group(reader, one, length)
        finally:
            reader.close()

    def _group(self, reader: Reader, one: Strategy, length: int) -> Group:
        hidden = needle(self.grid.seed, length, -1)
        prompt = self.hay.prompt(length, hidden, None)
        parts = scored_places(len(prompt.ids))
        places = [place for part in parts for block in part for place in block]
        cost = self._cost(one, length, needles=False)
        found = self._read(_name(one, length), reader, prompt, places)
        read = found.read
        self.controls[one.name].add(length, found.seconds)
        self.per_token[one.name] = (found.per_token, length)
        blocks = summed(parts, read.scored)
        self.blocks[one.name, length] = blocks
        group = Group(
            strategy=one.name,
            length=length,
            curve=tuple(_points(parts, blocks)),
            perplexity=figure(_measure([block for part in blocks for block in part]), BOOTSTRAP),
            control=self._trial(None, prompt, read),
            needles=(),
            skipped=len(self.grid.depths) * self.grid.trials,
            seconds=round(read.seconds, 3),
        )
        self._told(group, cost)
        return self._with_needles(group, reader, one)

    def _told(self, group: Group, seconds: float) -> None:
        """Keep what is measured of a group so far: one reading of a long text may take minutes."""
        self.keep([*self.groups, group])
        self.events.progress(self.share(seconds), 100, "%", step=f"{group.strategy} {group.length:,}")

    def _with_needles(self, group: Group, reader: Reader, one: Strategy) -> Group:
        """A needle for each depth and trial, as far as time allows."""
        length, pace, wanted = group.length, self.paces[one.name], self._needles()
        found: list[Trial] = []
        for trial, place in wanted:
            name = _name(one, length, (trial, place))
            foretold = pace.seconds(length) if self.readings.get(name) is None else 0.0
            if self._left() < foretold:
                break
            self.events.check()
            depth = self.grid.depths[place]
            prompt = self.hay.prompt(length, self._hidden(length, trial, place), depth)
            reading = self._read(name, reader, prompt)
            found.append(self._trial(depth, prompt, reading.read))
            pace.add(length, reading.seconds)
            needles = tuple(sorted(found, key=lambda one: one.depth or 0.0))
            group = group.model_copy(update={"needles": needles, "skipped": len(wanted) - len(found)})
            self._told(group, foretold)
        return group

    def _hidden(self, length: int, trial: int, place: int) -> Needle:
        return needle(self.grid.seed, length, trial * len(self.grid.depths) + place)

    def _trial(self, depth: float | None, prompt: Prompt, read: Read) -> Trial:
        right, *others = read.chosen
        return Trial(
            depth=depth,
            exact=found_in(self.hay.coder.decode(read.answer), prompt.wanted),
            likeliest=right > max(others),
            logprob=round(right, 4),
            margin=round(right - max(others), 4),
        )

    def _beside_full(self, group: Group) -> Group:
        """Paired with `full` on the same tokens, so that what is hard for both cancels out."""
        own, other = (self.blocks.get((name, group.length)) for name in (group.strategy, "full"))
        if own is None or other is None or group.strategy == "full":
            return group
        pairs = [
            (one, two) for mine, theirs in zip(own, other, strict=True) for one, two in zip(mine, theirs, strict=True)
        ]
        kept = [(one, two) for one, two in pairs if one[1] == two[1] and one[1]]
        if not kept:
            return group
        left, right = ([pair[side] for pair in kept] for side in (0, 1))
        return group.model_copy(
            update={"versus_full": difference(_measure(left, True), _measure(right, True), BOOTSTRAP)}
        )


def _name(one: Strategy, length: int, at: tuple[int, int] | None = None) -> str:
    """Of a reading: the control, or the needle of this trial at this place."""
    return f"{one.name} {length} {'control' if at is None else f'{at[0]} {at[1]}'}"


def summed(parts: Sequence[Sequence[Sequence[int]]], scored: Sequence[float | None]) -> Blocks:
    """Loss and tokens of every block, from log-probabilities in the order of their places, unknown ones left out."""
    values = iter(scored)
    blocks = []
    for part in parts:
        own = []
        for block in part:
            known = [value for value in (next(values) for _ in block) if value is not None]
            own.append((-math.fsum(known), len(known)))
        blocks.append(own)
    return blocks


def _points(parts: Sequence[Sequence[Sequence[int]]], blocks: Blocks) -> Iterator[Point]:
    for part, own in zip(parts, blocks, strict=True):
        found = figure(_measure(own), BOOTSTRAP)
        if found is not None:
            stop = part[-1][-1] + 1
            yield Point(start=part[0][0], stop=stop, perplexity=found)


def _measure(blocks: Sequence[tuple[float, int]], log: bool = False) -> Measure:
    import numpy as np

    columns = np.array(blocks, dtype=np.float64)
    statistic = _mean_loss if log else _perplexity
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        value = float(statistic(columns))
    return Measure(value, columns, statistic, unit="nats" if log else "")


def _mean_loss(drawn: Any) -> Any:
    total = drawn.sum(axis=-2)
    return total[..., 0] / total[..., 1]


def _perplexity(drawn: Any) -> Any:
    import numpy as np

    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return np.exp(_mean_loss(drawn))


def _running(costs: Sequence[float]) -> Iterator[float]:
    total = 0.0
    for cost in costs:
        total += cost
        yield total


def _minutes(seconds: float) -> str:
    return f"{max(0.0, seconds) / 60:.1f}"
