"""Pairs of documents whose true Jaccard similarity is known, and leaks planted in training rows; all from a seed.

The similarity is that of plain character shingles (8 for English, 5 for Chinese) of the text in lower case with single
spaces, counted with Python sets.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import accumulate
from math import log

LANGUAGES = ("en", "zh")
SHINGLE = {"en": 8, "zh": 5}
SYLLABLES = "ba co di fu ga ho ju ka le mi no pa qui ra sa ter tra un ver wo ing ly ment tion sh ar or st pl cr"
ENGLISH = (
    "the of and to in a is that for it as was with be by on not he this are or his from at which but have an had they "
    "you were there one all we can her has more their will would who when no make like time just him know take people "
    "into year your good some could them see other than then now look only come its over think also back after use two "
    "how our work first well way even new want because any these give day most us"
)
CHINESE = (
    "的一是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会可主发年动同工也能下过子说产种面而方后"
    "多定行学法所民得经十三之进着等部度家电力里如水化高自二理起小物现实加量都两体制机当使点从业本去把性好应开它合还"
    "因由其些然前外天政四日那社义事平形相全表间样与关各重新线内数正心反你明看原又么利比或但质气第向道命此变条只没结解"
    "问意建月公无系军很情者最立代想已通并提直题党程展五果料象员革位入常文总次品式活设及管特件长求老头基资边流路级少图山"
    "统接知较将组见计别她手角期根论运农指几九区强放决西被干做必战先回则任取据处队南给色光门即保治北造百规热领七海口东导"
)


@dataclass(frozen=True)
class Pair:
    """Two documents and the Jaccard similarity of their shingles."""

    one: str
    other: str
    jaccard: float


class Writer:
    """Writes documents as lists of words (English) or characters (Chinese) with punctuation."""

    def __init__(self, language: str, seed: int) -> None:
        self.language = language
        self.random = random.Random(f"{language}:{seed}")
        common = ENGLISH.split()
        rare = ["".join(self.random.choices(SYLLABLES.split(), k=self.random.randint(2, 4))) for _ in range(6000)]
        self.units = [*common, *rare] if language == "en" else list(CHINESE)
        weights = [30 / (n + 1) for n in range(len(common))] + [0.02] * len(rare)
        self.weights = list(accumulate(weights if language == "en" else [1 / (n + 40) for n in range(len(CHINESE))]))

    def draw(self, count: int) -> list[str]:
        """So many words or characters; every dozen or so ends a clause."""
        units = self.random.choices(self.units, cum_weights=self.weights, k=count)
        comma, stop = (",", ".") if self.language == "en" else ("，", "。")
        for n in range(self.random.randint(6, 14), count, 13):
            units[n] += self.random.choice((comma, comma, stop))
        return units

    def text(self, units: list[str]) -> str:
        """The document as people would write it."""
        return (" " if self.language == "en" else "").join(units)

    def document(self) -> list[str]:
        """A document of 900 to 3,000 characters in English, 300 to 1,200 in Chinese."""
        return self.draw(self.random.randint(180, 600) if self.language == "en" else self.random.randint(300, 1200))

    def edits(self, units: list[str]) -> list[tuple[int, str]]:
        """A place for every unit in random order, and what stands there instead: another, nothing, or one more."""
        places = self.random.sample(range(len(units)), len(units))
        new = self.draw(len(units))
        return [(n, self.random.choice((new[n], new[n], "", f"{units[n]} {new[n]}"))) for n in places]


def edited(units: list[str], edits: list[tuple[int, str]]) -> list[str]:
    """A copy with these edits."""
    found = list(units)
    for place, unit in edits:
        found[place] = unit
    return [unit for unit in found if unit]


def shingles(text: str, length: int) -> set[str]:
    """The set of all runs of `length` characters."""
    text = " ".join(text.lower().split())
    return {text[n : n + length] for n in range(len(text) - length + 1)}


def jaccard(one: str, other: str, length: int) -> float:
    """Shared shingles over all shingles."""
    a, b = shingles(one, length), shingles(other, length)
    return len(a & b) / len(a | b)


def pairs(language: str, low: float, high: float, count: int, seed: int = 0) -> list[Pair]:
    """Pairs with a similarity from `low` up to `high`, made by editing words or characters all over a document."""
    writer, found = Writer(language, seed), []
    while len(found) < count:
        units = writer.document()
        edits, wanted, share = writer.edits(units), writer.random.uniform(low, high), 0.05
        one = writer.text(units)
        for _ in range(6):
            other = writer.text(edited(units, edits[: max(1, round(share * len(units)))]))
            similar = jaccard(one, other, SHINGLE[language])
            if low <= similar < high:
                found.append(Pair(one, other, similar))
                break
            # An edit spoils the shingles over it, some of them already spoilt: the intact share falls exponentially.
            share *= _decay(wanted) / _decay(min(similar, 0.999))
    return found


def _decay(similar: float) -> float:
    return log(2 * similar / (1 + similar))


def same_template(language: str, count: int, seed: int = 1) -> list[Pair]:
    """Pairs of different facts in one frame: similarity 0.3 to 0.6, and not duplicates."""
    writer, found = Writer(language, seed), []
    while len(found) < count:
        frame = [writer.draw(writer.random.randint(12, 30)) for _ in range(8)]
        facts = writer.random.uniform(0.15, 0.6)
        one, other = ([part for f in frame for part in (*f, *writer.draw(round(facts * len(f))))] for _ in range(2))
        similar = jaccard(writer.text(one), writer.text(other), SHINGLE[language])
        if 0.3 <= similar < 0.6:
            found.append(Pair(writer.text(one), writer.text(other), similar))
    return found


def families(language: str, count: int, seed: int = 2) -> list[list[str]]:
    """Groups of two to six documents, each a light edit of the group's first."""
    writer = Writer(language, seed)
    found = []
    for _ in range(count):
        units = writer.document()
        copies = [edited(units, writer.edits(units)[: len(units) // 60]) for _ in range(writer.random.randint(1, 5))]
        found.append([writer.text(units), *map(writer.text, copies)])
    return found


def chain(language: str, length: int, seed: int) -> list[str]:
    """Documents each of which is a light edit of the one before it, so that the last is unlike the first."""
    writer = Writer(language, seed)
    units = writer.document()
    found = [writer.text(units)]
    share = 40 if language == "en" else 90
    while len(found) < length:
        units = edited(units, writer.edits(units)[: len(units) // share])
        found.append(writer.text(units))
    return found


@dataclass(frozen=True)
class Planted:
    """Training texts and test texts; `leaks[i]` is the place of the test text that training text i holds."""

    train: list[str]
    test: list[str]
    leaks: dict[int, int]


def planted_leaks(language: str, count: int, seed: int = 3) -> Planted:
    """Training documents, every other one with a passage of a test text in it: quoted, respaced, in capitals, cut."""
    writer = Writer(language, seed)
    span = 24 if language == "en" else 56  # a full n-gram wherever it begins
    test = [writer.draw(writer.random.randint(60, 140)) for _ in range(count)]
    train, leaks = [], {}
    for n in range(2 * count):
        units = writer.document()
        if n % 2 == 0:
            source = test[n // 2]
            start = writer.random.randint(0, len(source) - span)
            at = writer.random.randint(0, len(units))
            units[at:at] = disguised(source[start : start + span], n // 2 % 4)
            leaks[n] = n // 2
        train.append(writer.text(units))
    return Planted(train, [writer.text(units) for units in test], leaks)


def disguised(units: list[str], manner: int) -> list[str]:
    """The same passage: as it is, with other white space, in capitals, or with other punctuation."""
    if manner == 1:
        return [f"{unit}\n" if n % 7 == 0 else unit for n, unit in enumerate(units)]
    if manner == 2:
        return [unit.upper() for unit in units]
    return [unit.strip(",.，。") + ("; " if n % 5 == 0 else "") for n, unit in enumerate(units)] if manner else units
