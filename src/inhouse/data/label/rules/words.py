"""Patterns for words that stand alone, right in text with and without spaces."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from inhouse.core.errors import UserError
from inhouse.data.scripts import UNSPACED, UNSPACED_CLASS

if TYPE_CHECKING:
    import polars as pl

# Letters of scripts that put spaces between words. An ordinary \b counts Chinese characters among them, and so
# misses every word that is glued to Chinese text.
SPACED = rf"[\p{{L}}\p{{N}}_--[{UNSPACED}]]"
WITHOUT_SPACES = re.compile(UNSPACED_CLASS)


def pattern_of(words: tuple[str, ...]) -> str:
    """One pattern that finds any of the words in either case; a word of a spaced script only as a whole word."""
    groups: dict[tuple[bool, bool], list[str]] = {}  # the boundary is a large class: once a group, not once a word
    for word in words:
        groups.setdefault((_spaced(word[0]), _spaced(word[-1])), []).append(_escaped(word))
    found = []
    for (before, after), members in sorted(groups.items()):
        start = rf"(?:\A|[^{SPACED}])" if before else ""
        end = rf"(?:\z|[^{SPACED}])" if after else ""
        found.append(f"{start}(?:{'|'.join(members)}){end}")
    return "(?i)" + "|".join(found)


def _spaced(character: str) -> bool:
    return (character.isalnum() or character == "_") and not WITHOUT_SPACES.match(character)


def _escaped(word: str) -> str:
    """The word as itself; any white space in it stands for any other."""
    return r"\s+".join(re.sub(r"([\\.+*?()|\[\]{}^$#&\-~])", r"\\\1", part) for part in word.split())


def holding(texts: pl.Series, pattern: str) -> pl.Series:
    """Which texts hold a match. Raises label.pattern for a pattern that cannot be read."""
    import polars as pl

    try:
        return texts.str.contains(pattern, strict=True)
    except pl.exceptions.ComputeError as error:
        raise UserError("label.pattern", pattern=pattern, problem=" ".join(str(error).split())[-200:]) from None
