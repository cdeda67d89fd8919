"""Repair damaged text: wrong decodings, control and invisible characters, line ends, decomposed letters."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Set
from functools import cache
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from inhouse.core.params import Params
from inhouse.core.plugins import require
from inhouse.data.operators.around import Around

if TYPE_CHECKING:
    import polars as pl

SHAPE = "map"
ROUNDS = 4  # a character that is taken out may have hidden a wrong decoding

RESULT_DEPENDS_ON = ("ftfy",)
LINE_ENDS = ("\r\n", "\r", "\x0b", "\x0c", "\x85", "\u2028", "\u2029")
CONTROLS = frozenset(map(chr, (*range(9), *range(0x0E, 0x20), *range(0x7F, 0xA0))))
# Not for interchange, or without a meaning in plain text: soft hyphen, word joiner and invisible operators, deprecated
# format controls, the byte order mark, interlinear annotation, noncharacters. U+FFFD stays: it shows a loss.
JUNK = frozenset("\xad\ufeff\ufffe\uffff") | frozenset(
    map(chr, (*range(0x2060, 0x2065), *range(0x206A, 0x2070), *range(0xFFF9, 0xFFFD), *range(0xFDD0, 0xFDF0)))
)
# Marks that order text from right to left mean something beside such letters only; the overrides (Trojan Source,
# CVE-2021-42574) nowhere.
DIRECTION = frozenset("\u200e\u200f\u061c")
OVERRIDES = frozenset(map(chr, (*range(0x202A, 0x202F), *range(0x2066, 0x206A))))
RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdcf\ufdf0-\ufdff\ufe70-\ufefc]")
# U+200B marks words where a script writes none: Thai, Lao, Tibetan, Myanmar, Khmer and their kin.
UNSPACED = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\uaa60-\uaadf"
NO_WIDTH = re.compile(f"(?<![{UNSPACED}])\u200b|\u200b(?![{UNSPACED}])")
WIDTHLESS = frozenset("\u200b\u200c\u200d")
# U+200C and U+200D choose letter forms in Arabic, Persian, Indic, Mongolian and South-East Asian scripts; U+200D joins
# emoji. The bare joiner is noise everywhere else.
SHAPED = f"\u0600-\u08ff\u0900-\u0dff{UNSPACED}\u1800-\u18af\u1b00-\u1bbf\ua8e0-\ua8ff\ufb50-\ufdcf\ufe70-\ufefc"
JOINABLE = "\ufe0f\u2190-\u21ff\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff\U000e0020-\U000e007f"
JOINERS = re.compile(f"(?<![{SHAPED}{JOINABLE}])[\u200c\u200d]|(?<![{SHAPED}])\u200c")
# Tag characters spell flags behind a black flag; anywhere else they hide text from readers but not from models.
FLAG = "\U0001f3f4[\U000e0020-\U000e007e]+\U000e007f"
TAGS = re.compile(f"({FLAG})|[\U000e0000-\U000e007f]")
HALF = {code: code - 0xFEE0 for code in (*range(0xFF10, 0xFF1A), *range(0xFF21, 0xFF3B), *range(0xFF41, 0xFF5B))}
ENTITY = r"&#?[0-9A-Za-z]{1,24};"


class FixText(Params):
    """Repair encodings (mojibake), control and invisible characters and line ends; compose letters (NFC).

    Punctuation, quotes and full-width forms are never changed, unless `width: half` asks for ASCII letters and digits.
    """

    use: Literal["fix_text"] = "fix_text"
    encoding: bool = Field(True, description="undo wrong decodings such as 'schÃ¶n' for 'schön', as ftfy does")
    html_entities: bool = Field(False, description="replace HTML entities such as &amp; by their characters")
    width: Literal["keep", "half"] = Field(
        "keep", description="half: full-width ASCII letters and digits (Ａ１) become plain; punctuation never changes"
    )


def change(pieces: pl.DataFrame, params: FixText, around: Around) -> tuple[pl.Series, pl.DataFrame]:
    """The repaired texts, and what was repaired in which piece: row, slot, fixed (codes joined by '+')."""
    require("data", "ftfy", "numba")
    import polars as pl

    texts = pieces["text"].clone()  # scatter writes in place
    fixed: dict[int, list[str]] = {}
    places = list(range(len(texts)))
    for _ in range(ROUNDS):
        mended = _mended(texts.gather(places), params)
        if not mended:
            break
        places = [places[at] for at in mended]
        texts.scatter(places, [text for text, _ in mended.values()])
        for place, (_, codes) in zip(places, mended.values(), strict=True):
            known = fixed.setdefault(place, [])
            known += [code for code in codes if code not in known]
    where = sorted(fixed)
    noted = pl.Series("fixed", ["+".join(fixed[place]) for place in where], dtype=pl.String)
    return texts, pieces.select("row", "slot")[where].with_columns(noted)


def _mended(texts: pl.Series, params: FixText) -> dict[int, tuple[str, list[str]]]:
    """The texts that one round of repairs changes, by place, and what was done to each."""
    texts = texts.clone()
    found: dict[int, tuple[str, list[str]]] = {}
    for places, repair in _steps(texts, params):
        done = [(place, *repair(text)) for place, text in zip(places, texts.gather(places).to_list(), strict=True)]
        done = [item for item in done if item[2]]
        if done:
            texts.scatter([place for place, _, _ in done], [text for _, text, _ in done])
        for place, text, codes in done:
            found[place] = text, [*found.get(place, ("", []))[1], *codes.split("+")]
    return dict(sorted(found.items()))


Repair = Callable[[str], tuple[str, str]]  # the new text, and codes of what was done to it ("" = nothing)


def _steps(texts: pl.Series, params: FixText) -> Iterator[tuple[list[int], Repair]]:
    """Which texts to mend, and how, in order; `texts` change between the steps.

    Decodings come before control characters, which are their traces. A text that was mended may need more than it
    seemed to.
    """
    from inhouse.data.kernels import damage
    from inhouse.data.kernels.buffers import flat

    if params.html_entities:
        yield texts.str.contains(ENTITY).fill_null(False).arg_true().to_list(), _repair_entities
    found = damage.look(*flat(texts), *damage.tables())
    again = damage.WRONG if params.encoding else 0
    steps = {damage.STRAY: _repair_characters, damage.APART: _compose}
    if params.encoding:
        steps = {damage.WRONG: _repair_encoding, **steps}
    if params.width == "half":
        steps[damage.FULL] = _half_width
    for flag, repair in steps.items():
        yield (found & (flag | again)).nonzero()[0].tolist(), repair


def _repair_entities(text: str) -> tuple[str, str]:
    from ftfy.fixes import unescape_html

    return _noted(text, unescape_html(text), "entities")


def _repair_encoding(text: str) -> tuple[str, str]:
    import ftfy

    return _noted(text, ftfy.fix_encoding(text), "encoding")


def _repair_characters(text: str) -> tuple[str, str]:
    strays = set(_strays().findall(text))  # one search: most texts have one kind of them
    lines = text
    for end in LINE_ENDS:
        lines = lines.replace(end, "\n") if end[0] in strays else lines
    plain = _without(lines, strays & CONTROLS)
    shown = _without(plain, strays & JUNK)
    if any(char >= "\U000e0000" for char in strays):
        shown = TAGS.sub(r"\1", shown)
    shown = _without(shown, strays & OVERRIDES)
    if strays & DIRECTION and not RIGHT_TO_LEFT.search(shown):
        shown = _without(shown, DIRECTION)
    shown = JOINERS.sub("", NO_WIDTH.sub("", shown)) if strays & WIDTHLESS else shown
    steps = ((text, lines, "line_ends"), (lines, plain, "control"), (plain, shown, "invisible"))
    return shown, "+".join(code for before, after, code in steps if before != after)


@cache
def _strays() -> re.Pattern[str]:
    from inhouse.data.kernels.damage import STRAYS, TAGS

    return re.compile("[" + "".join(f"{chr(low)}-{chr(high)}" for low, high in (*STRAYS, TAGS)) + "]")


def _without(text: str, chars: Set[str]) -> str:
    for char in chars:
        text = text.replace(char, "")
    return text


def _compose(text: str) -> tuple[str, str]:
    # NFC and not NFKC: NFKC turns ，：（） into their ASCII look-alikes and ² into 2.
    return _noted(text, unicodedata.normalize("NFC", text), "nfc")


def _half_width(text: str) -> tuple[str, str]:
    return _noted(text, text.translate(HALF), "width")


def _noted(before: str, after: str, code: str) -> tuple[str, str]:
    return after, code if after != before else ""
