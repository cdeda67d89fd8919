"""fix_text: equal to ftfy where it repairs encodings, and careful with everything else."""

from __future__ import annotations

import random
import re
import unicodedata
from pathlib import Path
from typing import Any

import ftfy
import polars as pl
import pytest
from ftfy.badness import is_bad
from hypothesis import given, settings
from hypothesis import strategies as st
from truth_mojibake import DAMAGES, cases, clean

from inhouse.data.kernels import damage
from inhouse.data.kernels.buffers import flat
from inhouse.data.operators.around import Around
from inhouse.data.operators.fix_text import FixText, change

AROUND = Around(0, Path("."), Path("."), True)
FAMILY = "👨‍👩‍👧"
FULL = re.compile("[Ａ-Ｚａ-ｚ０-９]")
STRAY = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufdd0-\ufdef\ufeff\ufff9-\ufffc"
    "\ufffe\uffff\U000e0000-\U000e007f]"
)
SCOTLAND = "🏴󠁧󠁢󠁳󠁣󠁴󠁿"


def pieces_of(texts: list[str | None]) -> pl.DataFrame:
    rows = pl.Series("row", range(10, 10 + len(texts)), dtype=pl.UInt64)
    return pl.DataFrame([rows, pl.Series("text", texts, dtype=pl.String)]).with_columns(
        pl.lit(0, pl.UInt32).alias("slot"), pl.lit("text").alias("name"), pl.lit(False).alias("answer")
    )


def fixed(text: str, **params: Any) -> tuple[str, str]:
    texts, notes = change(pieces_of([text]), FixText(**params), AROUND)
    return texts[0], notes["fixed"][0] if notes.height else ""


def repair_encoding(texts: list[str]) -> list[str]:
    """The texts with wrong decodings undone: those that the one pass suspects are handed to ftfy, as the step does."""
    places = (damage.look(*flat(pl.Series(texts)), *damage.tables()) & damage.WRONG).nonzero()[0].tolist()
    found = list(texts)
    for place in places:
        found[place] = ftfy.fix_encoding(texts[place])
    return found


def test_encoding_repair_of_a_mojibake_set_equals_ftfy() -> None:
    made = cases(seed=5, count=2800)
    damaged = [text for text, _, _ in made]
    found = repair_encoding(damaged)
    assert found == [ftfy.fix_encoding(text) for text in damaged]
    touched = {name for (text, _, name), new in zip(made, found, strict=True) if text != new}
    assert len(touched) >= len(DAMAGES) - 4  # the set is not one that leaves ftfy idle
    back = {name for (text, good, name), new in zip(made, found, strict=True) if text != good == new}
    assert {"latin-1", "cp1252", "cp1251", "doubled", "spaced"} <= back


def test_encoding_repair_leaves_clean_text_alone() -> None:
    texts = clean(seed=6, count=2000)
    assert repair_encoding(texts) == texts


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.text(
            st.one_of(
                st.sampled_from(
                    "ÂÃÎÐØÙâãàçœŒ€£©®™«»„“”‘’ ­°±²³µ¼×вЂГРСΒΓâ… \t\n\x1c\x1fabzA.,?!²߀"
                    "\u0301\u1161가Ａ１\u09be\U000e0041\U000110ba"
                ),
                st.characters(codec="utf-8"),
            ),
            max_size=12,
        ),
        max_size=8,
    )
)
def test_the_one_pass_misses_nothing_that_the_repairs_would_change(texts: list[str]) -> None:
    found = damage.look(*flat(pl.Series(texts, dtype=pl.String)), *damage.tables())
    for text, flags in zip(texts, found, strict=True):
        assert flags & damage.WRONG or not is_bad(text)
        assert flags & damage.STRAY or not STRAY.search(text)
        assert flags & damage.APART or unicodedata.is_normalized("NFC", text)
        assert flags & damage.FULL or not FULL.search(text)


def test_the_one_pass_suspects_little_besides_the_damage() -> None:
    texts = [text for text, _, _ in cases(seed=9, count=700)] + clean(seed=9, count=700)
    found = damage.look(*flat(pl.Series(texts)), *damage.tables()) & damage.WRONG
    bad = [is_bad(text) for text in texts]
    assert all(flag or not wrong for flag, wrong in zip(found, bad, strict=True))
    assert sum(map(bool, found)) <= 1.1 * sum(bad)


