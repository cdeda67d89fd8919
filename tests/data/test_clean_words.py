"""words, rare_words and boilerplate: against counting by hand."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import jieba
import numpy as np
import polars as pl
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from truth_mojibake import SENTENCES, clean

from inhouse.core.messages import known
from inhouse.data.kernels import lines as line_kernel
from inhouse.data.kernels.buffers import flat
from inhouse.data.operators import boilerplate, rare_words, words
from inhouse.data.operators.around import Around
from inhouse.data.operators.boilerplate import Boilerplate
from inhouse.data.operators.rare_words import RareWords
from inhouse.data.operators.words import Words
from inhouse.data.segment import words_of

AROUND = Around(0, Path("."), Path("/nowhere"), True)
UNICODE_WORD = regex.compile(r"(?V1)\p{Han}+|[[\p{L}\p{M}\p{N}_]--\p{Han}]+(?:['’][[\p{L}\p{M}]--\p{Han}]+)*")


def by_hand(text: str) -> list[str]:
    """Unicode words one after the other, runs of Han characters by jieba."""
    found = UNICODE_WORD.findall(text)
    return [word for run in found for word in (jieba.lcut(run) if regex.match(r"\p{Han}{2}", run) else [run])]


def docs_of(texts: list[str], first: int = 100) -> pl.DataFrame:
    rows = pl.Series("row", range(first, first + len(texts)), dtype=pl.UInt64)
    return pl.DataFrame([rows, pl.Series("text", texts, dtype=pl.String)])


def cut(texts: list[str], answers: list[bool] | None = None, **params: Any) -> list[str | None]:
    schema = {"text": pl.String, "answer": pl.Boolean}
    pieces = pl.DataFrame({"text": texts, "answer": answers or [False] * len(texts)}, schema)
    return words.change(pieces, Words(**params), AROUND).to_list()


def reduced(module: Any, params: Any, texts: list[str], batch: int) -> tuple[list[int], dict[str, Any]]:
    """Rows that are dropped, and the report: as the engine runs a reduce with a second round."""
    docs = docs_of(texts)
    batches = [docs.slice(start, batch) for start in range(0, max(docs.height, 1), batch)]
    emitted = pl.concat([module.emit(part, params, AROUND) for part in batches]).sort("row", maintain_order=True)
    if "combine" in vars(module):
        emitted = module.combine(emitted, params)
    found = module.ask(emitted, params, AROUND)
    asked, given = (found[0], found[1:]) if isinstance(found, tuple) else (found, ())
    again = docs if asked is None else docs.filter(pl.col("row").is_in(asked.implode()))
    more = module.emit_more(again, params, AROUND, *given)
    shuffled = emitted.sample(fraction=1.0, shuffle=True, seed=3)
    decided = module.decide(shuffled, params, AROUND, more)
    assert decided.schema == {"row": pl.UInt64, "reason": pl.String, "kept": pl.UInt64}
    assert all(known(f"data.reason.{reason}") for reason in decided["reason"].unique())
    assert decided["row"].is_sorted()
    return decided["row"].to_list(), module.report(shuffled, params, AROUND, more)


def test_words_of_texts_agree_with_a_slow_reference() -> None:
    texts = [*clean(seed=1, count=60), "don't l’été कि_x 3.14 中", "", "中文abc英文", "हिन्दी भाषा"]
    found = words_of(pl.Series(texts))
    for place, text in enumerate(texts):
        assert found.filter(pl.col("doc") == place)["word"].to_list() == by_hand(text)


@pytest.mark.parametrize(
    ("text", "params", "wanted"),
    [
        ("The cat isn’t on THE mat, is it?", {}, "cat mat"),
        ("The cat, on it.", {"stop_words": False}, "the cat on it"),
        ("The cat, on it.", {"stop_words": False, "lower_case": False}, "The cat on it"),
        ("A cat, the dog.", {"punctuation": "keep"}, "cat , dog ."),
        ("A cat, the dog.", {"more_stop_words": ("Dog",)}, "cat"),
        ("我们的银行下调了利率。", {}, "银行 下调 利率"),
        ("the of and", {}, None),
        ("", {}, None),
    ],
)
def test_words_leaves_out_what_says_little(text: str, params: dict[str, Any], wanted: str | None) -> None:
    assert cut([text], **params) == [wanted]


def test_words_never_touches_answers_and_keeps_the_order() -> None:
    assert cut(["The red cat", "The answer", "blue"], [False, True, False]) == ["red cat", "The answer", "blue"]
    assert known(f"data.reason.{words.REMOVED}") and known(words.NOTE)
    assert cut([]) == []


@pytest.mark.parametrize("lower_case", [True, False])
def test_rare_words_counts_agree_with_a_counter(lower_case: bool) -> None:
    texts = clean(seed=2, count=80)
    params = RareWords(lower_case=lower_case)
    counts = Counter(word for text in texts for word in by_hand(text.lower() if lower_case else text))
    dropped, report = reduced(rare_words, params, texts, batch=7)
    assert dropped == []
    assert (report["words"], report["distinct"]) == (counts.total(), len(counts))
    rare = {word: count for word, count in counts.items() if count < 3}
    assert report["rare"] == len(rare)
    assert len(report["rarest"]) == min(len(rare), rare_words.SHOWN)
    assert report["rarest"].items() <= rare.items()
    assert reduced(rare_words, params, texts, batch=80) == (dropped, report)


def test_rare_words_drops_documents_full_of_them() -> None:
    lot = random.Random(4)
    odd = [f"qx{lot.randrange(10**9)}" for _ in range(12)]
    texts = [*SENTENCES["en"] * 3, " ".join(odd[:6]), f"The café {' '.join(odd[6:])} the café the wait it was The café"]
    params = RareWords(action="drop_documents")
    counts = Counter(word for text in texts for word in by_hand(text.lower()))
    shares = [sum(counts[w] < 3 for w in by_hand(t.lower())) / len(by_hand(t)) for t in texts]
    wanted = [100 + place for place, share in enumerate(shares) if share > 0.5]
    assert wanted == [100 + len(texts) - 2]
    assert reduced(rare_words, params, texts, batch=4)[0] == wanted
    assert reduced(rare_words, RareWords(action="drop_documents", max_share=0), texts, batch=50)[0] == [
        100 + place for place, share in enumerate(shares) if share > 0
    ]


MENU = ["Home | Products | Contact us", "Copyright 2026 Example Ltd.", "我们使用 Cookie 来改善您的浏览体验。"]


def pages(count: int) -> list[str]:
    """Every page has the menu; every tenth has nothing of its own."""
    lot = random.Random(6)
    made = []
    for number in range(count):
        body = [f"Page {number}: {lot.random()} tells a story of its own, at length and in detail." for _ in range(4)]
        made.append("\n".join([MENU[0], "short", *(body if number % 10 else []), f"  {MENU[1]}\t", *MENU[2:]]))
    return [*made, "", "tiny"]


def test_boilerplate_drops_pages_without_words_of_their_own() -> None:
    texts = pages(60)
    found, report = reduced(boilerplate, Boilerplate(), texts, batch=9)
    assert found == [100 + number for number in range(0, 60, 10)]
    assert report == {"lines": 3, "most_shared": dict.fromkeys(MENU, 60)}
    assert reduced(boilerplate, Boilerplate(), texts, batch=62) == (found, report)
    assert reduced(boilerplate, Boilerplate(min_documents=61), texts, batch=62)[0] == []
    assert reduced(boilerplate, Boilerplate(min_share=1.0), texts, batch=62)[0] == []
    assert reduced(boilerplate, Boilerplate(), [], batch=5) == ([], {"lines": 0, "most_shared": {}})


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text("ab中 \t\n", max_size=16), max_size=4), st.integers(1, 3))
def test_line_keys_agree_with_splitting_by_hand(texts: list[str], least: int) -> None:
    data, offsets = flat(pl.Series(texts, dtype=pl.String))
    found = line_kernel.line_keys(data, offsets, least)
    wanted = [
        (text, line.strip())
        for text, whole in enumerate(texts)
        for line in whole.split("\n")
        if len(line.strip()) >= least
    ]
    assert [(row[0], row[2]) for row in found] == [(text, len(line)) for text, line in wanted]
    places = [data[row[3] :].tobytes().decode().split("\n")[0] for row in found]
    assert [place.strip()[: len(line)] for place, (_, line) in zip(places, wanted, strict=True)] == [
        w for _, w in wanted
    ]
    assert len({row[1] for row in found}) == len({line for _, line in wanted})
    with np.errstate(over="ignore"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(line_kernel, "count_lines", line_kernel.count_lines.py_func)
        assert np.array_equal(line_kernel.line_keys.py_func(data, offsets, least), found)
