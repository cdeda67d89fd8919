"""Words and names that say whether a man or a woman is meant, and what stands for them the other way round."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import polars as pl

Gender = Literal["male", "female"]
Language = Literal["en", "zh"]
OTHER: dict[Gender, Gender] = {"male": "female", "female": "male"}
# Their counterpart depends on the words around (gender_en.py).
ENGLISH_FORMS: dict[str, Gender] = {"him": "male", "his": "male", "her": "female", "hers": "female", "miss": "female"}
NOT_HIM = "其他|吉他|维他命|利他|排他|他人|他乡|他国|他日|他杀"


@dataclass(frozen=True)
class Terms:
    """The terms of a language: which gender a word names, and its counterpart."""

    gender: dict[str, Gender]
    other: dict[str, str]


@cache
def terms(language: Language) -> Terms:
    """The terms of gender.tsv, in lower case."""
    genders: dict[str, Gender] = {}
    other: dict[str, str] = {}
    for kind, male, female in _lines("gender.tsv"):
        if kind != language:
            continue
        for word, opposite, gender in ((male, female, "male"), (female, male, "female")):
            if not word.endswith("<"):
                genders[word.rstrip(">")] = "male" if gender == "male" else "female"
                other[word.rstrip(">")] = opposite.rstrip("<>")
    return Terms(genders, other)


@cache
def names(language: Literal["en", "zh", "zh1"]) -> dict[str, Gender]:
    """Given names and whose they are."""
    found: dict[str, Gender] = {}
    for kind, gender, listed in _lines("names.tsv"):
        if kind == language:
            found |= dict.fromkeys(listed.split(), "male" if gender == "male" else "female")
    return found


@cache
def surnames() -> frozenset[str]:
    """Chinese surnames."""
    return frozenset(name for kind, _, listed in _lines("names.tsv") if kind == "surname" for name in listed.split())


def _lines(name: str) -> Iterator[list[str]]:
    for line in (Path(__file__).parent / name).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            yield line.split("\t")


def balance(docs: pl.DataFrame) -> pl.DataFrame:
    """How often each label's texts speak of men and of women: label, rows, male, female, male_share.

    `docs`: label (null for rows without one) and text. Counts words of gender.tsv and pronouns, no names;
    `male_share` = male / (male + female), null when there is neither. Compare the table before and after the step
    `counterfactual`, and across labels: a label whose share differs from the others' can be told by gender alone.
    """
    import polars as pl

    counted = docs.select("label", *[_count(gender).alias(gender) for gender in OTHER])
    return shares(counted.group_by("label").agg(pl.len().alias("rows"), pl.col("male", "female").sum()))


def shares(counts: pl.DataFrame) -> pl.DataFrame:
    """The counts (label, rows, male, female) with male_share, by label."""
    import polars as pl

    total = pl.col("male") + pl.col("female")
    share = pl.when(total > 0).then(pl.col("male") / total).alias("male_share")
    return counts.with_columns(share).sort("label", nulls_last=True)


def skew(table: pl.DataFrame) -> float | None:
    """The largest difference of `male_share` between two labels of a `balance`; None when fewer than two have one."""
    shares = [share for share in table["male_share"] if share is not None]
    return max(shares) - min(shares) if len(shares) > 1 else None


def _count(gender: Gender) -> pl.Expr:
    import polars as pl

    english, chinese = _patterns(gender)
    text = pl.col("text")
    found = text.str.count_matches(english).cast(pl.Int64) + text.str.count_matches(chinese)
    return found - text.str.count_matches(NOT_HIM) if gender == "male" else found


@cache
def _patterns(gender: Gender) -> tuple[str, str]:
    """What finds the terms of a gender: ASCII word boundaries, since Chinese text leaves no spaces around a word."""
    forms = {word for word, whose in (ENGLISH_FORMS | terms("en").gender).items() if whose == gender}
    # 女士 is only put in for 先生 and 小姐, but it names a woman wherever it stands.
    chinese = {word for word, whose in terms("zh").gender.items() if whose == gender}
    return rf"(?i)(?-u:\b)(?:{_either(forms)})(?-u:\b)", _either(chinese)


def _either(words: set[str]) -> str:
    return "|".join(sorted(map(re.escape, words), key=lambda word: (-len(word), word)))
