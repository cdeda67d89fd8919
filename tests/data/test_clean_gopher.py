"""symbols and repetition: compiled counts against slow references, rules against documents made to break them."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from truth_mojibake import SENTENCES

from inhouse.core.messages import known
from inhouse.data.kernels import gopher, kinds
from inhouse.data.kernels.buffers import flat
from inhouse.data.lexicons import word_lists
from inhouse.data.operators import repetition, symbols
from inhouse.data.operators.around import Around

AROUND = Around(0, Path("."), Path("."), True)
ALPHABET = "ab1 #.…-•\n\n\t中文的のア，。é "
WIDE, WIDE_MARKS = "中文的のア", "，。"
WORDS = ["the", "cat", "dog", "and", "sat", "ran", "on", "mat", "red", "blue"]


def docs_of(texts: list[str]) -> pl.DataFrame:
    return pl.DataFrame({"text": pl.Series(texts, dtype=pl.String)})


def figures(module: Any, texts: list[str], params: Any) -> pl.DataFrame:
    return module.measure(docs_of(texts), params, AROUND)


def reason(module: Any, params: Any, text: str) -> str | None:
    return module.drop_reason(figures(module, [text], params), params)[0]


def pieces(text: str) -> list[str]:
    """Words, with every wide character on its own."""
    for char in WIDE + WIDE_MARKS:
        text = text.replace(char, f" {char} ")
    return text.split()


def slow_symbols(text: str) -> dict[str, int]:
    words = [p for p in pieces(text) if p[0] not in WIDE + WIDE_MARKS]
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    seen = {p.lower() for p in pieces(text)}
    return {
        "VISIBLE": sum(not c.isspace() for c in text),
        "LETTERS": sum(c.isalpha() for c in text),
        "WIDE_LETTERS": sum(c in WIDE for c in text),
        "DIGITS": text.count("1"),
        "MARKS": sum(c in "#.…-•，。" for c in text),
        "WORDS": len(words),
        "WORD_CHARS": sum(map(len, words)),
        "LETTER_WORDS": sum(any(c.isalpha() for c in w) for w in words),
        "HASHES": text.count("#"),
        "ELLIPSES": text.count("...") + len(re.findall("…+", text)),
        "LINES": len(lines),
        "BULLET_LINES": sum(line[0] in "-•" for line in lines),
        "ELLIPSIS_LINES": sum(line.endswith(("...", "…")) for line in lines),
        "STOP_WORDS": max(len(seen & set(words)) for words in word_lists("function_words").values()),
    }


def is_wide(text: str) -> bool:
    wide, letters = sum(c in WIDE for c in text), sum(c.isalpha() for c in text)
    return wide > 0 and wide * 10 >= letters * 3


def slow_top(words: list[str], length: int, glue: str) -> int:
    grams = Counter(tuple(words[i : i + length]) for i in range(len(words) - length + 1))
    if not grams or grams.most_common(1)[0][1] < 2:
        return 0
    gram, times = grams.most_common(1)[0]
    return times * len(glue.join(gram))


def slow_again(words: list[str], length: int) -> int:
    seen, chars, at = set(), 0, 0
    while at < len(words) - length + 1:
        gram = tuple(words[at : at + length])
        if gram in seen:
            chars, at = chars + sum(map(len, gram)), at + length
        else:
            seen.add(gram)
            at += 1
    return chars


def alike(line: str) -> str:
    return line.rstrip().replace("\t", " ")


def slow_twice(items: list[tuple[Any, int]]) -> tuple[int, int]:
    seen, found, chars = set(), 0, 0
    for key, size in items:
        if key in seen:
            found, chars = found + 1, chars + size
        seen.add(key)
    return found, chars


def slow_repetition(text: str) -> list[int]:
    words, unit, glue = pieces(text), (2 if is_wide(text) else 1), ("" if is_wide(text) else " ")
    parts: list[list[str]] = [[]]
    for line in text.split("\n"):
        if line.strip():
            parts[-1].append(line)
        elif parts[-1]:
            parts.append([])
    parts = [part for part in parts if part]
    lines = slow_twice([(alike(line), len(line)) for part in parts for line in part])
    paragraphs = slow_twice([(tuple(map(alike, part)), len("\n".join(part))) for part in parts])
    head = [len(text), len(words), sum(map(len, parts)), *lines, len(parts), *paragraphs]
    top = [slow_top(words, n * unit, glue) for n in (2, 3, 4)]
    return head + top + [slow_again(words, n * unit) for n in (5, 6, 7, 8, 9, 10)]


def fast_repetition(texts: list[str]) -> list[list[int]]:
    counts = gopher.repeats(*flat(pl.Series(texts, dtype=pl.String)), kinds.kinds(), 2)
    columns = [gopher.REP_CHARS, *range(gopher.WORD_COUNT, gopher.REPEATS)]
    return counts[:, columns].tolist()


def composed(seed: int) -> str:
    """A text with repetition of every kind: lines drawn from few, words from few, Chinese or English."""
    lot = random.Random(seed)
    letters = list("的中文のア，。") if seed % 2 else [f"{word} " for word in WORDS]
    lines = ["".join(lot.choices(letters, k=lot.randint(1, 60))) for _ in range(lot.randint(1, 8))]
    return "".join(lot.choice(lines) + lot.choice(["\n", "\n\n", "\n \n"]) for _ in range(lot.randint(1, 20)))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(ALPHABET, max_size=40), max_size=5))
def test_symbol_counts_agree_with_a_slow_reference(texts: list[str]) -> None:
    stops = gopher.stop_table(tuple(word_lists("function_words").values()))
    counts = gopher.made_of(*flat(pl.Series(texts, dtype=pl.String)), kinds.kinds(), stops)
    for text, row in zip(texts, counts, strict=True):
        wanted = slow_symbols(text)
        assert {name: row[getattr(gopher, name)] for name in wanted} == wanted


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(ALPHABET, max_size=40), max_size=5))
def test_repetition_counts_agree_with_a_slow_reference(texts: list[str]) -> None:
    assert fast_repetition(texts) == [slow_repetition(text) for text in texts]


def test_repetition_counts_of_long_texts_agree_with_a_slow_reference() -> None:
    texts = [composed(seed) for seed in range(120)]
    found = fast_repetition(texts)
    assert found == [slow_repetition(text) for text in texts]
    assert np.count_nonzero(np.array(found), axis=0).min() > 10  # every figure is put to the test


def test_repetition_of_a_huge_document_is_judged_by_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "中" * (gopher.MOST_BYTES // 3) + "国" * 100
    assert fast_repetition([text])[0][0] == gopher.MOST_BYTES // 3


def test_kernels_without_compiling_agree_with_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    stops = gopher.stop_table(tuple(word_lists("function_words").values()))
    for module in (kinds, gopher):
        for name, member in vars(module).copy().items():
            if hasattr(member, "py_func"):
                monkeypatch.setattr(module, name, member.py_func)
                monkeypatch.setattr(gopher, name, member.py_func)
    texts = [composed(1)[:300], composed(2)[:300], "• a…\n- 1... \U00020000 😀 é #\n", "жизнь и не на ....", ""]
    data, offsets = flat(pl.Series(texts))
    with np.errstate(over="ignore"):
        counts = gopher.repeats(data, offsets, kinds.kinds(), 2)
        made = gopher.made_of(data, offsets, kinds.kinds(), stops)
    columns = [gopher.REP_CHARS, *range(gopher.WORD_COUNT, gopher.REPEATS)]
    assert counts[:2, columns].tolist() == [slow_repetition(text) for text in texts[:2]]
    names = ("ELLIPSES", "BULLET_LINES", "ELLIPSIS_LINES", "CYRILLIC", "STOP_WORDS", "WIDE_LETTERS", "MARKS")
    found = [[int(made[row, getattr(gopher, name)]) for name in names] for row in (2, 3, 4)]
    assert found == [[2, 2, 1, 0, 1, 1, 8], [1, 0, 1, 10, 3, 0, 4], [0] * 7]


PROSE = {code: "\n".join(lines) for code, lines in SENTENCES.items()}


@pytest.mark.parametrize("code", sorted(SENTENCES))
def test_prose_breaks_no_rule(code: str) -> None:
    assert reason(symbols, symbols.Symbols(stop_words_from=20), PROSE[code]) is None
    assert reason(repetition, repetition.Repetition(), PROSE[code]) is None


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("# one # two # three", "many_hashes"),
        ("wait... what... why... words go on", "many_ellipses"),
        ("• one\n- two\n* three\n● four", "many_bullets"),
        ("the first line ends so soon as it can be…\nthe second does not end", "many_cut_lines"),
        ("12 34 56 word 78 99", "few_letter_words"),
        ("a b c d e f g", "short_words"),
        ("internationalisation misunderstanding", "long_words"),
        ("table chair house garden " * 15, "few_stop_words"),
        ("苹果香蕉桌子椅子房屋" * 12, "few_stop_words"),
        ("中文（￥），。！？；：１２３４５", "few_letters"),
        ("中文，，，，。。。a", "many_marks"),
        ("ราคา สินค้า ทั้งหมด วันนี้", None),
        ("今天天气很好。", None),
        ("", "few_letter_words"),
    ],
)
def test_symbol_rules_name_what_is_wrong(text: str, wanted: str | None) -> None:
    params = symbols.Symbols(min_letters=0.6 if wanted == "few_letters" else 0.1)
    assert reason(symbols, params, text) == wanted
    assert wanted is None or known(f"data.reason.{wanted}")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("same line here\nsame line here\nanother one\nsame line here", "repeated_lines"),
        ("one two three four\nfive six\n\none two three four\nfive six", "repeated_lines"),
        ("go on " * 30, "frequent_phrase"),
        ("我们走吧" * 20, "frequent_phrase"),
        ("a unique beginning then this very long phrase comes again and then this very long phrase comes again", "any"),
        ("one two three", None),
        ("今天天气很好，我们一起去公园散步吧。", None),
    ],
)
def test_repetition_rules_name_what_repeats(text: str, wanted: str | None) -> None:
    found = reason(repetition, repetition.Repetition(), text)
    assert found is not None if wanted == "any" else found == wanted
    assert found is None or known(f"data.reason.{found}")


def test_rules_set_to_null_are_not_applied() -> None:
    text = "go on " * 30 + "\n# # # #"
    for module, params in ((symbols, symbols.Symbols()), (repetition, repetition.Repetition())):
        limits = {name: None for name in type(params).model_fields if name.startswith(("min_", "max_"))}
        free = type(params)(**limits)
        assert module.drop_reason(figures(module, [text, "", "#"], free), free).to_list() == [None] * 3


def test_figures_do_not_depend_on_the_batch() -> None:
    texts = [composed(seed) for seed in range(30)]
    for module, params in ((symbols, symbols.Symbols()), (repetition, repetition.Repetition())):
        whole = figures(module, texts, params)
        assert whole.equals(pl.concat([figures(module, [text], params) for text in texts]))
        assert figures(module, [], params).schema == whole.schema


def test_kinds_agree_with_unicode() -> None:
    table = kinds.kinds()
    assert [chr(code) for code in range(kinds.SIZE) if table[code] == kinds.SPACE] == sorted(kinds.WHITE)
    assert all(table[ord(c)] == kinds.WIDE for c in "中々〇のアー㐀豈")
    assert all(table[ord(c)] == kinds.WIDE_MARK for c in "，。！？、「」・～￥")
    assert all(table[ord(c)] == kinds.LETTER for c in "aZéßж\u0301हि한ａ")
    assert [kinds.kind_beyond(code) for code in (0x20000, 0x1F600, 0x10400, 0xE0100)] == [
        kinds.WIDE,
        kinds.SYMBOL,
        kinds.LETTER,
        kinds.OTHER,
    ]
