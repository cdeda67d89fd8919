"""Words of texts in any script: Unicode words, Chinese ones by jieba."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inhouse.core.plugins import require

if TYPE_CHECKING:
    import polars as pl

RESULT_DEPENDS_ON = ("jieba",)
HAN = r"\p{Han}+"
# Letters with their marks, and digits; an apostrophe between letters belongs to its word (don't, l’été).
WORD = r"[[\p{L}\p{M}\p{N}_]--\p{Han}]+(?:['’][[\p{L}\p{M}]--\p{Han}]+)*"
MARK = r"[^\s\p{L}\p{M}\p{N}_]"


def words_of(texts: pl.Series, cache_dir: Path, marks: bool = False) -> pl.DataFrame:
    """The words of each text in order: doc (u32, place of the text), word. With `marks` punctuation counts too.

    Han characters are cut by jieba 0.42 (dictionary and its model for unknown words), run by run. Scripts without
    spaces other than Chinese (Thai, kana) stay uncut.
    """
    import polars as pl

    pattern = f"{HAN}|{WORD}|{MARK}" if marks else f"{HAN}|{WORD}"
    found = (
        pl.DataFrame({"word": texts.str.extract_all(pattern)})
        .with_row_index("doc")
        .explode("word")
        .drop_nulls("word")
        .with_columns(pl.col("word").str.contains(r"^\p{Han}{2}").alias("han"))
    )
    if not found["han"].any():
        return found.select("doc", "word")
    runs = found.filter("han")["word"].unique().sort()
    cut = pl.DataFrame(
        {"word": runs, "cut": _cut(runs.to_list(), cache_dir)}, schema_overrides={"cut": pl.List(pl.String)}
    )
    joined = found.join(cut, on="word", how="left", maintain_order="left")
    words = pl.when(pl.col("cut").is_null()).then(pl.concat_list("word")).otherwise(pl.col("cut"))
    return joined.select("doc", words.alias("word")).explode("word")


def _cut(runs: list[str], cache_dir: Path) -> list[list[str]]:
    cutter = _cutter(cache_dir)
    return [cutter.lcut(run) for run in runs]


@cache
def _cutter(cache_dir: Path) -> Any:
    """jieba with its own dictionary, whose loaded form is kept in `cache_dir`."""
    require("words", "jieba")
    import logging

    jieba = import_module("jieba")  # a package without types
    jieba.setLogLevel(logging.WARNING)
    cutter = jieba.Tokenizer()
    cutter.tmp_dir = str(cache_dir) if cache_dir.is_dir() else None
    return cutter


def keys_of(words: pl.Series) -> pl.Series:
    """The 64-bit xxh3 of each word, which never changes between machines and versions."""
    require("data", "xxhash")
    import polars as pl
    import xxhash

    return pl.Series([xxhash.xxh3_64_intdigest(word.encode()) for word in words.to_list()], dtype=pl.UInt64)
