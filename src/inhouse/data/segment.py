"""Words of texts in any script: Unicode words, Chinese ones by jieba."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from inhouse.core.plugins import require
from inhouse.data.scripts import HAN

if TYPE_CHECKING:
    import polars as pl

RESULT_DEPENDS_ON = ("jieba",)
# Letters with their marks, and digits; an apostrophe between letters belongs to its word (don't, l’été).
WORD = rf"[[\p{{L}}\p{{M}}\p{{N}}_]--{HAN}]+(?:['’][[\p{{L}}\p{{M}}]--{HAN}]+)*"
MARK = r"[^\s\p{L}\p{M}\p{N}_]"


def words_of(texts: pl.Series, marks: bool = False) -> pl.DataFrame:
    """The words of each text in order: doc (u32, place of the text), word. With `marks` punctuation counts too.

    Han characters are cut by jieba 0.42 (dictionary and its model for unknown words), run by run. Scripts without
    spaces other than Chinese (Thai, kana) stay uncut.
    """
    import polars as pl

    pattern = f"{HAN}+|{WORD}|{MARK}" if marks else f"{HAN}+|{WORD}"
    found = (
        pl.DataFrame({"word": texts.str.extract_all(pattern)})
        .with_row_index("doc")
        .explode("word")
        .drop_nulls("word")
        .with_columns(pl.col("word").str.contains(rf"^{HAN}{{2}}").alias("han"))
    )
    if not found["han"].any():
        return found.select("doc", "word")
    runs = found.filter("han")["word"].unique().sort()
    cut = pl.DataFrame(
        {"word": runs, "cut": [chinese_words(run, guess=True) for run in runs.to_list()]},
        schema_overrides={"cut": pl.List(pl.String)},
    )
    joined = found.join(cut, on="word", how="left", maintain_order="left")
    words = pl.when(pl.col("cut").is_null()).then(pl.concat_list("word")).otherwise(pl.col("cut"))
    return joined.select("doc", words.alias("word")).explode("word")


def chinese_words(run: str, guess: bool) -> list[str]:
    """The words of a run of Chinese characters, by jieba's dictionary.

    `guess`: words that it does not know are found by its model; else they are left in characters.
    """
    found: list[str] = _cutter().lcut(run, HMM=guess)
    return found


@cache
def _cutter() -> Any:
    """The one cutter of this process, its dictionary read from the package.

    jieba would keep the loaded form in the folder for temporary files and unmarshal what it finds there, whoever put
    it there: loading that takes nine tenths of the time of building it anew, so nothing is kept.
    """
    require("words", "jieba")
    import logging

    jieba = import_module("jieba")  # a package without types
    jieba.setLogLevel(logging.WARNING)
    cutter = jieba.Tokenizer()
    cutter.FREQ, cutter.total = cutter.gen_pfdict(cutter.get_dict_file())
    cutter.initialized = True
    return cutter


def keys_of(words: pl.Series) -> pl.Series:
    """The 64-bit xxh3 of each word, which never changes between machines and versions."""
    require("data", "xxhash")
    import polars as pl
    import xxhash

    return pl.Series([xxhash.xxh3_64_intdigest(word.encode()) for word in words.to_list()], dtype=pl.UInt64)
