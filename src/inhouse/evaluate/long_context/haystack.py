"""The text that is read: natural prose with, or without, one sentence that holds a number to be found."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from inhouse.core.errors import UserError

CITIES = ("Lisbon", "Nairobi", "Osaka", "Lima", "Oslo", "Hanoi", "Quito", "Turin", "Perth", "Sofia", "Dakar", "Riga")
CHOICES = 8  # numbers that are weighed against each other: the wanted one and others of its kind
DIGITS = 7
BREAK_WITHIN = 96  # tokens back in which a line's end is looked for
BUCKETS, BLOCKS, WIDTH = 16, 8, 8  # of the curve: parts of the text, places in each, tokens in a row at each place


class Coder(Protocol):
    """What of a tokenizer is needed."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class Needle:
    """A number that belongs to a city, and other numbers that do not."""

    city: str
    number: str
    others: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """What is hidden."""
        return f"\nThe secret number of {self.city} is {self.number}.\n"

    @property
    def question(self) -> str:
        """What the text ends with, so that the number is the next thing to write."""
        return f"\nThe secret number of {self.city} is"

    @property
    def choices(self) -> tuple[str, ...]:
        """The wanted number first."""
        return (self.number, *self.others)


def needle(seed: int, length: int, place: int) -> Needle:
    """The same for every strategy; another for every length and place."""
    drawn = random.Random(f"{seed} {length} {place}")
    low = 10 ** (DIGITS - 1)
    numbers = [str(number) for number in drawn.sample(range(low, 10 * low), CHOICES)]
    return Needle(drawn.choice(CITIES), numbers[0], tuple(numbers[1:]))


def documentation() -> str:
    """Prose that lies on every machine with Python: its own language reference."""
    from pydoc_data.topics import topics  # type: ignore[import-not-found,unused-ignore]

    return "\n\n".join(topics[name] for name in sorted(topics))


@dataclass(frozen=True)
class Prompt:
    """Token ids to read, and the answers that are weighed after them."""

    ids: list[int]
    choices: list[list[int]]
    wanted: str


class Haystack:
    """Cuts prompts of an exact length out of one long text."""

    def __init__(self, text: str, coder: Coder, begin: Sequence[int]) -> None:
        self.coder, self.begin = coder, list(begin)
        self.ids = coder.encode(text, add_special_tokens=False)

    def check(self, longest: int) -> None:
        """Raise long_context.short_text when the text cannot fill the longest prompt."""
        if len(self.ids) < longest:
            raise UserError("long_context.short_text", tokens=len(self.ids), longest=longest)

    def prompt(self, length: int, hidden: Needle, depth: float | None) -> Prompt:
        """`length` tokens that end with the question; the needle after `depth` percent of the text, None: nowhere.

        Raises long_context.too_short.
        """
        question, sentence = (self._encode(text) for text in (hidden.question, hidden.sentence))
        choices = [self._encode(f" {number}") for number in hidden.choices]
        most = length - len(self.begin) - len(question) - max(map(len, choices))
        sentence = sentence if depth is not None else []
        if most - len(sentence) < len(sentence):
            raise UserError("long_context.too_short", length=length, least=length - most + 2 * len(sentence))
        hay = self.ids[: most - len(sentence)]
        cut = self._line_end(hay, round(len(hay) * (depth or 0) / 100))
        return Prompt([*self.begin, *hay[:cut], *sentence, *hay[cut:], *question], choices, hidden.number)

    def _encode(self, text: str) -> list[int]:
        return self.coder.encode(text, add_special_tokens=False)

    def _line_end(self, hay: Sequence[int], cut: int) -> int:
        """The place at or shortly before `cut` where a line ends; `cut` itself where none does."""
        if cut in (0, len(hay)):
            return cut
        for place in range(cut, max(0, cut - BREAK_WITHIN), -1):
            if self.coder.decode(hay[place - 1 : place]).endswith("\n"):
                return place
        return cut


def scored_places(length: int) -> list[list[list[int]]]:
    """For each part of a text of `length` tokens: blocks of consecutive places whose tokens are scored; never place 0.

    Blocks, not single tokens, because neighbours are alike: intervals are drawn from blocks.
    """
    parts = min(BUCKETS, max(1, length // WIDTH))
    bounds = [round(length * part / parts) for part in range(parts + 1)]
    return [_blocks(max(1, low), high) for low, high in pairwise(bounds)]


def _blocks(low: int, high: int) -> list[list[int]]:
    count = min(BLOCKS, max(1, (high - low) // WIDTH))
    starts = [low + round((high - low) * block / count) for block in range(count)]
    return [list(range(start, min(start + WIDTH, high))) for start in starts if start < high]


def found_in(answer: str, wanted: str) -> bool:
    """Whether the answer begins with the wanted number, digit by digit."""
    return answer.strip().startswith(wanted)