def test_no_pair_of_ascii_characters_is_suspect() -> None:  # the pass does not look at them
    classes, _, (first, second) = damage.tables()
    assert not any(first[a] & second[b] for a in classes[:128] for b in classes[:128])


@pytest.mark.parametrize(
    ("text", "wanted", "codes"),
    [
        ("schÃ¶n", "schön", "encoding"),
        ("a\r\nb\rc\x0cd\u2028e", "a\nb\nc\nd\ne", "line_ends"),
        ("a\x00b\x1fc\x7f", "abc", "control"),
        ("\ufeffa\u2060b\ufffc\xadc", "abc", "invisible"),
        ("cafe\u0301 Å", "café Å", "nfc"),
        ("\ufeffcafe\u0301\r\n", "café\n", "line_ends+invisible+nfc"),
        ("a\u200bb c\u200dd 中\u200d文\u200c", "ab cd 中文", "invisible"),
        ("abc\u200e \u202eevil\u202c", "abc evil", "invisible"),
        ("hi\U000e0068\U000e0069", "hi", "invisible"),
        ("ok", "ok", ""),
    ],
)
def test_fix_text_repairs_damage_and_says_what(text: str, wanted: str, codes: str) -> None:
    assert fixed(text) == (wanted, codes)


@pytest.mark.parametrize(
    "text",
    [
        "２０２６年，（甲）：“引号”‘单’《书》……——、。！？；％￥　段",
        "“curly” ‘quotes’ \"straight\" 'ones' — … ﬁ ½ ²",
        "می‌خواهم",  # Persian, U+200C between a prefix and its verb
        "क्‍ष श्री",  # Devanagari, U+200D for a half form
        "ภาษา\u200bไทย",  # Thai, U+200B between words
        f"{FAMILY} ❤️‍🔥 {SCOTLAND} 1️⃣",
        "עברית \u200f(א)\u200f",
        "葛\U000e0100城市",  # a variation selector of Han
        "tab\tand\nnew line &amp; <b> \ufffd",
        "",
    ],
)
def test_fix_text_keeps_what_carries_meaning(text: str) -> None:
    assert fixed(text) == (text, "")


def test_fix_text_notes_name_pieces_and_never_text() -> None:
    pieces = pieces_of(["fine", "schÃ¶n", None, "a\x00"]).with_columns(slot=pl.Series([0, 0, 1, 2], dtype=pl.UInt32))
    before = pieces.clone()
    texts, notes = change(pieces, FixText(), AROUND)
    assert pieces.equals(before)
    assert texts.to_list() == ["fine", "schön", None, "a"]
    assert notes.rows() == [(11, 0, "encoding"), (13, 2, "control")]
    assert notes.schema == {"row": pl.UInt64, "slot": pl.UInt32, "fixed": pl.String}


def test_fix_text_finds_damage_that_an_invisible_character_hid() -> None:
    assert fixed("sch\u200bÃ\u200b¶n") == ("schön", "invisible+encoding")


def test_fix_text_a_second_time_changes_nothing() -> None:
    r = random.Random(1)
    letters = "ÂÃÎÐâãàç€£©®™“”‘’\xa0\xad°±²³µ¼×вЂГРСΒΓ… \t\n\x1cabz.,\u200b\u200d\u0301é\ufeff¶¨"
    texts: list[str | None] = ["".join(r.choices(letters, k=r.randrange(3, 14))) for _ in range(5000)]
    once, _ = change(pieces_of(texts), FixText(), AROUND)
    twice, notes = change(pieces_of(once.to_list()), FixText(), AROUND)
    assert once.equals(twice) and notes.is_empty()


def test_fix_text_options_do_only_what_they_say() -> None:
    assert fixed("&lt;b&gt; &amp; &eacute;", html_entities=True) == ("<b> & é", "entities")
    assert fixed("schÃ¶n", encoding=False) == ("schÃ¶n", "")
    assert fixed("Ａｂ１２，（。！", width="half") == ("Ab12，（。！", "width")


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=30))
def test_fix_text_leaves_no_control_character_and_is_composed(text: str) -> None:
    found, codes = fixed(text)
    assert unicodedata.is_normalized("NFC", found)
    assert not any(unicodedata.category(c) == "Cc" and c not in "\n\t" for c in found)
    assert (found != text) == (codes != "")


def test_fix_text_of_no_rows_gives_none() -> None:
    texts, notes = change(pieces_of([]), FixText(), AROUND)
    assert len(texts) == notes.height == 0
