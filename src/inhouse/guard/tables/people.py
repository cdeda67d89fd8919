"""Surnames, given names and the words around them, from the lists beside this file."""

from __future__ import annotations

from functools import cache
from pathlib import Path

# Names that `replace` gives: the stems that Chinese law uses for persons who must not be named, and plain placeholders.
STEMS = "甲乙丙戊己庚壬癸"  # without 丁 and 辛, which are surnames
SURROGATE_SURNAMES = "赵钱孙李周吴郑王冯陈褚卫蒋沈韩杨朱秦尤许何吕张孔曹严金魏陶姜戚谢邹柏窦章苏潘葛范彭郎鲁韦马苗方"
_GIVEN = (
    "Alex Avery Blake Cameron Casey Dana Devon Drew Ellis Emery Finley Hayden Harper Jamie Jordan Kai Kendall Lane "
    "Logan Marley Morgan Parker Peyton Quinn Reese Riley Robin Rowan Sage Skyler Sydney Taylor"
)
SURROGATE_GIVEN = tuple(_GIVEN.split())
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
