"""Cut texts into words for classifiers that count words, and leave out those that say little."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from inhouse.core.params import Params
from inhouse.data.lexicons import word_lists
from inhouse.data.operators.around import Around
from inhouse.data.segment import words_of

if TYPE_CHECKING:
    import polars as pl

SHAPE = "map"
REMOVED = "no_words"
# A model that writes text would learn to leave out punctuation and stop words: the build says so by this note.
NOTE = "data.words_for_classifiers"


class Words(Params):
    """Texts as words separated by spaces, English and Chinese (jieba); for classical and encoder classifiers only.

    Answers are left as they are. A row of which a text has no word left is dropped.
    """

    use: Literal["words"] = "words"
    stop_words: bool = Field(True, description="leave out stop words, English and Chinese")
    more_stop_words: tuple[str, ...] = Field((), description="words to leave out besides")
    lower_case: bool = Field(True, description="write letters small")
    punctuation: Literal["remove", "keep"] = Field("remove", description="keep: each mark counts as a word")


def change(pieces: pl.DataFrame, params: Words, around: Around) -> pl.Series:
    """The words of each text, joined by spaces; null where none is left."""
    import polars as pl

    texts = pieces["text"].str.to_lowercase() if params.lower_case else pieces["text"]
    found = words_of(texts, marks=params.punctuation == "keep")
    found = found.filter(~pl.col("word").str.to_lowercase().str.replace_all("’", "'").is_in(_left_out(params)))
    joined = found.group_by("doc", maintain_order=True).agg(pl.col("word").str.join(" "))
    new = (
        pieces.select("text", "answer").with_row_index("doc").join(joined, on="doc", how="left", maintain_order="left")
    )
    return new.select(pl.when("answer").then("text").otherwise("word").alias("text")).to_series()


def _left_out(params: Words) -> list[str]:
    lists = word_lists("stop_words").values() if params.stop_words else ()
    return sorted({word for words in lists for word in words} | {word.lower() for word in params.more_stop_words})
