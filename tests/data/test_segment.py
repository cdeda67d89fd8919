"""Words and scripts: one definition of Chinese characters, and one cutter, which keeps nothing in a shared folder."""

from __future__ import annotations

import marshal
import os
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import polars as pl
import pytest

from inhouse.data import scripts
from inhouse.data.augment import HAN
from inhouse.data.lexicons import zh_words
from inhouse.data.segment import chinese_words

# Letters and numbers that the oldest supported Python knows.
CHARACTERS = [
    chr(code)
    for code in range(sys.maxunicode + 1)
    if not 0xD800 <= code < 0xE000 and unicodedata.category(chr(code))[0] in "LN"
]
GUESSED = ["他", "来到", "了", "网易", "杭研", "大厦"]
KNOWN = ["他", "来到", "了", "网易", "杭", "研", "大厦"]
CUT = """
import polars as pl
from inhouse.data.lexicons import zh_words
from inhouse.data.segment import words_of
text = "他来到了网易杭研大厦"
print(words_of(pl.Series([text]))["word"].to_list(), end=" ")
print([word for _, word in zh_words.cut(text, zh_words.any_of(["大厦"]))])
"""


@pytest.mark.parametrize(
    ("pattern", "characters"),
    [(scripts.HAN, scripts.HAN_CLASS), (scripts.UNSPACED, scripts.UNSPACED_CLASS)],
    ids=["han", "unspaced"],
)
def test_both_kinds_of_patterns_know_the_same_characters(pattern: str, characters: str) -> None:
    texts = pl.Series(CHARACTERS)
    by_polars = set(texts.filter(texts.str.contains(f"[{pattern}]")).to_list())
    assert {char for char in CHARACTERS if re.match(characters, char)} == by_polars


def test_every_step_takes_the_same_characters_for_chinese() -> None:
    for char in "〇々㐀中\u9fff\uf900\U00020000":
        assert HAN.match(char)
        assert zh_words.HAN_RUN.fullmatch(f"中{char}")


def test_cutting_writes_nothing_and_reads_nothing_from_the_shared_folder(tmp_path: Path) -> None:
    planted = tmp_path / "jieba.cache"
    planted.write_bytes(marshal.dumps(({"他来到了": 10**9, "他": 0, "他来": 0, "他来到": 0}, 10**9)))
    before = planted.read_bytes()
    env = {**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(tmp_path))}
    done = subprocess.run([sys.executable, "-c", CUT], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{GUESSED} {KNOWN}"
    assert [path.name for path in tmp_path.iterdir()] == ["jieba.cache"]
    assert planted.read_bytes() == before


def test_words_that_the_dictionary_lacks_are_guessed_only_where_asked() -> None:
    assert chinese_words("".join(KNOWN), guess=True) == GUESSED
    assert chinese_words("".join(KNOWN), guess=False) == KNOWN
