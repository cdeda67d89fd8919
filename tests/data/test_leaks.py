"""Leaks: planted ones are caught, chance ones are not, and the rule agrees with sets counted in plain Python."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from truth_pairs import LANGUAGES, pairs, planted_leaks

from inhouse.core.errors import UserError
from inhouse.data import outside
from inhouse.data.kernels import minhash, ngrams
from inhouse.data.kernels.buffers import flat
from inhouse.data.operators import leaks
from inhouse.data.operators.around import Around
from inhouse.data.operators.leaks import Leaks

PASSAGE = "one two three four five six seven eight nine ten eleven twelve thirteen"
SENTENCE = "今天天气很好我们一起出去走走看看外面的花和树还有河里的鱼和天上的鸟"
# Grams as good as off: only similarity is left.
BY_SIMILARITY = {"share": 1.0, "share_with_common": 1.0}


def frame(rows: list[tuple[str, str]]) -> pl.DataFrame:
    """Documents from (part, text), with ids from 1."""
    return pl.DataFrame(
        {
            "row": pl.Series(range(1, len(rows) + 1), dtype=pl.UInt64),
            "part": pl.Series([part for part, _ in rows], dtype=pl.String),
            "text": pl.Series([text for _, text in rows], dtype=pl.String),
        }
    )


def leaking(
    rows: list[tuple[str, str]], params: Leaks | None = None, folder: Path = Path(), batch: int = 1000
) -> list[tuple[int, str, int | None]]:
    """What the step decides, both rounds run over batches as the engine runs them."""
    docs, params, around = frame(rows), params or Leaks(), Around(0, folder, folder, True)

    def over_batches(function: Callable[[pl.DataFrame], pl.DataFrame], some: pl.DataFrame) -> pl.DataFrame:
        return pl.concat([function(some.slice(n, batch)) for n in range(0, max(some.height, 1), batch)]).sort("row")

    emitted = over_batches(lambda some: leaks.emit(some, params, around), docs)
    asked, known = leaks.ask(emitted, params, around)
    known.write_ipc(file := BytesIO())  # as it travels to the workers: what comes back cannot be written to
    known = pl.read_ipc(file.getvalue())
    again = docs.filter(pl.col("row").is_in(asked.implode()))
    more = over_batches(lambda some: leaks.emit_more(some, params, around, known), again)
    return leaks.decide(emitted, params, around, more).rows()


@pytest.mark.parametrize("language", LANGUAGES)
def test_leaks_catches_every_planted_leak_and_nothing_else(language: str) -> None:
    planted = planted_leaks(language, 150)
    texts = [("train", text) for text in planted.train] + [("test", text) for text in planted.test]
    found = leaking(texts)
    size = len(planted.train)
    assert found == [(n + 1, "leaks_test", size + 1 + place) for n, place in sorted(planted.leaks.items())]


@pytest.mark.parametrize("language", LANGUAGES)
def test_leaks_finds_rows_that_resemble_evaluation_rows(language: str) -> None:
    known = pairs(language, 0.5, 0.6, 200, seed=4)
    rows = [row for pair in known for row in (("train", pair.one), ("valid", pair.other))]
    found = leaking(rows, Leaks(**BY_SIMILARITY))
    assert all(reason == "leaks_valid" and kept == row + 1 for row, reason, kept in found)
    assert len(found) >= 0.95 * 200
    assert leaking(rows, Leaks(**BY_SIMILARITY, near=None)) == []


def test_leaks_does_not_compare_short_texts_by_similarity() -> None:
    rows = [
        ("train", "What is by now the most populous city of France?"),
        ("test", "What is by now the most populous city of Greece?"),
    ]
    assert leaking(rows) == []
    assert leaking(rows, Leaks(near_from=1)) == [(1, "leaks_test", 2)]


# the rule against plain Python


def slow_grams(text: str, words: int, characters: int) -> set[tuple[str, ...]]:
    """Runs of tokens of weight words x characters; a whole text that is shorter."""
    tokens: list[str] = []
    for piece in text.split():
        tokens += list(piece) if piece[0] > "z" else [piece]
    weights = [words if token > "z" else characters for token in tokens]
    found = set()
    for end in range(1, len(tokens) + 1):
        start = end
        while start > 0 and sum(weights[start:end]) < words * characters:
            start -= 1
        if sum(weights[start:end]) >= words * characters:
            found.add(tuple(tokens[start:end]))
    return found or ({("whole", *tokens)} if tokens else set())


def slow_leaks(rows: list[tuple[str, str]], params: Leaks) -> list[tuple[int, str, int | None]]:
    grams = [slow_grams(text, params.words, params.characters) for _, text in rows]
    holders = Counter(gram for (part, _), held in zip(rows, grams, strict=True) if part == "train" for gram in held)
    measured = [n for part in ("test", "valid") for n, row in enumerate(rows) if row[0] == part]
    found = []
    for n, (part, text) in enumerate(rows):
        if part != "train":
            continue
        same = [m for m in measured if rows[m][1] == text]
        best: list[tuple[float, int]] = []
        for place, m in enumerate(measured):
            shared = grams[n] & grams[m]
            rare = [gram for gram in shared if holders[gram] <= params.common]
            share = len(shared) / max(len(grams[m]), 1)
            if share >= params.share_with_common or (rare and len(rare) >= params.share * len(grams[m])):
                best.append((-share, place))
        if same or best:
            m = same[0] if same else measured[min(best)[1]]
            found.append((n + 1, f"leaks_{rows[m][0]}", m + 1))
    return found


few_words = st.lists(st.sampled_from(["a", "b", "中", "文中", "cd"]), max_size=16).map(" ".join)
some_rows = st.lists(st.tuples(st.sampled_from(["train", "train", "test", "valid"]), few_words), max_size=10)


@settings(max_examples=100, deadline=None)
@given(some_rows, st.integers(1, 3), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.3, 0.7, 1.0]))
def test_leaks_agree_with_a_slow_reference(
    rows: list[tuple[str, str]], common: int, share: float, share_with_common: float
) -> None:
    params = Leaks(
        words=5,
        characters=8,
        common=common,
        share=share,
        share_with_common=share_with_common,
        near=None,
        exact="remove",
    )
    assert leaking(rows, params, batch=3) == slow_leaks(rows, params)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 7))
def test_leaks_do_not_depend_on_batches(batch: int) -> None:
    planted = planted_leaks("zh", 6)
    rows = [("train", text) for text in planted.train] + [("test", text) for text in planted.test]
    assert leaking(rows, batch=batch) == leaking(rows)


# common phrases


def test_leaks_leaves_phrases_of_everybody_alone() -> None:
    test = ("test", f"{PASSAGE} and then a question of {' '.join(f'word{n}' for n in range(40))}")
    trains = [("train", f"{PASSAGE} my own text {n}") for n in range(11)]
    assert leaking([test, *trains]) == []
    assert len(leaking([test, *trains[:10]])) == 10
    assert len(leaking([test, *trains], Leaks(common=11))) == 11


def test_leaks_takes_rows_that_hold_most_of_an_evaluation_row_however_common() -> None:
    rows = [("valid", PASSAGE), *[("train", f"{PASSAGE} {n}") for n in range(30)]]
    assert leaking(rows) == [(n, "leaks_valid", 1) for n in range(2, 32)]


def test_leaks_ignores_phrases_that_all_of_both_sides_hold() -> None:
    header = [("test" if n % 2 else "train", f"{PASSAGE} {n}") for n in range(2 * 65)]
    assert leaking(header) == []


def test_leaks_names_the_row_that_is_overlapped_most_and_test_before_valid() -> None:
    more = " ".join(f"w{n}" for n in range(20))
    rows = [("valid", PASSAGE), ("test", f"{PASSAGE} {more}"), ("test", PASSAGE), ("train", f"so {PASSAGE} it is")]
    assert leaking(rows) == [(4, "leaks_test", 3)]


# whole texts


def test_leaks_fails_the_build_when_a_whole_text_is_in_train() -> None:
    rows = [("train", "Hello!"), ("train", "other"), ("test", "Hello!")]
    with pytest.raises(UserError) as error:
        leaking(rows)
    assert error.value.code == "data.leak_exact"
    assert error.value.facts == {"rows": 1, "first": f"{1:016x}", "other": f"{3:016x}", "part": "test"}
    assert leaking(rows, Leaks(exact="remove")) == [(1, "leaks_test", 3)]


def test_leaks_of_short_texts_are_whole_ones_in_any_writing() -> None:
    rows = [("train", "hello, WORLD"), ("train", "hello world again"), ("test", "Hello world!")]
    assert leaking(rows) == [(1, "leaks_test", 3)]


def test_leaks_set_to_fail_says_which_row() -> None:
    rows = [("train", f"{PASSAGE}."), ("test", PASSAGE)]
    with pytest.raises(UserError) as error:
        leaking(rows, Leaks(action="fail"))
    assert error.value.code == "data.leaks_found"
    assert f"{1:016x}" in str(error.value)
    assert leaking([("train", "other"), ("test", PASSAGE)], Leaks(action="fail")) == []


@pytest.mark.parametrize("rows", [[], [("train", PASSAGE)], [("test", PASSAGE)], [("train", ""), ("test", "…")]])
def test_leaks_without_anything_to_compare_finds_none(rows: list[tuple[str, str]]) -> None:
    assert leaking(rows) == []


# evaluation sets outside the dataset


def test_leaks_looks_into_outside_evaluation_sets(tmp_path: Path) -> None:
    (tmp_path / "set.jsonl").write_text(json.dumps({"id": 1, "q": {"text": [PASSAGE, None]}, "x": "\ud800"}) + "\n\n")
    (tmp_path / "set.txt").write_bytes(
        "\ufeff第一行\n\n今天天气很好我们一起出去走走看看外面的花和树还有河里的鱼和天上的鸟\n".encode()
    )
    rows = [
        ("train", f"I quote: {PASSAGE.upper()}!"),
        ("train", "他说今天天气很好，我们一起出去走走，看看外面的花和树，还有河里的鱼和天上的鸟。"),
        ("train", "nothing of it"),
        ("train", "第一行。"),
    ]
    params = Leaks(against=("set.jsonl", "set.txt"), exact="remove")
    assert leaking(rows, params, tmp_path) == [(n, "leaks_against", None) for n in (1, 2, 4)]
    assert leaking([*rows, ("train", "第一行")], params, tmp_path)[-1] == (5, "leaks_against", None)
    with pytest.raises(UserError) as error:
        leaking([("train", "第一行")], Leaks(against=("set.txt",)), tmp_path)
    assert error.value.facts == {"rows": 1, "first": f"{1:016x}", "path": Path("set.txt"), "line": 1}
    assert "exact: remove" in str(error.value) and "line 1 of set.txt" in str(error.value)


def test_build_that_leaks_names_file_and_line_of_both(folder: Any) -> None:
    folder.jsonl("exam.jsonl", [{"q": "another question", "a": "no"}, {"q": "capital of France?", "a": "Paris"}])
    folder.jsonl("src/a.jsonl", [{"text": f"document {n}"} for n in range(20)])
    folder.jsonl("src/b.jsonl", [{"text": "first"}, {"text": "capital of France?\nParis"}])
    folder.jsonl("test.jsonl", [{"text": "a test of its own"}])
    sources = [{"from": "src", "name": "web", "part": "train"}, {"from": "test.jsonl", "name": "exam", "part": "test"}]
    data = {"shape": "text", "sources": sources}
    with pytest.raises(UserError) as error:
        folder.run({**data, "steps": [{"use": "leaks", "against": ["exam.jsonl"]}]})
    assert error.value.code == "data.leak_exact_against"
    assert "web/b.jsonl:1, equal to line 2 of exam.jsonl" in str(error.value)
    folder.jsonl("test.jsonl", [{"text": "document 3"}])
    with pytest.raises(UserError) as error:
        folder.run({**data, "steps": ["leaks"]})
    assert "web/a.jsonl:3, equal to exam/test.jsonl:0 of 'test'" in str(error.value)


QUESTION = "What is the capital of France?"


@pytest.mark.parametrize("text", [QUESTION, PASSAGE, f"{PASSAGE} {PASSAGE}"])
def test_leaks_compares_every_text_of_an_outside_row_by_itself(tmp_path: Path, text: str) -> None:
    (tmp_path / "set.jsonl").write_text(json.dumps({"id": "q-17", "text": text, "label": "positive"}) + "\n")
    params = Leaks(against=("set.jsonl",))
    with pytest.raises(UserError) as error:
        leaking([("train", "other"), ("train", text)], params, tmp_path)
    assert (error.value.code, error.value.facts["line"]) == ("data.leak_exact_against", 1)
    rows = [("train", f"{text.upper()}!"), ("train", "q 18"), ("train", "label positive")]
    assert leaking(rows, params, tmp_path) == [(1, "leaks_against", None)]


def test_leaks_compares_neighbouring_texts_of_an_outside_row_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {
        "id": "q-17",
        "messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "Paris."}],
    }
    (tmp_path / "chat.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "set.jsonl").write_text(json.dumps({"id": "q", "question": QUESTION, "answer": "Paris."}) + "\n")
    monkeypatch.setattr(outside, "SOME_CHARS", 1)
    for name in ("set.jsonl", "chat.jsonl"):
        params = Leaks(against=(name,), exact="remove")
        rows = [
            ("train", f"{QUESTION}\nParis."),
            ("train", f"{QUESTION}\nLyon."),
            ("train", "what IS the capital of France\nParis"),
        ]
        assert leaking(rows, params, tmp_path) == [(n, "leaks_against", None) for n in (1, 3)]


def test_leaks_looks_at_the_columns_that_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "set.jsonl").write_text(
        json.dumps({"q": QUESTION, "label": "good", "turns": [{"q": PASSAGE}]})
        + "\n"
        + json.dumps({"label": "good"})
        + "\n"
    )
    rows = [("train", QUESTION), ("train", "good"), ("train", PASSAGE)]
    params = Leaks(against=("set.jsonl",), exact="remove")
    assert leaking(rows, params, tmp_path) == [(n, "leaks_against", None) for n in (1, 2, 3)]
    told = params.model_copy(update={"columns": ("q",)})
    assert leaking(rows, told, tmp_path) == [(n, "leaks_against", None) for n in (1, 3)]
    with pytest.raises(UserError) as error:
        leaking(rows, params.model_copy(update={"columns": ("answer",)}), tmp_path)
    assert error.value.code == "data.leak_columns"
    assert "answer" in str(error.value)


def test_leaks_fingerprints_outside_evaluation_sets(tmp_path: Path) -> None:
    (tmp_path / "set.txt").write_text("a")
    before = leaks.external(Leaks(against=("set.txt",)), tmp_path)
    (tmp_path / "set.txt").write_text("b")
    assert leaks.external(Leaks(against=("set.txt",)), tmp_path).keys() == before.keys()
    assert leaks.external(Leaks(against=("set.txt",)), tmp_path) != before
    assert leaks.external(Leaks(), tmp_path) == {}
    with pytest.raises(UserError, match=r"missing\.txt"):
        leaks.external(Leaks(against=("missing.txt",)), tmp_path)


@pytest.mark.parametrize("content", [b'{"a": "b"}\n{"a": ', b"{}\n\xff\xfe", b"{}\n" + b"[" * 100_000])
def test_leaks_says_which_line_of_an_evaluation_set_is_broken(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "set.jsonl").write_bytes(content)
    with pytest.raises(UserError) as error:
        leaking([("train", "a")], Leaks(against=("set.jsonl",)), tmp_path)
    assert error.value.code == "data.leak_file"
    assert error.value.facts["line"] == 2
    assert "set.jsonl" in str(error.value)


# interpreted kernels


def test_interpreted_ngram_kernels_give_what_compiled_ones_give() -> None:
    texts = [PASSAGE, f"und {PASSAGE} 中文，也有一些 ไทย \u200bx", "", "中" * 31, "short"]
    data, offsets = flat(pl.Series(texts))
    rule = (ngrams.lettering(), minhash.powers(), np.array((5, 8)))
    found, bounds = ngrams.grams_of(data, offsets, (5, 8))
    keys = np.unique(found[bounds[0] : bounds[1]])
    slots, places = ngrams.hash_table(keys)
    hits, hit_bounds = ngrams.hits_of((data, offsets), (5, 8), (slots, places))
    again, ends = np.empty_like(found), np.empty(len(texts), np.int64)
    slow = np.zeros_like(slots), np.zeros_like(places), np.empty_like(hits), np.empty(len(texts), np.int64)
    with np.errstate(over="ignore"):
        ngrams.write_grams.py_func((data, offsets), rule, again, ends)
        ngrams.fill_table.py_func(keys, *slow[:2])
        ngrams.write_hits.py_func((found, bounds), (slots, places), *slow[2:])
        token_hashes = np.empty(99, np.uint64)
        length = ngrams.tokens.py_func(data, 0, int(offsets[1]), rule[0], token_hashes)
        grams = np.empty(99, np.uint64)
        count = ngrams.grams.py_func(token_hashes, length, *rule[1:], grams)
    assert (again == found).all()
    assert ends.tolist() == bounds[1:].tolist()
    assert (slow[0] == slots).all()
    assert slow[2].tolist() == hits.tolist()
    assert slow[3].tolist() == hit_bounds[1:].tolist()
    assert sorted(hits[: hit_bounds[1]]) == list(range(len(keys)))
    assert grams[:count].tolist() == found[: bounds[1]].tolist()
    assert [ngrams.place_of.py_func(key, slots, places) for key in keys] == list(range(len(keys)))
    best = np.empty(2, np.int64)
    held = np.array([0, 1, 2], np.uint32), np.array([0, 2, 3])
    postings = np.array([0, 1, 2, 3]), np.array([0, 0, 1], np.uint32), np.array([0, 1, 2], np.uint8)
    ngrams.write_overlaps.py_func(held, postings, np.array([4, 1]), np.array([0.5, 0.5]), best)
    assert best.tolist() == [0, -1]


def test_interpreted_search_for_the_nearest_gives_what_the_compiled_gives() -> None:
    texts = [PASSAGE, f"{PASSAGE} more", "something else altogether, as long as that"]
    drawn = minhash.sketches(*flat(pl.Series(texts)), (8, 5))
    keys = np.array([[7, 9], [8, 9]], np.uint64)
    ordered, owners = np.array([7, 7, 8, 9], np.uint64), np.array([0, 1, 2, 1])
    for search in (minhash.find_nearest, minhash.find_nearest.py_func):
        best, alike = np.full(2, -1), np.full(2, 0.5)
        search(keys, drawn[[0, 2]], (ordered, owners, drawn), best, alike)
        assert best.tolist() == [0, 2]
        assert alike.tolist() == [1.0, 1.0]
