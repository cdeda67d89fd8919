"""Steps: what changes, what is dropped and why, against slow references."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from step_tables import after, batch_of, cleaner

from inhouse.core.errors import UserError
from inhouse.core.plugins import operators
from inhouse.data.batch import Batch
from inhouse.data.operators.around import Around

PUNCTUATION = "，。！？；：、“”‘’（）《》【】—…·～％＋－０１２ＡＢ　"
PARTS = ["train", "valid", "test"]


def changed(text: str, *steps: Any) -> str:
    return after(batch_of([(text, "train", None)]), *steps).texts[0]


EXAMPLES = {
    "fix_text": cleaner("fix_text"),
    "normalize_space": cleaner("normalize_space"),
    "symbols": cleaner("symbols"),
    "repetition": cleaner("repetition"),
    "language": cleaner("language"),
    "words": cleaner("words"),
    "rare_words": cleaner("rare_words"),
    "boilerplate": cleaner("boilerplate"),
    "near_dedup": cleaner("near_dedup"),
    "pii": cleaner("pii"),
    "synonyms": cleaner("synonyms"),
    "grammar": cleaner("grammar"),
    "counterfactual": cleaner("counterfactual"),
    "leaks": cleaner("leaks", exact="remove"),
    "truncate": cleaner("truncate", max_words=2, max_chars=5),
    "length": cleaner("length", min_words=1, max_chars=6),
    "exact_dedup": cleaner("exact_dedup"),
    "balance": cleaner("balance", per_label={"train": 2, "test": 1}),
}
ELSEWHERE = {"back_translation", "paraphrase", "perplexity"}  # need an endpoint or a model
row_lists = st.lists(
    st.tuples(st.text("ab 中，", min_size=1, max_size=4), st.sampled_from(PARTS), st.sampled_from("xy")), max_size=12
)


@pytest.mark.parametrize("name", sorted(operators("cleaner")))
def test_cleaner_contract_holds(name: str) -> None:
    operator = operators("cleaner")[name]
    needed = {"map": ["change"], "keep": ["measure", "drop_reason"], "reduce": ["emit", "decide"], "expand": ["expand"]}
    for function in needed[operator.function("SHAPE")]:
        assert callable(operator.function(function))
    assert name in EXAMPLES or name in ELSEWHERE, "add an example, so that the properties below hold for every step"


@pytest.mark.parametrize("name", sorted(EXAMPLES))
@settings(max_examples=6, deadline=None)
@given(rows=row_lists, batch=st.integers(1, 5))
def test_step_result_does_not_depend_on_batches(name: str, rows: list[Any], batch: int) -> None:
    whole = after(batch_of(rows), EXAMPLES[name])
    cut = after(batch_of(rows), EXAMPLES[name], shard_rows=batch)
    assert whole.batch.rows.equals(cut.batch.rows)
    assert whole.batch.pieces.equals(cut.batch.pieces)
    assert whole.drops == cut.drops
    made = whole.batch.rows["parent"].drop_nulls().len()
    assert whole.batch.rows.height + len(whole.drops) == len(rows) + made


# truncate


@settings(max_examples=30, deadline=None)
@given(st.text("ab 中\n", max_size=30), st.integers(1, 5))
def test_truncate_keeps_the_first_words(text: str, limit: int) -> None:
    found = changed(text, cleaner("truncate", max_words=limit))
    assert found.split() == text.split()[:limit]
    assert text.startswith(found)


def test_truncate_cuts_chinese_by_characters() -> None:
    assert changed("银行下调了利率", cleaner("truncate", max_chars=4)) == "银行下调"
    assert changed("银行 下调", cleaner("truncate", max_chars=3)) == "银行"


def test_truncate_never_cuts_an_answer() -> None:
    pieces = pl.DataFrame({"text": ["a b c", "a b c"], "answer": [False, True]})
    change = operators("cleaner")["truncate"].function("change")
    found = change(pieces, cleaner("truncate", max_words=1), Around(0, Path(), Path(), offline=True))
    assert found.to_list() == ["a", "a b c"]


# length


@settings(max_examples=30, deadline=None)
@given(st.text("ab 中\n", min_size=1, max_size=12), st.integers(1, 4), st.integers(4, 8))
def test_length_agrees_with_counting_by_hand(text: str, least: int, most: int) -> None:
    def reason(**params: int) -> str | None:
        return after(batch_of([(text, "train", None)]), cleaner("length", **params)).drops.get(1, (None,))[0]

    words = len(text.split())
    assert reason(min_words=least, max_words=most) == (
        "too_short" if words < least else "too_long" if words > most else None
    )
    assert reason(min_chars=least, max_chars=most) == (
        "too_short" if len(text) < least else "too_long" if len(text) > most else None
    )


@pytest.mark.parametrize(
    ("use", "params"), [("truncate", {}), ("length", {"min_words": 3, "max_words": 2}), ("balance", {})]
)
def test_step_settings_that_make_no_sense_are_refused(use: str, params: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        cleaner(use, **params)


# exact_dedup


@settings(max_examples=40, deadline=None)
@given(row_lists, st.randoms(use_true_random=False))
def test_exact_dedup_agrees_with_a_slow_reference(rows: list[Any], random: Any) -> None:
    ids = random.sample(range(1, 1000), len(rows))
    groups: dict[str, list[tuple[int, int, str, str]]] = defaultdict(list)
    for number, (text, part, label) in zip(ids, rows, strict=True):
        groups[text].append((["test", "valid", "train"].index(part), number, part, label))
    wanted = {}
    for members in groups.values():
        _, kept, kept_part, kept_label = min(members)
        for _, number, part, label in members:
            if number != kept:
                other = "duplicate" if label == kept_label else "duplicate_other_label"
                wanted[number] = (other if part == kept_part else f"duplicate_of_{kept_part}", kept)
    found = after(batch_of(rows, ids), cleaner("exact_dedup"))
    assert found.drops == wanted
    assert len(set(found.texts)) == len(found.texts)


# balance


def test_balance_keeps_the_quota_of_each_label_and_part() -> None:
    rows = [(str(n), part, label) for n in range(9) for part in PARTS for label in "xy"]
    found = after(batch_of(rows), cleaner("balance", per_label={"train": 4, "test": 20}), seed=3)
    counts = Counter(found.batch.rows.select("part", "label").iter_rows())
    assert counts == {(p, label): {"train": 4, "valid": 9, "test": 9}[p] for p in PARTS for label in "xy"}
    assert found.batch.rows["row"].is_sorted()
    every = after(batch_of(rows), cleaner("balance", per_label=1), seed=3)
    assert every.batch.rows.height == 6


def test_balance_choice_depends_on_the_seed_and_not_on_other_labels() -> None:
    rows = [(str(n), "train", "x") for n in range(40)]
    more = [*rows, *[(f"y{n}", "train", "y") for n in range(40)]]
    balance = cleaner("balance", per_label=10)

    def chosen(table: Batch, seed: int) -> set[int]:
        found = after(table, balance, seed=seed).batch.rows
        return set(found.filter(pl.col("label") == "x")["row"])

    assert chosen(batch_of(rows), 1) == chosen(batch_of(more), 1)
    assert chosen(batch_of(rows), 1) != chosen(batch_of(rows), 2)


def test_balance_without_labels_is_refused() -> None:
    with pytest.raises(UserError) as error:
        after(batch_of([("a", "train", None)]), cleaner("balance", per_label=1))
    assert error.value.code == "data.balance_labels"
