"""Near duplicates: recall and precision on pairs of known similarity, and kernels against slow references."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from truth_pairs import LANGUAGES, chain, families, jaccard, pairs, same_template, shingles

from inhouse.data.clusters import RECALL, least_resemblance, rows_of_band
from inhouse.data.kernels import minhash
from inhouse.data.kernels.buffers import flat
from inhouse.data.operators import exact_dedup, near_dedup
from inhouse.data.operators.around import Around
from inhouse.data.operators.near_dedup import NearDedup

AROUND = Around(0, Path(), Path(), True)
LETTERS = "the quick brown fox jumps over the lazy dog and runs away from all the others "
texts_of_both = st.lists(st.text("ab Cé中文，。\n\u200b🙂Ａ", max_size=30), min_size=1, max_size=6)


def frame(texts: list[str], parts: list[str] | None = None, ids: list[int] | None = None) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "row": pl.Series(ids or range(1, len(texts) + 1), dtype=pl.UInt64),
            "part": pl.Series(parts or ["train"] * len(texts), dtype=pl.String),
            "label": pl.Series([None] * len(texts), dtype=pl.String),
            "text": pl.Series(texts, dtype=pl.String),
        }
    ).sort("row")


def decided(docs: pl.DataFrame, params: NearDedup | None = None, batch: int = 1000) -> pl.DataFrame:
    """Both rounds over batches, as the engine runs them."""
    params = params or NearDedup()

    def over_batches(function: Callable[..., pl.DataFrame], some: pl.DataFrame) -> pl.DataFrame:
        starts = range(0, max(some.height, 1), batch)
        return pl.concat([function(some.slice(n, batch), params, AROUND) for n in starts]).sort("row")

    emitted = over_batches(near_dedup.emit, docs)
    asked = near_dedup.ask(emitted, params, AROUND)
    more = over_batches(near_dedup.emit_more, docs.filter(pl.col("row").is_in(asked.implode())))
    return near_dedup.decide(emitted, params, AROUND, more)


def pair_texts(found: list[Any]) -> list[str]:
    return [text for pair in found for text in (pair.one, pair.other)]


def joined_pairs(found: pl.DataFrame) -> list[bool]:
    """For each dropped row, whether it was dropped for the other text of its own pair."""
    return [(row - 1) // 2 == (kept - 1) // 2 for row, kept in found.select("row", "kept").iter_rows()]


# recall and precision: the bars of the issue, on 500 pairs of each language and level


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(("low", "high", "recall"), [(0.8, 0.85, 0.98), (0.7, 0.75, 0.9)])
def test_near_dedup_finds_pairs_of_known_similarity(language: str, low: float, high: float, recall: float) -> None:
    found = joined_pairs(decided(frame(pair_texts(pairs(language, low, high, 500)))))
    print(f"{language} J {low}-{high}: recall {sum(found) / 500:.3f}, precision {sum(found) / len(found):.3f}")
    assert sum(found) >= recall * 500
    assert sum(found) >= 0.97 * len(found)


@pytest.mark.parametrize("language", LANGUAGES)
def test_near_dedup_keeps_different_facts_in_one_template(language: str) -> None:
    hard, true = same_template(language, 500), pairs(language, 0.8, 0.95, 200, seed=9)
    assert all(0.3 <= pair.jaccard < 0.6 for pair in hard)
    found = decided(frame(pair_texts([*true, *hard])))
    right = [row <= 400 and same for row, same in zip(found["row"], joined_pairs(found), strict=True)]
    assert sum(right) >= 0.97 * len(right)
    assert sum(right) >= 0.98 * 200


@pytest.mark.parametrize("language", LANGUAGES)
def test_near_dedup_finds_pairs_in_a_corpus_that_one_template_fills(language: str) -> None:
    # Every bucket of the template's shingles holds hundreds of rows that resemble each other by half.
    frame_text = same_template(language, 1)[0].one
    part = frame_text[: len(frame_text) // 2]
    true = pairs(language, 0.9, 0.95, 300, seed=5)
    texts = [f"{part} {text[: len(part)]}" for text in pair_texts(true)]
    close = [n for n in range(300) if jaccard(*texts[2 * n : 2 * n + 2], 8 if language == "en" else 5) >= 0.9]
    found = decided(frame(texts))
    own = {(row - 1) // 2 for row, same in zip(found["row"], joined_pairs(found), strict=True) if same}
    assert len(close) > 150
    assert len(own & set(close)) >= 0.95 * len(close)
    assert sum(joined_pairs(found)) >= 0.97 * found.height


# clusters


@pytest.mark.parametrize("language", LANGUAGES)
def test_near_dedup_keeps_the_first_of_each_family(language: str) -> None:
    groups = families(language, 60)
    texts = [text for group in groups for text in group]
    number = [n for n, group in enumerate(groups) for _ in group]
    found = decided(frame(texts))
    assert set(found["reason"]) == {"near_duplicate"}
    kept = [n for n in range(len(texts)) if n + 1 not in set(found["row"])]
    assert [number[n] for n in kept] == list(range(60))
    assert all(texts[k - 1] == groups[number[r - 1]][0] for r, k in found.select("row", "kept").iter_rows())


def test_near_dedup_keeps_a_test_row_before_any_other() -> None:
    texts = [LETTERS, LETTERS.upper(), LETTERS.replace(" ", "\n"), LETTERS, "Nothing to do with the others at all."]
    found = decided(frame(texts, ["train", "valid", "test", "test", "train"], [1, 2, 30, 40, 5]))
    assert found.rows() == [
        (1, "near_duplicate_of_test", 30),
        (2, "near_duplicate_of_test", 30),
        (40, "near_duplicate", 30),
    ]


@pytest.mark.parametrize("language", LANGUAGES)
def test_near_dedup_drops_of_a_chain_only_what_is_like_a_row_that_stays(language: str) -> None:
    chains = [chain(language, 12, seed) for seed in range(12)]
    texts, length = [text for one in chains for text in one], 8 if language == "en" else 5
    steps = [jaccard(*two, length) for one in chains for two in pairwise(one)]
    assert min(steps) > 0.85
    assert max(jaccard(one[0], one[-1], length) for one in chains) < 0.55
    found = decided(frame(texts))
    assert set(found["row"]).isdisjoint(found["kept"])
    alike = [jaccard(texts[row - 1], texts[kept - 1], length) for row, kept in found.select("row", "kept").iter_rows()]
    assert min(alike) > 0.6  # 0.7 less what sketches may err
    stay = [n for n in range(len(texts)) if n + 1 not in set(found["row"])]
    assert len(chains) < len(stay) < len(texts) / 2
    for n in range(0, len(texts), 12):  # of what stays nothing is alike either
        assert (
            max(jaccard(a, b, length) for a, b in combinations([texts[m] for m in stay if n <= m < n + 12], 2)) < 0.78
        )
    assert decided(frame(texts), batch=5).equals(found)


def test_a_row_of_a_vast_cluster_still_finds_the_row_it_was_joined_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minhash, "MOST_STARS", 1)
    drawn = np.arange(1, 5, dtype=np.uint8).repeat(minhash.SKETCH_BINS).reshape(4, -1)
    sketched = drawn, np.array([0, 1, 1, 1, 2])  # rows 1, 2 and 3 are alike, row 0 and row 4 are like nobody
    firsts = np.full(5, -1)
    joined = np.zeros(5, np.int64), np.array([0, 0, 1, 2, 3])
    minhash.gather_stars.py_func(joined, sketched, 0.7, firsts)
    assert firsts.tolist() == [0, 1, 1, 1, 4]


def test_near_dedup_grouping_keeps_a_chain_on_one_side() -> None:
    texts = chain("en", 12, 3)
    moved = decided(frame(texts, ["test", *["train"] * 11]), NearDedup(action="group"))
    assert moved.select("row", "part").rows() == [(n, "test") for n in range(2, 13)]


def test_near_dedup_grouping_moves_whole_clusters_to_one_side() -> None:
    groups = families("en", 80)
    texts = [text for group in groups for text in group]
    parts = ["test" if n % 3 == 0 else "train" for n in range(len(texts))]
    moved = decided(frame(texts, parts), NearDedup(action="group"))
    assert moved["reason"].null_count() == moved["kept"].null_count() == moved.height
    side = dict(enumerate(parts, 1)) | dict(moved.select("row", "part").iter_rows())
    row = 0
    for group in groups:
        assert {side[row + n] for n in range(1, len(group) + 1)} == {parts[row]}
        row += len(group)


def test_near_dedup_grouping_leaves_stated_parts_alone() -> None:
    docs = frame([LETTERS] * 4, ["train", "train", "valid", "test"])
    docs = docs.with_columns(stated=pl.Series([False, True, True, False]))
    moved = decided(docs, NearDedup(action="group"))
    assert moved.select("row", "part").rows() == [(1, "valid"), (4, "valid")]


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(24)), st.integers(1, 9))
def test_near_dedup_does_not_depend_on_batches_or_order(order: list[int], batch: int) -> None:
    texts = [text for group in families("zh", 8)[:8] for text in group][:24]
    texts += [LETTERS] * (24 - len(texts))
    docs = frame(texts)
    whole = decided(docs)
    emitted = near_dedup.emit(docs, NearDedup(), AROUND)
    more = near_dedup.emit_more(docs, NearDedup(), AROUND)
    assert decided(docs, batch=batch).equals(whole)
    assert near_dedup.decide(emitted[order], NearDedup(), AROUND, more[order[::-1]]).equals(whole)


@pytest.mark.parametrize("text", ["", "a b c d", "四个字，"])
def test_near_dedup_leaves_texts_shorter_than_a_run_to_exact_dedup(text: str) -> None:
    docs, exact = frame([text] * 3), exact_dedup.ExactDedup()
    assert decided(docs).is_empty()
    assert exact_dedup.decide(exact_dedup.emit(docs, exact, AROUND), exact, AROUND)["kept"].to_list() == [1, 1]


def test_near_dedup_of_no_rows_decides_nothing() -> None:
    assert decided(frame([])).schema == decided(frame([LETTERS, LETTERS])).schema


# bands


@pytest.mark.parametrize(("threshold", "rows"), [(0.5, 3), (0.7, 5), (0.8, 6), (0.9, 10)])
def test_bands_are_as_long_as_recall_at_the_threshold_allows(threshold: float, rows: int) -> None:
    def meets(r: int) -> float:
        return 1 - (1 - threshold**r) ** (112 // r)

    assert rows_of_band(threshold, 112) == rows
    assert meets(rows) >= RECALL > meets(rows + 1)
    assert threshold - 0.04 < least_resemblance(threshold) < threshold


# kernels, interpreted and compiled, against plain Python


def slow_fold(text: str) -> str:
    found = "".join(" " if (f := minhash.fold(c)) is None else f for c in text if minhash.fold(c) is not None)
    return " ".join(found.split())


def slow_runs(text: str) -> list[str]:
    """Runs of folded text of weight 40, a wide character weighing 8 and others 5, each ending at another character."""
    text = slow_fold(text)
    weights = [8 if any(a <= ord(c) <= b for a, b in minhash.WIDE_RANGES) else 5 for c in text]
    found = []
    for end in range(1, len(text) + 1):
        start = end
        while start > 0 and sum(weights[start:end]) < 40:
            start -= 1
        if sum(weights[start:end]) >= 40:
            found.append(text[start:end])
    return found


def hashes_of(text: str, pure: bool) -> list[int]:
    data, _ = flat(pl.Series([text]))
    folded, out = np.empty(len(data) + 1, np.uint32), np.empty(len(data) + 1, np.uint32)
    fold, hashes = minhash.folded_text, minhash.shingle_hashes
    if pure:
        fold, hashes = fold.py_func, hashes.py_func
    with np.errstate(over="ignore"):
        length = fold(data, 0, len(data), minhash.folding(), folded)
        return out[: hashes(folded, length, minhash.powers(), np.array((8, 5)), out)].tolist()


@settings(max_examples=60, deadline=None)
@given(texts_of_both)
def test_shingle_hashes_are_equal_exactly_where_runs_are(texts: list[str]) -> None:
    names: dict[str, int] = {}
    for text in texts:
        compiled = hashes_of(text, pure=False)
        assert hashes_of(text, pure=True) == compiled
        runs = slow_runs(text)
        assert [names.setdefault(run, number) for run, number in zip(runs, compiled, strict=True)] == compiled
    assert len(set(names.values())) == len(names)


@pytest.mark.parametrize(("text", "length"), [("Some words, and 2 more words.", 8), ("今天天气很好我们出去走走", 5)])
def test_runs_of_one_script_are_its_plain_shingles(text: str, length: int) -> None:
    assert set(slow_runs(text)) == shingles(text, length)
    assert len(set(hashes_of(text, pure=False))) == len(shingles(text, length))


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=20))
def test_folding_agrees_with_unicode(text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    assert hashes_of(text * 3, pure=False) == hashes_of(f" \n{text * 3}\u3000", pure=False)
    lower = [c for c in text if len(unicodedata.normalize("NFKC", c).lower()) == 1 and ord(c) < 1 << 16]
    upper = "".join(c.upper() if len(c.upper()) == 1 and c.upper().lower() == c else c for c in lower)
    assert hashes_of("".join(lower) * 9, pure=False) == hashes_of(upper * 9, pure=False)


@pytest.mark.parametrize("pure", [False, True])
def test_signature_is_the_least_of_each_permutation(pure: bool) -> None:
    hashes = np.array([5, 4_000_000_000, 77, 5], np.uint32)
    drawn, out = minhash.permutations(16), np.empty(16, np.uint32)
    least = minhash.least_under_permutations
    with np.errstate(over="ignore"):
        (least.py_func if pure else least)(hashes, 4, drawn[0], drawn[1], out)
    wanted = [min((int(a) * int(h) + int(b)) % 2**32 for h in hashes) for a, b in drawn.T]
    assert out.tolist() == wanted
    assert len({int(a) for a in drawn[0]}) == 16


@pytest.mark.parametrize("language", LANGUAGES)
def test_sketches_and_signatures_tell_the_similarity(language: str) -> None:
    known = [*pairs(language, 0.7, 0.95, 60), *same_template(language, 60)]
    data, offsets = flat(pl.Series(pair_texts(known)))
    drawn = minhash.sketches(data, offsets, (8, 5))
    signed, counts = minhash.signatures(data, offsets, (8, 5), 112)
    assert (counts > 100).all()
    told = np.array([minhash.resemblance(drawn[2 * n], drawn[2 * n + 1]) for n in range(len(known))])
    pure = minhash.resemblance.py_func(drawn[0], drawn[1])
    equal = (signed[::2] == signed[1::2]).mean(axis=1)
    true = np.array([pair.jaccard for pair in known])
    assert pure == told[0]
    assert abs(told - true).max() < 0.07  # 5 standard errors of 1,024 bins, and punctuation weighs less in Chinese
    assert abs((told - true).mean()) < 0.01
    assert abs((equal - true).mean()) < 0.02
    assert np.sqrt(((equal - true) ** 2).mean()) < 1.4 * np.sqrt((true * (1 - true)).mean() / 112)


def test_sketch_of_a_short_text_is_nearly_exact() -> None:
    one, other = LETTERS + "one more", LETTERS + "two of them"
    drawn = minhash.sketches(*flat(pl.Series([one, other, ""])), (8, 5))
    assert abs(minhash.resemblance(drawn[0], drawn[1]) - jaccard(one, other, 8)) < 0.04
    assert minhash.resemblance(drawn[0], drawn[2]) == minhash.resemblance(drawn[2], drawn[2]) == 0


def test_interpreted_kernels_give_what_compiled_ones_give() -> None:
    data, offsets = flat(pl.Series([LETTERS, LETTERS.upper() + "x", "中文的一句话和 some English 混在一起"]))
    rule = minhash.rule_of((8, 5))
    drawn = minhash.sketches(data, offsets, (8, 5))
    signed, counts = minhash.signatures(data, offsets, (8, 5), 16)
    found = np.zeros_like(drawn), np.empty_like(signed), np.zeros_like(counts)
    keys, order = np.array([1, 1, 2], np.uint64) << np.uint64(32), np.array([0, 1, 2])
    parents, partners, firsts = np.arange(3), np.arange(3), np.full(3, -1)
    sketched = drawn, np.array([0, 1, 2])
    with np.errstate(over="ignore"):
        minhash.draw.py_func((data, offsets), rule, found[0])
        minhash.sign.py_func((data, offsets), rule, minhash.permutations(16), found[1], found[2])
    minhash.join_neighbours.py_func(keys, order, sketched, (parents, partners), 0.7)
    minhash.gather_stars.py_func((parents, partners), sketched, 0.7, firsts)
    assert minhash.told.py_func(sketched, 0, 1) == minhash.resemblance(drawn[0], drawn[1])
    assert partners.tolist() == firsts.tolist() == [0, 0, 2]
    assert (found[0] == drawn).all()
    assert (found[1] == signed).all()
    assert found[2].tolist() == counts.tolist()
    assert parents.tolist() == [0, 0, 2]
    assert minhash.root.py_func(np.array([0, 0, 1]), 2) == 0
    assert minhash.longest.py_func(offsets) == np.diff(offsets).max()
    assert [minhash.code_point.py_func("é".encode(), 0), minhash.code_point.py_func("🙂".encode(), 0)] == [
        ord("é") | 2 << 21,
        ord("🙂") | 4 << 21,
    ]
    assert minhash.folded_point.py_func(0x20000, rule[0]) == 0x20000 | minhash.WIDE
    assert minhash.folded_point.py_func(ord("🙂"), rule[0]) == ord("🙂")
