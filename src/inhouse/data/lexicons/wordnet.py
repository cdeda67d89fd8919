"""Synonyms out of WordNet's database files, only where no part of speech and no sense has to be guessed.

Reads the files of WordNet 3.x (data.*, index.*, *.exc and cntlist.rev; formats: wndb(5WN), cntlist(5WN)), which
Debian's package wordnet-base and NLTK's corpus carry alike. A word is taken when nearly all its occurrences in
WordNet's tagged texts are one part of speech, and most of them its first sense; a synonym when that sense is its
first one too. Inflected forms are paired with the same form of the synonym.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, get_args

from inhouse.core.errors import UserError
from inhouse.data.augment import listed

Pos = Literal["noun", "verb", "adj", "adv"]
NUMBERS: dict[Pos, str] = {"noun": "1", "verb": "2", "adj": "3", "adv": "4"}
PLAIN = re.compile(r"[a-z]{3,}")
PAIR = re.compile(r"[a-z]+_[a-z]+")
# WordNet has no prepositions, conjunctions and pronouns: these look like sure adverbs and nouns in it, and are not.
CLOSED = listed(
    "about above across after again all along another any around as away before behind being below beneath beside"
    " between beyond both but by down each either else even ever every except given here in inside just least less"
    " like minus more most much near neither never no not off on once one only other outside over own past per plus"
    " round same since so some still such than that then there through to under up via when yet someone person"
)
LEAST_TAGS = 3  # of a word or a synonym in the sense: WordNet tags rare senses not at all
OTHER_POS = 0.02  # share of a word's tags that another part of speech may have
FIRST_SENSE = 0.6  # share of a word's tags that its first sense must have
OF_SYNONYM = 0.6  # the same of a synonym, over all its parts of speech
UNSURE_PLURAL = ("ics", "ss", "is", "och", "arch", "omach", "man", "o", "f", "fe")
NO_DOUBLING = re.compile(r"[aeiou]{2}[^aeiou]$|[^aeiou]{2}$|[aeiouwxy]$")


@dataclass(frozen=True, slots=True)
class Entry:
    """What may stand for a word: its part of speech, its tags in that sense, and synonyms with theirs."""

    pos: Pos
    tags: int
    synonyms: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Lexicon:
    """Entries by lower-case word, and pairs of words that are one term and stay as they are."""

    words: Mapping[str, Entry]
    terms: frozenset[str]


@cache
def bundled() -> Lexicon:
    """The table beside this file: words out of WordNet 3.0 whose synonyms were reviewed one by one."""
    lines = (Path(__file__).parent / "en_synonyms.tsv").read_text(encoding="utf-8").splitlines()
    return parsed(line for line in lines if not line.startswith("#"))


def parsed(lines: Iterable[str]) -> Lexicon:
    """The lexicon that `lines_of` wrote."""
    words: dict[str, Entry] = {}
    terms: set[str] = set()
    for line in lines:
        word, pos, *rest = line.split("\t")
        if pos == "term":
            terms.add(word)
            continue
        pairs = (pair.split(":") for pair in rest[1].split())
        words[word] = Entry(_pos(pos), int(rest[0]), tuple((synonym, int(tags)) for synonym, tags in pairs))
    return Lexicon(words, frozenset(terms))


def lines_of(lexicon: Lexicon) -> Iterator[str]:
    """The lexicon as lines `word TAB part of speech TAB tags TAB synonym:tags …`, and `term TAB term`."""
    for word, entry in sorted(lexicon.words.items()):
        yield f"{word}\t{entry.pos}\t{entry.tags}\t{' '.join(f'{s}:{n}' for s, n in entry.synonyms)}"
    for term in sorted(lexicon.terms):
        yield f"{term}\tterm"


def _pos(name: str) -> Pos:
    return next(pos for pos in get_args(Pos) if pos == name)


@cache
def read(folder: Path) -> Lexicon:
    """The lexicon of a folder with WordNet's files. Raises data.wordnet when they are missing or of another form."""
    try:
        return lexicon_of(_Database(folder))
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise UserError("data.wordnet", path=folder, problem=f"{type(error).__name__}: {error}") from error


class _Database:
    """WordNet's files in memory."""

    def __init__(self, folder: Path) -> None:
        self.senses: dict[tuple[str, Pos], list[str]] = {}  # offsets, the most frequent first
        self.synsets: dict[tuple[Pos, str], list[str]] = {}
        self.tags = _tags(folder / "cntlist.rev")
        self.irregular: dict[Pos, dict[str, list[str]]] = {}
        self.parts: dict[str, set[Pos]] = defaultdict(set)
        self.total: Counter[str] = Counter()
        self.of_pos: Counter[tuple[str, Pos]] = Counter()
        for pos in NUMBERS:
            self._read(folder, pos)
        for (word, pos, _), count in self.tags.items():
            self.total[word] += count
            self.of_pos[word, pos] += count

    def _read(self, folder: Path, pos: Pos) -> None:
        for line in _lines(folder / f"index.{pos}"):
            fields = line.split()
            self.senses[fields[0], pos] = fields[6 + int(fields[3]) :]
            self.parts[fields[0]].add(pos)
        for line in _lines(folder / f"data.{pos}"):
            offset, _, _, count, rest = line.split(" ", 4)
            self.synsets[pos, offset] = rest.split(" ", 2 * int(count, 16))[: 2 * int(count, 16) : 2]
        self.irregular[pos] = defaultdict(list)
        for line in _lines(folder / f"{pos}.exc"):
            form, *lemmas = line.split()
            for lemma in lemmas:
                self.irregular[pos][lemma].append(form)

    def entry(self, word: str, pos: Pos, other_pos: float = OTHER_POS, first: float = FIRST_SENSE) -> Entry | None:
        """The word's entry, None when its sense or part of speech would have to be guessed."""
        tags, there = self.tags[word, pos, 1], self.of_pos[word, pos]
        if tags < LEAST_TAGS or tags < first * there or self.total[word] - there > other_pos * self.total[word]:
            return None
        sense = self.senses[word, pos][0]
        found = []
        for synonym in self.synsets[pos, sense]:
            same = self.senses.get((synonym, pos), [""])[0] == sense
            often = self.tags[synonym, pos, 1]
            if synonym == word or not same or not PLAIN.fullmatch(synonym) or synonym in CLOSED:
                continue
            if often >= LEAST_TAGS and often >= OF_SYNONYM * self.total[synonym]:
                found.append((synonym, often))
        return Entry(pos, tags, tuple(sorted(found, key=lambda item: (-item[1], item[0])))) if found else None


