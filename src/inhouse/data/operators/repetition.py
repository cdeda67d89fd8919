"""Drop documents that repeat themselves: lines, paragraphs, phrases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from inhouse.core.params import Params
from inhouse.core.plugins import require
from inhouse.data.operators.around import Around

if TYPE_CHECKING:
    import polars as pl

SHAPE = "keep"
TOP = (2, 3, 4)
AGAIN = (5, 6, 7, 8, 9, 10)


class Repetition(Params):
    """Drop documents that repeat themselves, by the rules of Gopher (Rae et al. 2021, table A1).

    Shares are of a document's characters unless said otherwise. A rule set to null is not applied. In text of Han
    characters or kana (3 in 10 letters), `wide_chars_per_word` characters stand for a word of the rules. Documents
    above 1 MB are judged by their first MB.
    """

    use: Literal["repetition"] = "repetition"
    max_lines: float | None = Field(0.30, ge=0, le=1, description="share of lines that stood before")
    max_line_chars: float | None = Field(0.20, ge=0, le=1, description="characters in lines that stood before")
    max_paragraphs: float | None = Field(0.30, ge=0, le=1, description="share of paragraphs that stood before")
    max_paragraph_chars: float | None = Field(0.20, ge=0, le=1, description="characters in such paragraphs")
    max_top_2: float | None = Field(0.20, ge=0, le=1, description="characters in the most frequent 2 words")
    max_top_3: float | None = Field(0.18, ge=0, le=1, description="characters in the most frequent 3 words")
    max_top_4: float | None = Field(0.16, ge=0, le=1, description="characters in the most frequent 4 words")
    max_again_5: float | None = Field(0.15, ge=0, le=1, description="characters in repeated 5 words")
    max_again_6: float | None = Field(0.14, ge=0, le=1, description="characters in repeated 6 words")
    max_again_7: float | None = Field(0.13, ge=0, le=1, description="characters in repeated 7 words")
    max_again_8: float | None = Field(0.12, ge=0, le=1, description="characters in repeated 8 words")
    max_again_9: float | None = Field(0.11, ge=0, le=1, description="characters in repeated 9 words")
    max_again_10: float | None = Field(0.10, ge=0, le=1, description="characters in repeated 10 words")
    wide_chars_per_word: int = Field(2, ge=1, le=4, description="Han characters or kana that stand for a word")


def measure(docs: pl.DataFrame, params: Repetition, around: Around) -> pl.DataFrame:
    """The share that each rule judges, in the order of the settings.

    As datatrove 0.10 defines them, but: words are what stands between white space (there: a tokeniser's), the most
    frequent words count from their second occurrence on (there, any 4 words fill a document of 5), and blank lines do
    not count. Tabs and spaces are the same; Han characters are not joined by spaces.
    """
    require("data", "numba")
    import polars as pl

    from inhouse.data.kernels import gopher
    from inhouse.data.kernels.buffers import flat
    from inhouse.data.kernels.kinds import kinds

    counts = gopher.repeats(*flat(docs["text"]), kinds(), params.wide_chars_per_word).T
    shares = {
        "lines": (gopher.LINE_TWICE, gopher.LINE_COUNT),
        "line_chars": (gopher.LINE_CHARS, gopher.REP_CHARS),
        "paragraphs": (gopher.PART_TWICE, gopher.PART_COUNT),
        "paragraph_chars": (gopher.PART_CHARS, gopher.REP_CHARS),
    }
    shares |= {f"top_{words}": (gopher.TOP_2 + words - 2, gopher.REP_CHARS) for words in TOP}
    shares |= {f"again_{words}": (gopher.AGAIN_5 + words - 5, gopher.REP_CHARS) for words in AGAIN}
    figures = {name: counts[part] / counts[whole].clip(1) for name, (part, whole) in shares.items()}
    # An overlapping phrase (so so so so) can fill more than the document.
    return pl.DataFrame(figures).select(pl.all().clip(0, 1).round(6))


def drop_reason(figures: pl.DataFrame, params: Repetition) -> pl.Series:
    """The first rule that a document breaks, null = keep."""
    import polars as pl

    rules: dict[str, tuple[float | None, str]] = {
        "lines": (params.max_lines, "repeated_lines"),
        "line_chars": (params.max_line_chars, "repeated_lines"),
        "paragraphs": (params.max_paragraphs, "repeated_paragraphs"),
        "paragraph_chars": (params.max_paragraph_chars, "repeated_paragraphs"),
        "top_2": (params.max_top_2, "frequent_phrase"),
        "top_3": (params.max_top_3, "frequent_phrase"),
        "top_4": (params.max_top_4, "frequent_phrase"),
        "again_5": (params.max_again_5, "repeated_phrases"),
        "again_6": (params.max_again_6, "repeated_phrases"),
        "again_7": (params.max_again_7, "repeated_phrases"),
        "again_8": (params.max_again_8, "repeated_phrases"),
        "again_9": (params.max_again_9, "repeated_phrases"),
        "again_10": (params.max_again_10, "repeated_phrases"),
    }
    found = [
        pl.when(pl.col(name) > limit).then(pl.lit(reason))
        for name, (limit, reason) in rules.items()
        if limit is not None
    ]
    return figures.with_columns(pl.coalesce(*found, pl.lit(None, pl.String)).alias("reason"))["reason"]
