"""The split: by content, stable, and never without a test part."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inhouse.core.errors import UserError
from inhouse.data.split import SplitParams, assign

QUESTIONS = [f"question {n}" for n in range(2000)]


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
