"""Repair damaged text: wrong decodings, control and invisible characters, line ends, decomposed letters."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from inhouse.core.params import Params
from inhouse.core.plugins import require
from inhouse.data.operators.around import Around

if TYPE_CHECKING:
    import polars as pl

SHAPE = "map"

RESULT_DEPENDS_ON = ("ftfy",)
LINE_ENDS = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f]")
# Not for interchange, or without a meaning in plain text: soft hyphen, word joiner and invisible operators, deprecated
# format controls, the byte order mark, interlinear annotation, noncharacters. U+FFFD stays: it shows a loss.
JUNK = re.compile("[\xad\u2060-\u2064\u206a-\u206f\ufeff\ufff9-\ufffc\ufdd0-\ufdef\ufffe\uffff]")
# Marks that order text from right to left mean something beside such letters only; the overrides (Trojan Source,
# CVE-2021-42574) nowhere.
DIRECTION = re.compile("[\u200e\u200f\u061c]")
OVERRIDES = re.compile("[\u202a-\u202e\u2066-\u2069]")
RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdcf\ufdf0-\ufdff\ufe70-\ufefc]")
# U+200B marks words where a script writes none: Thai, Lao, Tibetan, Myanmar, Khmer and their kin.
UNSPACED = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\uaa60-\uaadf"
NO_WIDTH = re.compile(f"(?<![{UNSPACED}])\u200b|\u200b(?![{UNSPACED}])")
# U+200C and U+200D choose letter forms in Arabic, Persian, Indic, Mongolian and South-East Asian scripts; U+200D joins
# emoji. The bare joiner is noise everywhere else.
SHAPED = f"\u0600-\u08ff\u0900-\u0dff{UNSPACED}\u1800-\u18af\u1b00-\u1bbf\ua8e0-\ua8ff\ufb50-\ufdcf\ufe70-\ufefc"
JOINABLE = "\ufe0f\u2190-\u21ff\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff\U000e0020-\U000e007f"
JOINERS = re.compile(f"(?<![{SHAPED}{JOINABLE}])[\u200c\u200d]|(?<![{SHAPED}])\u200c")
# Tag characters spell flags behind a black flag; anywhere else they hide text from readers but not from models.
FLAG = "\U0001f3f4[\U000e0020-\U000e007e]+\U000e007f"
TAGS = re.compile(f"({FLAG})|[\U000e0000-\U000e007f]")
# Any character that one of the patterns above could remove or replace, for a search over a whole column.
SUSPECT = (
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\x{ad}\x{61c}\x{200b}-\x{200f}\x{2028}-\x{202e}\x{2060}-\x{206f}\x{fdd0}-\x{fdef}"
    r"\x{feff}\x{fff9}-\x{fffc}\x{fffe}\x{ffff}\x{e0000}-\x{e007f}]"
)
FULL_WIDTH = r"[\x{ff10}-\x{ff19}\x{ff21}-\x{ff3a}\x{ff41}-\x{ff5a}]"
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
    require("data", "ftfy")
    import polars as pl

    texts = pieces["text"].clone()  # scatter writes in place
    fixed = [""] * len(texts)
    for places, gate, repair in _steps(texts, params):
        found = [(places[at], *repair(text)) for at, text in _those(texts.gather(places), gate)]
        found = [item for item in found if item[2]]
        if found:
            texts.scatter([place for place, _, _ in found], [text for _, text, _ in found])
        for place, _, codes in found:
            fixed[place] = f"{fixed[place]}+{codes}" if fixed[place] else codes
    notes = pieces.select("row", "slot").with_columns(pl.Series("fixed", fixed, dtype=pl.String))
    return texts, notes.filter(pl.col("fixed") != "")


def repair_encoding(texts: pl.Series) -> pl.Series:
    """The texts as ftfy.fix_encoding gives them; only those that its own test suspects are handed to it."""
    import ftfy

    texts = texts.clone()
    found = list(_those(texts, _beyond_ascii(suspects)))
    return texts.scatter([place for place, _ in found], [ftfy.fix_encoding(text) for _, text in found])


def suspects(texts: pl.Series) -> pl.Series:
    """Whether each text (none of them ASCII) holds what ftfy takes for a wrong decoding."""
    return texts.str.contains(badness_pattern())


@cache
def badness_pattern() -> str:
    """ftfy's test for wrong decodings (ftfy.badness.BADNESS_RE) in the syntax of Rust's regex crate.

    Comments and blanks of Python's verbose mode are left out, for Rust would drop blanks inside [] too. White space
    and word characters are what either language means by them: the test may find too much, never too little.
    """
    from ftfy.badness import BADNESS_RE

    kept: list[str] = []
    inside = comment = False
    for char in BADNESS_RE.pattern:
        comment = char != "\n" if comment else char == "#" and not inside
        inside = not comment and (char == "[" or (inside and char != "]"))
        if not comment and (inside or not char.isspace() or char == "\xa0"):
            kept.append(char)
    return "".join(kept).replace(r"\s", r"[\s\x1c-\x1f]").replace(r"\w", r"[\w\p{N}]")


Gate = Callable[["pl.Series"], "pl.Series"]
Repair = Callable[[str], tuple[str, str]]  # the new text, and codes of what was done to it ("" = nothing)


def _steps(texts: pl.Series, params: FixText) -> Iterator[tuple[pl.Series, Gate, Repair]]:
    """Where to look for what in which order, and what mends it; `texts` change between the steps.

    Decodings come before control characters, which are their traces. One search for both spares clean texts the rest.
    """
    import polars as pl

    everywhere = pl.int_range(len(texts), eager=True)
    if params.html_entities:
        yield everywhere, (lambda texts: texts.str.contains(ENTITY)), _repair_entities
    either = f"{SUSPECT}|{badness_pattern()}" if params.encoding else SUSPECT
    dirty = texts.str.contains(either).fill_null(False).arg_true()
    if params.encoding:
        yield dirty, _beyond_ascii(suspects), _repair_encoding
    yield dirty, (lambda texts: texts.str.contains(SUSPECT)), _repair_characters
    yield everywhere, _beyond_ascii(_decomposed), _compose
    if params.width == "half":
        yield everywhere, _beyond_ascii(lambda texts: texts.str.contains(FULL_WIDTH)), _half_width


def _those(texts: pl.Series, gate: Gate) -> Iterator[tuple[int, str]]:
    """Place and text of those that the gate names."""
    places = gate(texts).fill_null(False).arg_true()
    return zip(places.to_list(), texts.gather(places).to_list(), strict=True)


def _beyond_ascii(gate: Gate) -> Gate:
    """A gate that asks only of texts that are not ASCII: most texts, or most of the cost, are spared."""

    def asked(texts: pl.Series) -> pl.Series:
        import polars as pl

        beyond = (texts.str.len_bytes() != texts.str.len_chars()).fill_null(False).arg_true()
        answers = pl.repeat(False, len(texts), dtype=pl.Boolean, eager=True)
        return answers.scatter(beyond, gate(texts.gather(beyond))) if len(beyond) else answers

    return asked


def _decomposed(texts: pl.Series) -> pl.Series:
    import polars as pl

    return pl.Series([not unicodedata.is_normalized("NFC", text) for text in texts.to_list()], dtype=pl.Boolean)


def _repair_entities(text: str) -> tuple[str, str]:
    from ftfy.fixes import unescape_html

    return _noted(text, unescape_html(text), "entities")


def _repair_encoding(text: str) -> tuple[str, str]:
    import ftfy

    return _noted(text, ftfy.fix_encoding(text), "encoding")


def _repair_characters(text: str) -> tuple[str, str]:
    lines = LINE_ENDS.sub("\n", text)
    plain = CONTROLS.sub("", lines)
    shown = OVERRIDES.sub("", TAGS.sub(r"\1", JUNK.sub("", plain)))
    if not RIGHT_TO_LEFT.search(shown):
        shown = DIRECTION.sub("", shown)
    shown = JOINERS.sub("", NO_WIDTH.sub("", shown))
    steps = ((text, lines, "line_ends"), (lines, plain, "control"), (plain, shown, "invisible"))
    return shown, "+".join(code for before, after, code in steps if before != after)


def _compose(text: str) -> tuple[str, str]:
    # NFC and not NFKC: NFKC turns ，：（） into their ASCII look-alikes and ² into 2.
    return _noted(text, unicodedata.normalize("NFC", text), "nfc")


def _half_width(text: str) -> tuple[str, str]:
    return _noted(text, text.translate(HALF), "width")


def _noted(before: str, after: str, code: str) -> tuple[str, str]:
    return after, code if after != before else ""
