"""Surnames, given names and the words around them, from the lists beside this file."""

from __future__ import annotations

from functools import cache
from pathlib import Path

# Names that `replace` gives: the stems that Chinese law uses for persons who must not be named, and plain placeholders.
STEMS = "甲乙丙丁戊己庚辛壬癸"
SURROGATE_SURNAMES = "赵钱孙李周吴郑王冯陈褚卫蒋沈韩杨朱秦尤许"
SURROGATE_GIVEN = (
    "Alex",
    "Blake",
    "Casey",
    "Dana",
    "Drew",
    "Ellis",
    "Finley",
    "Harper",
    "Kai",
    "Lane",
    "Quinn",
    "Reese",
)
SURROGATE_FAMILY = ("Sample", "Specimen", "Placeholder", "Exemplar", "Anyone", "Someone", "Nobody", "Testcase")


@cache
def words(section: str) -> frozenset[str]:
    """A section of people.txt: surnames, common (the hundred commonest), given (characters), after_name (characters
    that may follow a name in running text), compound, not_names, titles_alone, english_given, pinyin_surnames,
    not_english."""
    return _sections()[section]


@cache
def _sections() -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    for block in (Path(__file__).parent / "people.txt").read_text(encoding="utf-8").split("\n[")[1:]:
        name, _, body = block.partition("]\n")
        found[name.removesuffix(":")] = frozenset(body.replace("\n", "") if name.endswith(":") else body.split())
    return found
