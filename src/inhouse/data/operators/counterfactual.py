"""Make new training rows that say the same of a woman as of a man, or of a person with another name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from random import Random
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from inhouse.data.augment import Copies, Piece, Word, expanded, like, listed, replaced, words_of
from inhouse.data.lexicons import zh_words
from inhouse.data.lexicons.gender import ENGLISH_FORMS, OTHER, Gender, names, surnames, terms
from inhouse.data.lexicons.gender_en import of_her, of_his
from inhouse.data.operators.around import Around

if TYPE_CHECKING:
    import polars as pl

SHAPE = "expand"
SUFFIXES = ("", "'s", "’s", "'d", "’d", "'ll", "’ll")
# With a capital inside a sentence these still mean a person; King, Prince or Father may be a name or an office.
CAPITAL_STAYS_A_WORD = listed(
    "he she him his her hers himself herself mr mrs ms miss sir madam dad mom mum daddy mommy mummy papa mama"
    " grandpa grandma uncle aunt auntie"
)
TITLES = listed("mr mrs ms miss dr prof professor doctor uncle aunt auntie president nurse officer judge coach dear")
FIXED = frozenset(
    {"mother tongue", "mother nature", "father time", "man page", "man pages", "king size", "queen size", "queen bee"}
    | {f"{this} {thing}" for this in ("female", "male") for thing in ("connector", "connectors", "plug", "thread")}
    | {f"sister {thing}" for thing in listed("company companies site sites city cities ship project projects package")}
)
SURNAMED_TITLES = {"先生": "女士", "女士": "先生", "小姐": "先生", "太太": "先生"}

# Words of the dictionary that begin so (男士服装) are of that gender too.
BEGINNINGS = {"男士": "女士", "女士": "男士", "男性": "女性", "女性": "男性"}

OPENS = re.compile(r" [\"“'‘(\[*_]")

Edit = tuple[int, int, str]
Renamed = Mapping[str, str]


class Unsure(Exception):
    """The other way round of a word depends on what the sentence means."""


class Counterfactual(Copies):
    """Add copies of training rows with gender words or names exchanged, in all texts of a row alike.

    he and she, him, his and her, titles, kin and professions, and given names (English and Chinese, from lists). A
    row in which the meaning decides between him and his (gave her flowers) gets no copy. It also changes what is
    said of people of history: leave such sources out. Every copy is one row; with `copies` above 1 the words are the
    same and only the names differ.
    """

    use: Literal["counterfactual"] = "counterfactual"
    swap: Literal["gender", "names"] = Field(
        "gender", description="gender: words and names of the other gender; names: other names of the same gender"
    )
    keep: tuple[str, ...] = Field((), description="words and names that are never exchanged")


def expand(pieces: pl.DataFrame, params: Counterfactual, around: Around) -> pl.DataFrame:
    """The new rows."""
    kept = frozenset(word.casefold() for word in params.keep)

    def change(members: Sequence[Piece], lots: Random) -> list[str] | None:
        try:
            return _changed([piece.text for piece in members], params.swap == "gender", kept, lots)
        except Unsure:
            return None

    return expanded(pieces, params, around, params.use, change)


def _changed(texts: Sequence[str], gender: bool, kept: frozenset[str], lots: Random) -> list[str]:
    whole = "\n".join(texts)
    renamed = _renamed(_english_names(whole), names("en"), gender, kept, lots)
    called = _renamed(_chinese_names(whole), names("zh") | names("zh1"), gender, kept, lots)
    new = []
    for text in texts:
        edits = [*_english_edits(text, renamed, gender), *_chinese_edits(text, called, gender)]
        new.append(replaced(text, [edit for edit in edits if text[edit[0] : edit[1]].casefold() not in kept]))
    return new


def _renamed(
    found: Iterable[str], known: Mapping[str, Gender], gender: bool, kept: frozenset[str], lots: Random
) -> dict[str, str]:
    """Another name for each: no two persons get one name, and none the name of somebody who is there already."""
    present = list(dict.fromkeys(found))
    new: dict[str, str] = {}
    for name in present:
        wanted = OTHER[known[name]] if gender else known[name]
        free = sorted(
            other for other, whose in known.items() if whose == wanted and (name.isascii() or len(other) == len(name))
        )
        free = [other for other in free if other not in present and other not in new.values()]
        if free and name.casefold() not in kept:
            new[name] = free[int(lots.random() * len(free))]
    return new


@cache
def _english_wanted(gender: bool) -> frozenset[str]:
    words = {name.lower() for name in names("en")}
    if gender:
        words |= set(terms("en").other) | set(ENGLISH_FORMS)
    return frozenset(word + suffix for word in words for suffix in SUFFIXES)


def _english_names(text: str) -> Iterator[str]:
    for word in words_of(text, _english_wanted(False)):
        base = _base(word)
        if base in names("en") and _is_given_name(word):
            yield base


def _base(word: Word) -> str:
    return re.split("['’]", word.text)[0]


def _is_given_name(word: Word) -> bool:
    """After another capital it is a surname (Etta James), unless that is a title or begins the sentence."""
    before = word.before or ""
    return not before[:1].isupper() or before.lower() in TITLES or before.lower() in CAPITAL_STAYS_A_WORD or word.second


def _english_edits(text: str, renamed: Renamed, gender: bool) -> Iterator[Edit]:
    for word in words_of(text, _english_wanted(gender)):
        base = _base(word)
        end = word.start + len(base)
        if base in renamed and _is_given_name(word):
            yield word.start, end, renamed[base]
        elif gender and (new := _english_term(text, word, base)):
            yield word.start, end, new.upper() if base.isupper() and len(base) > 1 else like(base, new)


def _english_term(text: str, word: Word, base: str) -> str | None:
    """The counterpart of a word; None when it is none here. Raises Unsure."""
    this, after = base.lower(), word.after or ""
    if f"{this} {after}".lower() in FIXED or text[: word.start].endswith(")"):
        return None
    if this == "miss":
        return "mr" if base == "Miss" and after[:1].isupper() else None
    if this in ("mr", "mrs", "ms") and not base.istitle():  # 5 ms, MS DOS
        return None
    if base[:1].isupper() and not base.isupper():
        named = this not in CAPITAL_STAYS_A_WORD and (not word.begins or after[:1].isupper())
        if named or (this in ("sir", "madam") and after[:1].isupper()):
            return None
    if this in ("her", "his", "him", "hers"):
        if this in ("her", "his") and OPENS.match(text, word.end):
            raise Unsure  # her "friend", his (late) wife: the thing is there, behind a sign
        return _pronoun(word, this)
    return terms("en").other.get(this)


def _pronoun(word: Word, this: str) -> str:
    if this == "her":
        found = of_her(word)
        if found is None:
            raise Unsure
        return found
    return {"him": "her", "hers": "his"}.get(this) or of_his(word)


@cache
def _chinese_name() -> re.Pattern[str]:
    """A surname and a given name that the lists know."""
    family = zh_words.any_of(surnames()).pattern
    return re.compile(f"({family})({zh_words.any_of([*names('zh'), *names('zh1')]).pattern})")


@cache
def _chinese_wanted(gender: bool) -> re.Pattern[str]:
    words = [*names("zh"), *(terms("zh").other if gender else ()), *(SURNAMED_TITLES if gender else ())]
    return re.compile(f"{zh_words.any_of(words).pattern}|{_chinese_name().pattern}")


def _chinese_names(text: str) -> Iterator[str]:
    for start, words in zh_words.cut_runs(text, _chinese_wanted(False)):
        for _, _, name in _named(start, words):
            yield name


def _named(start: int, words: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """Given names after a surname: place, end, name. They begin and end where words do."""
    run, ends, at = "".join(words), {0}, 0
    for word in words:
        at += len(word)
        ends.add(at)
    for match in _chinese_name().finditer(run):
        # One character is a name only where the dictionary has no word: 高/伟, but never 高峰 (a peak).
        apart = len(match[2]) > 1 or match.start(2) in ends
        if match.start() in ends and match.end() in ends and apart:
            yield start + match.start(2), start + match.end(2), match[2]


def _chinese_edits(text: str, called: Renamed, gender: bool) -> Iterator[Edit]:
    for start, words in zh_words.cut_runs(text, _chinese_wanted(gender)):
        done = [(place, end) for place, end, name in _named(start, words)]
        yield from ((place, end, called[text[place:end]]) for place, end in done if text[place:end] in called)
        at = start
        words = _joined(words) if gender else words
        for number, word in enumerate(words):
            inside = any(place < at + len(word) and at < end for place, end in done)
            if not inside and (new := _chinese_term(word, words[number - 1] if number else "", called, gender)):
                yield at, at + len(word), new
            at += len(word)


def _joined(words: Sequence[str]) -> list[str]:
    """The cut text with terms in one piece that the dictionary does not know (男/士)."""
    known, out, place = terms("zh").other, [], 0
    while place < len(words):
        count = next((n for n in (3, 2) if "".join(words[place : place + n]) in known), 1)
        out.append("".join(words[place : place + count]))
        place += count
    return out


def _chinese_term(word: str, before: str, called: Renamed, gender: bool) -> str | None:
    """What stands for a word of the cut text, None when it stays."""
    if word in called and len(word) > 1:
        return called[word]  # the given name alone, of somebody whose whole name is there as well
    if not gender:
        return None
    title = word[-2:]
    if title in SURNAMED_TITLES and (word[:-2] in surnames() or (word == title and before in surnames())):
        return word[:-2] + SURNAMED_TITLES[title]
    if len(word) > len(title) and word[:2] in BEGINNINGS:
        return BEGINNINGS[word[:2]] + word[2:]
    return terms("zh").other.get(word)
