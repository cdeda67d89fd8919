"""length and truncate, against counting by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inhouse.data.kernels import space
from inhouse.data.kernels.buffers import flat
from inhouse.data.operators import length, truncate
from inhouse.data.operators.around import Around
from inhouse.data.operators.length import Length
from inhouse.data.operators.truncate import Truncate

AROUND = Around(0, Path("."), Path("."), True)
TEXT = "ab 中。\n\t\u00a0\u00a1\u2003\u2014\u3000\u3001\u0085"


def figures(texts: list[str]) -> pl.DataFrame:
    return length.measure(pl.DataFrame({"text": pl.Series(texts, dtype=pl.String)}), Length(), AROUND)


def cut(text: str, answer: bool = False, **limits: Any) -> str:
    pieces = pl.DataFrame({"text": [text], "answer": [answer]})
    return truncate.change(pieces, Truncate(**limits), AROUND)[0]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(TEXT, max_size=16), max_size=5))
def test_length_agrees_with_counting_by_hand(texts: list[str]) -> None:
    found = figures(texts)
    assert found["words"].to_list() == [len(text.split()) for text in texts]
    assert found["chars"].to_list() == [len(text) for text in texts]
    slow = space.count_words.py_func(*flat(pl.Series(texts, dtype=pl.String)))
    assert slow.tolist() == found["words"].to_list()


@settings(max_examples=100, deadline=None)
@given(st.text("ab 中\n", min_size=1, max_size=12), st.integers(1, 4), st.integers(4, 8))
def test_length_drops_what_is_out_of_range(text: str, least: int, most: int) -> None:
    def reason(**limits: int) -> str | None:
        return length.drop_reason(figures([text]), Length(**limits))[0]

    words, chars = len(text.split()), len(text)
    assert reason(min_words=least, max_words=most) == (
        "too_short" if words < least else "too_long" if words > most else None
    )
    assert reason(min_chars=least, max_chars=most) == (
        "too_short" if chars < least else "too_long" if chars > most else None
    )


@settings(max_examples=100, deadline=None)
@given(st.text("ab 中\n", max_size=30), st.integers(1, 5))
def test_truncate_keeps_the_first_words(text: str, limit: int) -> None:
    found = cut(text, max_words=limit)
    assert found.split() == text.split()[:limit]
    assert text.startswith(found)


def test_truncate_cuts_chinese_by_characters_and_never_an_answer() -> None:
    assert cut("银行下调了利率", max_chars=4) == "银行下调"
    assert cut("银行 下调", max_chars=3) == "银行"
    assert cut("a b c", answer=True, max_words=1) == "a b c"


@pytest.mark.parametrize(
    ("params", "limits"),
    [(Truncate, {}), (Length, {"min_words": 3, "max_words": 2}), (Length, {"min_chars": 3, "max_chars": 2})],
)
def test_limits_that_make_no_sense_are_refused(params: type[Any], limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        params(**limits)
