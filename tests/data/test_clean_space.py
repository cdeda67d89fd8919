"""normalize_space: the compiled pass against the same rules as regular expressions."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inhouse.data.kernels import space
from inhouse.data.operators.around import Around
from inhouse.data.operators.normalize_space import NormalizeSpace, change

AROUND = Around(0, Path("."), Path("."), True)
PUNCTUATION = "，。！？；：、“”‘’（）《》【】—…·～％＋－０１２ＡＢ"
BLANKS = " \t\n\r\x0b\x0c\x85\xa0\u1680\u2003\u2028\u202f\u205f\u3000"
# The neighbours of white space in UTF-8: characters that begin with the same bytes.
NEAR = "ab中，。\x84\xa1\u1681\u200b\u2010\u2027\u2030\u3001あ\u2fff\x1f\x00"


def slow(text: str) -> str:
    """The rules one after the other."""
    text = re.sub("\r\n|[\r\x0b\x0c\x85\u2028\u2029]", "\n", text)
    text = re.sub("[\xa0\u1680\u2000-\u200a\u202f\u205f]", " ", text)
    text = re.sub("[ \t\u3000]+(\n|\\Z)", r"\1", text)
    text = re.sub("([^ \t\n\u3000])[ \t]{2,}", r"\1 ", text)
    return re.sub("\n{3,}", "\n\n", text).strip("\n")


def tidied(texts: list[str]) -> list[str]:
    return change(pl.DataFrame({"text": pl.Series(texts, dtype=pl.String)}), NormalizeSpace(), AROUND).to_list()


@settings(max_examples=500, deadline=None)
@given(st.lists(st.text(BLANKS + NEAR, max_size=16), max_size=6))
def test_normalize_space_agrees_with_a_slow_reference(texts: list[str]) -> None:
    found = tidied(texts)
    assert found == [slow(text) for text in texts]
    assert tidied(found) == found


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_normalize_space_changes_nothing_but_white_space(text: str) -> None:
    found = tidied([text])[0]
    assert Counter(found.replace(" ", "").split()) == Counter(slow(text).replace(" ", "").split())
    assert not any(unicodedata.category(c) in ("Zs", "Zl", "Zp") and c not in " \u3000" for c in found)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a\r\nb\rc\x85d", "a\nb\nc\nd"),
        ("one  two\t\tthree\u00a0 four", "one two three four"),
        ("one\ttwo", "one\ttwo"),
        ("line  \n\n\n\nnext \n", "line\n\nnext"),
        ("def f():\n    return  1", "def f():\n    return 1"),
        ("    indented first line", "    indented first line"),
        ("　　第一段　\n　　第二段", "　　第一段\n　　第二段"),
        ("甲　　乙", "甲　　乙"),
        (f"{PUNCTUATION} ", PUNCTUATION),
        (" \n\t\n　", ""),
        ("", ""),
    ],
)
def test_normalize_space_keeps_what_a_reader_sees(text: str, wanted: str) -> None:
    assert tidied([text]) == [wanted]


def test_normalize_space_leaves_its_input_and_null_alone() -> None:
    pieces = pl.DataFrame({"text": ["a  b", None, "fine"]})
    assert change(pieces, NormalizeSpace(), AROUND).to_list() == ["a b", None, "fine"]
    assert pieces["text"].to_list() == ["a  b", None, "fine"]
    assert change(pieces.clear(), NormalizeSpace(), AROUND).to_list() == []


def test_tidy_without_compiling_agrees_with_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("space_at", "easy_run", "run_at", "write_blanks", "write_run", "tidy_text"):
        monkeypatch.setattr(space, name, getattr(space, name).py_func)
    texts = [
        "a  b \t\r\n\n\n\u2003c\u3000d ",
        " \u3000x\t\ty\u00a0z",
        "\n\n e",
        "tidy\n\n    text",
        "\xa1\u30fb\u2014 \n",
    ]
    data = np.frombuffer("".join(texts).encode(), np.uint8)
    offsets = np.cumsum([0, *(len(text.encode()) for text in texts)])
    out = np.zeros(len(data), np.uint8)
    lengths, changed = space.tidy_texts.py_func(data, offsets, out)
    for text, start, size, touched in zip(texts, offsets, lengths, changed, strict=False):
        found = out[start : start + size].tobytes().decode() if touched else text
        assert (found, bool(touched)) == (slow(text), slow(text) != text)
