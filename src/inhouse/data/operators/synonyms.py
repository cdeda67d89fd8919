"""Make new training rows by putting synonyms in the place of some words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from math import ceil
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from inhouse.data.augment import (
    HAN,
    Copies,
    Piece,
    Word,
    expanded,
    is_changeable,
    is_variant,
    like,
    listed,
    replaced,
    words_of,
)
from inhouse.data.lexicons import wordnet, zh_words
from inhouse.data.operators.around import Around
from inhouse.sources.resolve import fetch, fingerprint

if TYPE_CHECKING:
    import polars as pl

SHAPE = "expand"
HAN_PER_WORD = 2
LATIN = re.compile(r"[A-Za-z]+")
VOWELS = "aeiou"
UNSURE_SOUND = ("eu", "ew", "ho", "on", "uni", "us", "ut", "u")  # an hour, a one, a unit
# What follows a verb with an object, and what shows that a word is no verb at all.
OBJECTS = listed(
    "the a an this that these those my your his her its our their it them him us some any all both each every"
)
NOT_BEFORE_VERB = listed(
    "the a an this these those my your his her its our their no some any each every of in on at by for with"
)
NOT_AFTER_ADJECTIVE = listed(
    "to that than of for with in on at about from by as and or but if when is are was were be i you he she it we they"
    " the a an my your his her its our their this these those so too not enough"
)
NOT_AFTER_ADVERB = listed("before after as because enough so to all")
# These adverbs are clauses of their own: "however," and never "however big".
ONLY_BEFORE_COMMA = listed("however nevertheless furthermore moreover consequently accordingly similarly likewise")
PHRASES = frozenset(
    {"and large", "at large", "vast majority", "in large", "very often", "so often", "use case", "use cases"}
)

Edit = tuple[int, int, tuple[str, ...]]


class Synonyms(Copies):
    """Add copies of training rows in which some words are replaced by synonyms, in English and Chinese.

    English synonyms are WordNet's, and only where part of speech and sense are sure; plural, -s, -ed, -ing and
    capitals are kept, an article before the word stays right. Names, numbers, code, addresses and placeholders are
    never touched, nor are system turns, results of tools and (by default) answers.
    """

    use: Literal["synonyms"] = "synonyms"
    change: float = Field(0.15, gt=0, le=1, description="share of the words that are replaced at most, at least one")
    min_tags: int = Field(
        2, ge=1, description="English: how often the synonym must occur in that sense in WordNet's tagged texts"
    )
    lexicon: str | None = Field(
        None,
        min_length=1,
        description="folder or URI with WordNet's database files (data.noun, …, cntlist.rev); absent: a built-in"
        " selection out of WordNet 3.0, reviewed pair by pair",
    )
    zh_lexicon: str | None = Field(
        None,
        min_length=1,
        description="Chinese: UTF-8 file or URI with one group of synonyms a line, or in the form of Cilin; absent: a"
        " built-in list",
    )
    keep: tuple[str, ...] = Field((), description="words that are never replaced, such as those a label depends on")
    answers: bool = Field(False, description="also replace words in the wanted answers")
    min_similarity: float = Field(
        0.2, ge=0, le=1, description="how alike old and new text must be: 0 no character in common, 1 the same"
    )


def external(params: Synonyms, project_dir: Path) -> dict[str, str]:
    """The content of the lexicons that the settings name."""
    named = {"lexicon": params.lexicon, "zh_lexicon": params.zh_lexicon}
    return {f"synonyms.{key}": fingerprint(uri, project_dir) for key, uri in named.items() if uri is not None}


def expand(pieces: pl.DataFrame, params: Synonyms, around: Around) -> pl.DataFrame:
    """The new rows. Raises data.wordnet, data.zh_lexicon and sources.* when a lexicon cannot be read."""
    english, chinese = _english(params, around), _chinese(params, around)
    kept = frozenset(word.casefold() for word in params.keep)
    wanted = zh_words.any_of(chinese)

    def change(members: Sequence[Piece], lots: Random) -> list[str] | None:
        new = [piece.text for piece in members]
        for place, piece in enumerate(members):
            if not is_changeable(piece, params.answers):
                continue
            edits = [
                *_english_edits(piece.text, english, params.min_tags),
                *_chinese_edits(piece.text, chinese, wanted),
            ]
            edits = [edit for edit in edits if piece.text[edit[0] : edit[1]].casefold() not in kept]
            text = _with_some(piece.text, edits, params.change, lots)
            new[place] = text if is_variant(piece.text, text, params.min_similarity, 1.0) else piece.text
        return new

    return expanded(pieces, params, around, params.use, change)


def _english(params: Synonyms, around: Around) -> wordnet.Lexicon:
    if params.lexicon is None:
        return wordnet.bundled()
    return wordnet.read(fetch(params.lexicon, around.cache, offline=around.offline, project_dir=around.project_dir))


def _chinese(params: Synonyms, around: Around) -> zh_words.Words:
    if params.zh_lexicon is None:
        return zh_words.bundled()
    return zh_words.read(fetch(params.zh_lexicon, around.cache, offline=around.offline, project_dir=around.project_dir))


def _with_some(text: str, edits: Sequence[Edit], share: float, lots: Random) -> str:
    """The text with synonyms at some of the places, chosen by lot."""
    most = max(1, int(_count_words(text) * share))
    order = sorted(range(len(edits)), key=lambda place: (lots.random(), place))
    chosen = [edits[place] for place in sorted(order[:most])]
    return replaced(text, [(start, end, options[int(lots.random() * len(options))]) for start, end, options in chosen])


def _count_words(text: str) -> int:
    return len(LATIN.findall(text)) + ceil(len(HAN.findall(text)) / HAN_PER_WORD)


def _english_edits(text: str, lexicon: wordnet.Lexicon, min_tags: int) -> Iterable[Edit]:
    for word in words_of(text, lexicon.words):
        entry = lexicon.words[word.text.lower()]
        if _is_name(word) or _is_term(word, lexicon) or not _fits(text, word, entry.pos):
            continue
        options = tuple(
            like(word.text, synonym)
            for synonym, tags in entry.synonyms
            if tags >= min_tags and _article_stays(word, synonym)
        )
        if options:
            yield word.start, word.end, options


def _is_name(word: Word) -> bool:
    """Capitals inside a sentence are names; so is a first word before another capital (Will Smith)."""
    if word.text.islower():
        return False
    return not word.begins or not word.text[1:].islower() or bool(word.after and word.after[:1].isupper())


def _is_term(word: Word, lexicon: wordnet.Lexicon) -> bool:
    """Whether the word and its neighbour are one term (big deal), which has no synonym by parts."""
    this = word.text.lower()
    pairs = {f"{word.before} {this}".lower(), f"{this} {word.after}".lower()}
    return not pairs.isdisjoint(lexicon.terms) or not pairs.isdisjoint(PHRASES)


def _fits(text: str, word: Word, pos: wordnet.Pos) -> bool:
    """Whether the words around show the part of speech, in a place where the synonym can stand as well."""
    before, after = (word.before or "").lower(), (word.after or "").lower()
    if pos == "verb":
        return after in OBJECTS and before not in NOT_BEFORE_VERB
    if pos == "adj":
        return after.isalpha() and after not in NOT_AFTER_ADJECTIVE
    if pos == "adv":
        if word.text.lower() in ONLY_BEFORE_COMMA:
            return text[word.end : word.end + 1] == ","
        return after not in NOT_AFTER_ADVERB
    return before not in ("more", "most", "very", "too", "to")


def _article_stays(word: Word, synonym: str) -> bool:
    """Whether `a` or `an` before the word is right before the synonym too; when the sound is unsure it is not."""
    if word.before is None or word.before.lower() not in ("a", "an"):
        return True
    unsure = synonym.startswith(UNSURE_SOUND) or word.text.lower().startswith(UNSURE_SOUND)
    return not unsure and (synonym[0] in VOWELS) == (word.before.lower() == "an")


def _chinese_edits(text: str, words: zh_words.Words, wanted: re.Pattern[str]) -> Iterable[Edit]:
    for start, word in zh_words.cut(text, wanted):
        if word in words:
            yield start, start + len(word), words[word]
