"""Chinese words: where they begin and end in a text, and which may stand for each other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

from inhouse.core.errors import UserError
from inhouse.data.scripts import HAN_CLASS
from inhouse.data.segment import chinese_words

HAN_RUN = re.compile(f"{HAN_CLASS}+")
CILIN = re.compile(r"[A-Z][a-z]\d\d[A-Z]\d\d[=#@]")  # the codes of Tongyici Cilin
Words = Mapping[str, tuple[str, ...]]


@cache
def bundled() -> Words:
    """The groups beside this file."""
    return groups_of((Path(__file__).parent / "zh_synonyms.txt").read_text(encoding="utf-8").splitlines())


@cache
def read(path: Path) -> Words:
    """The groups of a file in the form of zh_synonyms.txt or of Cilin. Raises data.zh_lexicon."""
    try:
        found = groups_of(path.read_text(encoding="utf-8-sig").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("data.zh_lexicon", path=path, problem=str(error)) from error
    if not found:
        raise UserError("data.zh_lexicon", path=path, problem="no group of two Chinese words or more")
    return found


def groups_of(lines: Iterable[str]) -> Words:
    """What may stand for a word, from lines `word word … > only put in …`, # before a remark.

    Lines of Cilin begin with a code: only groups marked = (the same) are taken, not # (related) and @ (alone).
    """
    found: dict[str, tuple[str, ...]] = {}
    for line in lines:
        code, _, rest = line.strip().partition(" ")
        if line.startswith("#") or (CILIN.fullmatch(code) and not code.endswith("=")):
            continue
        both, _, only_in = (rest if CILIN.fullmatch(code) else line).partition(">")
        words = [word for word in both.split() if HAN_RUN.fullmatch(word)]
        others = [word for word in only_in.split() if HAN_RUN.fullmatch(word)]
        for word in words:
            there = found.get(word, ())
            new = [other for other in (*words, *others) if other != word and other not in there]
            if new:
                found[word] = (*there, *new)
    return found


def runs(text: str, wanted: re.Pattern[str]) -> Iterator[tuple[int, str]]:
    """Every run of Chinese characters that holds a wanted word, with its place. Others need not be cut."""
    for match in HAN_RUN.finditer(text):
        if wanted.search(match.group()):
            yield match.start(), match.group()


def cut_runs(text: str, wanted: re.Pattern[str]) -> Iterator[tuple[int, list[str]]]:
    """The words of every run that holds a wanted one, and where the run begins."""
    for start, run in runs(text, wanted):
        yield start, chinese_words(run, guess=False)


def cut(text: str, wanted: re.Pattern[str]) -> Iterator[tuple[int, str]]:
    """The words of the runs that hold a wanted one, each with its place."""
    for start, words in cut_runs(text, wanted):
        for word in words:
            yield start, word
            start += len(word)


def any_of(words: Iterable[str]) -> re.Pattern[str]:
    """A pattern that finds any of the words, the longest first."""
    return re.compile("|".join(sorted(map(re.escape, words), key=lambda word: (-len(word), word))) or r"(?!)")
