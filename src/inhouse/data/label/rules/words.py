"""Patterns for words that stand alone, right in text with and without spaces."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from inhouse.core.errors import UserError

if TYPE_CHECKING:
    import polars as pl

# Letters of scripts that put spaces between words. An ordinary \b counts Chinese characters among them, and so
# misses every word that is glued to Chinese text.
SPACED = r"[\p{L}\p{N}_--[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]]"
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
    "\uf900-\ufaff\U00020000-\U0003ffff]"
)


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
    return (character.isalnum() or character == "_") and not UNSPACED.match(character)


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
