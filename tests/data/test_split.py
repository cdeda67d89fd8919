"""The split: by content, stable, and never without a test part."""

from __future__ import annotations

import unicodedata
from datetime import UTC, date, datetime
from typing import Any

import polars as pl
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from inhouse.core.errors import UserError
from inhouse.data import split as splitting
from inhouse.data.parts import decide_parts
from inhouse.data.split import SplitParams

QUESTIONS = [f"question {n}" for n in range(2000)]


def assign(questions: Any, split: SplitParams, groups: Any = None, times: Any = None) -> list[Any]:
    """Parts of rows given by what reading makes keys and moments of."""
    keys = splitting.question_keys(list(questions), split)
    for place, group in enumerate(groups or ()):
        keys[place] = keys[place] if group is None else splitting.group_key(group, split)
    moments = None if times is None else [splitting.moment_of(value, str(split.time)) for value in times]
    parts = splitting.assign(
        pl.Series(keys, dtype=pl.UInt64), split, None if moments is None else pl.Series(moments, dtype=pl.Float64)
    )
    return parts.to_list()


def test_split_gives_about_the_shares_asked_for() -> None:
    parts = assign(QUESTIONS, SplitParams(test=0.2, valid=0.1))
    # 5 standard deviations of a binomial with n = 2000 are below 0.045
    assert abs(parts.count("test") / 2000 - 0.2) < 0.045
    assert abs(parts.count("valid") / 2000 - 0.1) < 0.045


@settings(max_examples=50, deadline=None)
@given(st.permutations(QUESTIONS[:60]), st.integers(20, 60))
def test_split_does_not_depend_on_order_or_on_other_rows(shuffled: list[str], count: int) -> None:
    split = SplitParams(test=0.3)
    whole = dict(zip(QUESTIONS[:60], assign(QUESTIONS[:60], split), strict=True))
    some = shuffled[:count]
    assert dict(zip(some, assign(some, split), strict=True)) == {q: whole[q] for q in some}


def test_split_equal_content_lands_on_the_same_side() -> None:
    variants = [v for q in QUESTIONS[:50] for v in (q, q.upper(), f"  {q.replace(' ', '   ')}\n")]
    parts = assign(variants, SplitParams(test=0.5))
    assert all(len(set(parts[n : n + 3])) == 1 for n in range(0, len(parts), 3))
    assert set(parts) == {"train", "test"}


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.text(
            st.one_of(
                st.sampled_from("aB \t\n\x1c\xa0\u3000Éßﬁ中文İȺΣς한\u1100\u1161é\u0301가Ａ😀𐐀\x00"),
                st.characters(codec="utf-8"),
            )
        ),
        max_size=6,
    )
)
def test_split_key_of_a_question_is_that_of_its_folded_text(questions: list[str]) -> None:
    split = SplitParams(seed=3)
    folded = [" ".join(unicodedata.normalize("NFC", question).split()).casefold() for question in questions]
    wanted = [xxhash.xxh3_64_intdigest(text.encode(), seed=3) for text in folded]
    assert splitting.question_keys(questions, split) == wanted


def test_split_another_seed_is_another_split() -> None:
    assert assign(QUESTIONS, SplitParams(seed=1)) != assign(QUESTIONS, SplitParams(seed=2))


@pytest.mark.parametrize("start", range(0, 200, 10))
def test_split_of_just_enough_rows_has_a_test_and_a_valid_row(start: int) -> None:
    parts = assign(QUESTIONS[start : start + 10], SplitParams(test=0.1, valid=0.1))
    assert {"test", "valid", "train"} <= set(parts)


def test_split_of_too_few_rows_says_how_many_are_needed(folder: Any) -> None:
    rows = [{"prompt": "same", "completion": f"{n}"} for n in range(30)]
    folder.jsonl("a.jsonl", [*rows, {"prompt": "other", "completion": "x"}])
    with pytest.raises(UserError) as error:
        folder.run({"sources": "a.jsonl", "split": {"test": 0.0001}})
    assert error.value.code == "split.no_test"
    assert "10000" in str(error.value)
    assert "2 different rows" in str(error.value)