def _lines(path: Path) -> Iterator[str]:
    """The lines of a file less its licence, which stands before the data and is indented."""
    with path.open(encoding="utf-8") as f:
        for line in f:
            if line.strip() and not line.startswith(" "):
                yield line


def _tags(path: Path) -> Counter[tuple[str, Pos, int]]:
    """How often each sense stands in WordNet's tagged texts, by (word, part of speech, number of the sense)."""
    by_number: dict[str, Pos] = {number: pos for pos, number in NUMBERS.items()} | {"5": "adj"}
    counts: Counter[tuple[str, Pos, int]] = Counter()
    for line in _lines(path):
        key, sense, tags = line.split()
        word, _, rest = key.partition("%")
        counts[word, by_number[rest[0]], int(sense)] += int(tags)
    return counts


def lexicon_of(database: _Database) -> Lexicon:
    """Every word with a sure sense and synonyms of the same first sense, in all its regular forms."""
    words: dict[str, Entry] = {}
    verbal = _verb_forms(database)
    for word, pos in database.senses:
        entry = database.entry(word, pos) if PLAIN.fullmatch(word) and word not in CLOSED else None
        if entry is not None and (pos == "verb" or word not in verbal):
            for form, inflected in _inflected(database, word, entry):
                words.setdefault(form, inflected)
    terms = {word.replace("_", " ") for word, _ in database.senses if PAIR.fullmatch(word)}
    return Lexicon(words, frozenset(term for term in terms if any(word in words for word in term.split())))


def _verb_forms(database: _Database) -> set[str]:
    """Inflected forms of verbs: as an adjective or noun (needed, works) such a word is unsure."""
    found: set[str] = set()
    for word, pos in database.senses:
        if pos == "verb" and PLAIN.fullmatch(word):
            irregular = database.irregular[pos].get(word, [])
            found.update(irregular, forms(word, pos, irregular).values())
    return found


def _inflected(database: _Database, word: str, entry: Entry) -> Iterator[tuple[str, Entry]]:
    """The word and its forms, each with the same form of the synonyms."""
    yield word, entry
    own = forms(word, entry.pos, database.irregular[entry.pos].get(word, ()))
    others = [(forms(s, entry.pos, database.irregular[entry.pos].get(s, ())), tags) for s, tags in entry.synonyms]
    for kind, form in own.items():
        pairs = tuple((other[kind], tags) for other, tags in others if kind in other)
        # A form that is a word of its own (works, building) may mean that word.
        alone = entry.pos == "verb" or not database.parts.get(form)
        if pairs and alone and form != word:
            yield form, Entry(entry.pos, entry.tags, pairs)


def forms(word: str, pos: Pos, irregular: Iterable[str] = ()) -> dict[str, str]:
    """The inflected forms of a word by kind (plural, s, ing, ed); kinds that cannot be told for sure are left out."""
    odd = list(irregular)
    if pos == "noun":
        return {} if odd or word.endswith(UNSURE_PLURAL) else {"plural": _with_s(word)}
    if pos != "verb":
        return {}
    ing = [form for form in odd if form.endswith("ing")]
    past = [form for form in odd if not form.endswith(("ing", "s"))]
    found = {"s": _with_s(word)}
    if len(ing) == 1 or (not ing and _keeps_its_end(word, past)):
        found["ing"] = ing[0] if ing else _joined(word, "ing")
    if (len(past) == 1 and past[0].endswith("ed")) or (not past and _keeps_its_end(word, ing)):
        found["ed"] = past[0] if past else _joined(word, "ed")
    return found


def _keeps_its_end(word: str, odd: list[str]) -> bool:
    """Whether -ed and -ing are put on without doubling: sure for most ends, else when the list has no odd form."""
    return bool(NO_DOUBLING.search(word)) or not odd


def _with_s(word: str) -> str:
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


def _joined(word: str, end: str) -> str:
    if end == "ed" and word.endswith("e"):
        return word + "d"
    if end == "ed" and word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ied"
    if end == "ing" and word.endswith("e") and not word.endswith(("ee", "ye", "oe", "ie")):
        return word[:-1] + "ing"
    return word[:-2] + "ying" if end == "ing" and word.endswith("ie") else word + end
