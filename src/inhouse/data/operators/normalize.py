"""Repair what carries no meaning: control characters, decomposed letters, runs of spaces and blank lines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from inhouse.core.params import Params
from inhouse.data.operators.around import Around

if TYPE_CHECKING:
    import polars as pl

SHAPE = "map"

# NFC and not NFKC: NFKC turns ，：（） into their ASCII look-alikes and ² into 2.
LINE_ENDS = r"\r\n|[\r\x0B\x0C\x{85}\x{2028}\x{2029}]"
INVISIBLE = r"[\p{Cc}\x{FEFF}&&[^\n\t]]"
# Every space but U+3000, the ideographic space, which Chinese text sets on purpose.
SPACES = r"[\p{Zs}&&[^\x{3000}]]"
# Only after a visible character: spaces that begin a line indent code and lists.
RUN_INSIDE_LINE = r"(\S)[ \t]{2,}"
LINE_TAIL = r"[ \t\x{3000}]+(\n|\z)"
BLANK_LINES = r"\n{3,}"
BLANK_EDGES = r"\A\n+|\n+\z"


class Normalize(Params):
    """Unicode NFC; control characters removed; runs of spaces made one. Punctuation is never changed."""

    use: Literal["normalize"] = "normalize"


def change(pieces: pl.DataFrame, params: Normalize, around: Around) -> pl.Series:
    """The texts, repaired. Doing it twice changes nothing more."""
    return (
        pieces["text"]
        .str.replace_all(LINE_ENDS, "\n")
        .str.replace_all(INVISIBLE, "")
        .str.normalize("NFC")
        .str.replace_all(SPACES, " ")
        .str.replace_all(LINE_TAIL, "$1")
        .str.replace_all(RUN_INSIDE_LINE, "$1 ")
        .str.replace_all(BLANK_LINES, "\n\n")
        .str.replace_all(BLANK_EDGES, "")
    )