def test_split_without_a_test_share_trains_on_everything() -> None:
    assert set(assign(QUESTIONS, SplitParams(test=0))) == {"train"}


@pytest.mark.parametrize("values", [{"test": 1.0}, {"test": 0.6, "valid": 0.4}, {"test": -0.1}])
def test_split_shares_that_leave_nothing_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        SplitParams(**values)


# by group


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=80), st.randoms(use_true_random=False))
def test_split_by_group_puts_each_group_on_one_side_in_any_order(names: list[int], random: Any) -> None:
    split = SplitParams(test=0.3, valid=0.2, group="person")
    rows = [(f"question {n}", f"person {name}") for n, name in enumerate(names)]
    side = dict(zip(rows, assign([q for q, _ in rows], split, [g for _, g in rows]), strict=True))
    for _, name in rows:
        assert len({part for (_, group), part in side.items() if group == name}) == 1
    random.shuffle(rows)
    assert assign([q for q, _ in rows], split, [g for _, g in rows]) == [side[row] for row in rows]


def test_split_by_group_gives_about_the_share_of_groups() -> None:
    groups = [n // 3 for n in range(2000)]
    parts = assign(QUESTIONS, SplitParams(test=0.2), groups)
    assert abs(parts.count("test") / 2000 - 0.2) < 0.078  # 5 standard deviations with 667 groups


def test_split_by_group_treats_rows_without_a_group_as_alone() -> None:
    parts = assign(QUESTIONS[:200], SplitParams(test=0.5), [None] * 200)
    assert parts == assign(QUESTIONS[:200], SplitParams(test=0.5))


@pytest.mark.parametrize("value", [1.5, ["a"], {"a": 1}])
def test_split_by_group_refuses_what_names_no_group(value: object) -> None:
    with pytest.raises(UserError) as error:
        assign(["a"], SplitParams(group="g"), [value])
    assert error.value.code == "split.group_value"
    assert type(value).__name__ in str(error.value)


# by time


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=10, max_size=60), st.randoms(use_true_random=False))
def test_split_by_time_measures_on_the_newest_rows(times: list[int], random: Any) -> None:
    split = SplitParams(test=0.2, valid=0.2, time="t")
    rows = [(f"question {n}", time) for n, time in enumerate(times)]
    try:
        parts = assign([q for q, _ in rows], split, None, times)
    except UserError as error:
        assert error.code == "split.time_same"
        assert times.count(min(times)) >= 0.6 * len(times)  # one moment holds all that is left for training
        return
    by_part = {p: [t for t, part in zip(times, parts, strict=True) if part == p] for p in ("train", "valid", "test")}
    assert len(by_part["test"]) >= 0.2 * len(times)
    assert len(by_part["test"]) + len(by_part["valid"]) >= 0.4 * len(times)
    assert sum(t > min(by_part["test"]) for t in times) < 0.2 * len(times)  # no more than are needed
    assert max(by_part["train"]) < min(by_part["test"] + by_part["valid"])
    assert max(by_part["valid"], default=-1) < min(by_part["test"])
    side = dict(zip(rows, parts, strict=True))
    random.shuffle(rows)
    assert assign([q for q, _ in rows], split, None, [t for _, t in rows]) == [side[row] for row in rows]


def test_split_by_time_of_ten_rows_takes_three_for_thirty_percent() -> None:
    parts = assign(QUESTIONS[:10], SplitParams(test=0.1, valid=0.2, time="t"), None, list(range(10)))
    assert parts == ["train"] * 7 + ["valid"] * 2 + ["test"]


@pytest.mark.parametrize(
    "times",
    [
        ["2024-01-01", "2024-01-02T00:00:00Z", "2024-01-02T09:00:00+08:00", "2024-01-02T01:30:00"],
        [date(2024, 1, 1), datetime(2024, 1, 2, tzinfo=UTC), datetime(2024, 1, 2, 1), "2024-01-03"],
        [1, 2.5, "3", " 4e0 "],
    ],
)
def test_split_by_time_reads_dates_and_numbers(times: list[object]) -> None:
    assert assign(list("abcd"), SplitParams(test=0.25, time="t"), None, times) == ["train", "train", "train", "test"]


@pytest.mark.parametrize("value", ["yesterday", None, True, "nan", float("inf"), {}, "2024-13-01", ""])
def test_split_by_time_refuses_what_it_cannot_read(value: object) -> None:
    with pytest.raises(UserError) as error:
        assign(["a", "b"], SplitParams(time="when"), None, ["2024-01-01", value])
    assert error.value.code == "split.time_value"
    assert "'when'" in str(error.value)


def test_split_by_time_keeps_equal_questions_together() -> None:
    parts = assign([*"abcdefghi", "A "], SplitParams(test=0.2, time="t"), None, list(range(10)))
    assert parts == ["test", *["train"] * 8, "test"]


def test_split_by_time_and_group_is_made_when_groups_do_not_overlap() -> None:
    split = SplitParams(test=0.2, valid=0.2, time="t", group="g")
    groups = ["p", "p", "p", "q", "q", "q", "r", "r", "s", "s"]
    assert assign(QUESTIONS[:10], split, groups, list(range(10))) == [*["train"] * 6, *["valid"] * 2, *["test"] * 2]


def test_split_by_time_and_group_that_would_train_on_the_future_is_refused_with_figures() -> None:
    split = SplitParams(test=0.2, time="t", group="g")
    with pytest.raises(UserError) as error:  # the row of time 0 would be measured on with what rows of time 8 teach
        assign(list("abcdefghij"), split, ["x", *"123456789"[:8], "x"], list(range(10)))
    assert error.value.code == "split.group_time"
    assert {key: error.value.facts[key] for key in ("rows", "groups", "of", "held_out")} == {
        "rows": 1, "groups": 1, "of": 1, "held_out": 2,
    }  # fmt: skip


def test_split_by_time_when_all_rows_have_one_time_says_so() -> None:
    with pytest.raises(UserError) as error:
        assign(QUESTIONS[:10], SplitParams(test=0.1, time="day"), None, ["2024-01-01"] * 10)
    assert error.value.code == "split.time_same"
    assert "'day'" in str(error.value)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.one_of(st.integers(0, 50), st.integers((1 << 64) - 50, (1 << 64) - 1), st.integers(0, (1 << 64) - 1))),
    st.sampled_from([0.0, 1e-9, 0.1, 0.5]),
    st.sampled_from([0.0, 1e-9, 0.2, 0.49]),
)
def test_split_agrees_with_a_slow_reference(keys: list[int], test: float, valid: float) -> None:
    def bound(start: int, share: float) -> int:
        inside = sorted(key for key in set(keys) if key >= start)
        if not share or not inside:
            return start
        if inside[0] < start + int(share * (1 << 64)):
            return start + int(share * (1 << 64))
        return inside[0] + 1 if len(set(keys)) * share >= 1 else start

    first = bound(0, test)
    second = bound(first, valid)
    wanted = ["test" if key < first else "valid" if key < second else "train" for key in keys]
    parts = splitting.assign(pl.Series(keys, dtype=pl.UInt64), SplitParams(test=test, valid=valid))
    assert parts.to_list() == wanted


def test_split_tells_neighbouring_keys_apart() -> None:
    keys = pl.Series([(1 << 62) + n for n in range(4)], dtype=pl.UInt64)
    assert splitting._bound(keys.to_numpy(), (1 << 62) + 2, 0.25 / (1 << 62)) == (1 << 62) + 3
    assert splitting._bound(keys.to_numpy(), (1 << 62) + 4, 0.25) == (1 << 62) + 4


def test_stated_parts_stand_between_those_that_are_decided() -> None:
    parts = ["valid", None, "test", None, None, "train"]
    index = pl.DataFrame(
        {"part": parts, "key": [0, 1 << 63, 5, 7, 1 << 62, 1]}, schema={"part": pl.String, "key": pl.UInt64}
    )
    assert decide_parts(index, SplitParams(test=0.1)).to_list() == ["valid", "train", "test", "test", "train", "train"]
    assert index["part"].to_list() == parts
