"""Mixing sources: exact proportions, the same rows for the same seed, and what happens when a source is short."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from inhouse.core.errors import UserError
from inhouse.data.mix import MixParams, _closest, check, estimated_tokens, mix, report, tokens_of

SIZES = st.lists(st.integers(1, 50), min_size=1, max_size=30)


def frame(groups: dict[str, list[int]], part: str = "train") -> pl.DataFrame:
    """Rows with sizes (in tokens and chars) by source."""
    flat = [(name, size) for name, sizes in groups.items() for size in sizes]
    return pl.DataFrame(
        {
            "row": pl.Series(range(1, len(flat) + 1), dtype=pl.UInt64),
            "source": [name for name, _ in flat],
            "part": [part] * len(flat),
            "tokens": [size for _, size in flat],
            "chars": [3 * size for _, size in flat],
        }
    )


def mixing(**keys: Any) -> MixParams:
    return MixParams.model_validate(keys)


def used(rows: pl.DataFrame, params: MixParams, seed: int = 0) -> dict[str, int]:
    return {source.name: source.size for source in report(rows, mix(rows, params, seed), params).sources}


def refusal(rows: pl.DataFrame, params: MixParams) -> UserError:
    with pytest.raises(UserError) as error:
        mix(rows, params, 0)
    assert str(error.value)
    return error.value


@settings(max_examples=200, deadline=None)
@given(a=st.integers(1, 60), b=st.integers(1, 60), c=st.integers(1, 60), parts=st.tuples(*[st.integers(1, 9)] * 3))
def test_mix_by_rows_is_the_largest_remainder_of_what_the_short_source_allows(
    a: int, b: int, c: int, parts: tuple[int, int, int]
) -> None:
    there = {"a": a, "b": b, "c": c}
    asked = dict(zip("abc", parts, strict=True))
    unit = min(Fraction(there[n], asked[n]) for n in "abc")
    total = math.floor(unit * sum(parts))
    # Hamilton's method, done by hand: whole parts first, then the largest fractions.
    wanted = {n: math.floor(unit * asked[n]) for n in "abc"}
    order = sorted("abc", key=lambda n: (-(unit * asked[n] - wanted[n]), n))
    for name in order[: total - sum(wanted.values())]:
        wanted[name] += 1
    assert used(frame({n: [1] * there[n] for n in "abc"}), mixing(**asked, by="rows")) == wanted


@settings(max_examples=200, deadline=None)
@given(
    groups=st.tuples(SIZES, SIZES),
    parts=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    by=st.sampled_from(["tokens", "chars"]),
    short=st.sampled_from(["downsample", "repeat"]),
)
def test_mix_by_size_is_at_most_half_a_row_off_its_quota(
    groups: tuple[list[int], list[int]], parts: tuple[int, int], by: str, short: str
) -> None:
    factor = 3 if by == "chars" else 1
    sizes = [[factor * size for size in group] for group in groups]
    most = [Fraction(sum(group), part) for group, part in zip(sizes, parts, strict=True)]
    unit = min(most) if short == "downsample" else min(max(most), *(4 * m for m in most))
    found = used(frame({"x": groups[0], "y": groups[1]}), mixing(x=parts[0], y=parts[1], by=by, short=short))
    for name, group, part in zip("xy", sizes, parts, strict=True):
        assert abs(found[name] - unit * part) * 2 <= max(group)


@settings(max_examples=150, deadline=None)
@given(sizes=st.lists(st.integers(0, 60), min_size=1, max_size=11), part=st.fractions(0, 1, max_denominator=50))
def test_mix_takes_the_rows_that_come_closest_to_the_quota(sizes: list[int], part: Fraction) -> None:
    quota = part * sum(sizes)
    found = int(np.array(sizes)[_closest(np.array(sizes), quota)].sum())
    every = {sum(some) for count in range(len(sizes) + 1) for some in combinations(sizes, count)}
    assert abs(found - quota) == min(abs(one - quota) for one in every)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(20, 400), min_size=80, max_size=200, unique=True),
    part=st.fractions(Fraction(1, 3), Fraction(3, 4), max_denominator=1000),
)
def test_mix_of_many_rows_is_less_than_half_the_smallest_row_off_and_keeps_the_order(
    sizes: list[int], part: Fraction
) -> None:
    quota = part * sum(sizes)
    taken = _closest(np.array(sizes), quota)
    assert abs(int(np.array(sizes)[taken].sum()) - quota) <= Fraction(min(sizes), 2)
    first = int(np.searchsorted(np.cumsum(sizes), int(quota), side="right"))
    assert taken[: first - 16].all() and not taken[first + 32 :].any()  # only around the end is chosen


def test_mix_of_rows_too_large_to_choose_among_still_stops_at_the_closest_row() -> None:
    sizes = np.array([2**40, 2**41, 2**40 + 5])
    assert _closest(sizes, Fraction(2**40 + 9)).tolist() == [True, False, False]
    assert _closest(sizes, Fraction(2**41)).tolist() == [True, False, False]
    assert _closest(sizes, Fraction(3 * 2**40 - 1)).tolist() == [True, True, False]


def test_mix_of_a_few_rows_meets_shares_that_the_order_alone_misses() -> None:
    lengths = [37, 64, 21, 90, 55, 18, 73, 46, 29, 82]
    rows = frame({"a": lengths, "b": [n + 7 for n in lengths[:8]], "c": [n + 3 for n in lengths[2:9]]})
    params = mixing(a=50, b=30, c=20)
    for seed in range(5):
        for source in report(rows, mix(rows, params, seed), params).sources:
            assert abs(source.achieved - source.asked) < 0.002


@settings(max_examples=60, deadline=None)
@given(groups=st.tuples(SIZES, SIZES), seed=st.integers(0, 9), random=st.randoms(use_true_random=False))
def test_mix_depends_on_the_seed_and_not_on_the_order_of_rows(
    groups: tuple[list[int], list[int]], seed: int, random: Any
) -> None:
    rows = frame({"x": groups[0], "y": groups[1]})
    shuffled = rows[random.sample(range(rows.height), rows.height)]
    params = mixing(y=2, x=3)
    first = mix(rows, params, seed)
    assert first.equals(mix(shuffled, params, seed))
    assert first.equals(mix(rows, mixing(x=3, y=2), seed))
    assert first.schema == {"row": pl.UInt64, "copies": pl.UInt32}
    assert first["row"].to_list() == rows["row"].to_list()


def test_mix_of_another_seed_takes_other_rows() -> None:
    rows = frame({"x": [1] * 50, "y": [1] * 5})
    params = mixing(x=1, y=1)
    assert used(rows, params, 1) == used(rows, params, 2)
    assert not mix(rows, params, 1).equals(mix(rows, params, 2))


def test_mix_repeats_a_short_source_at_most_the_epochs_asked_for() -> None:
    rows = frame({"long": [1] * 100, "short": [1] * 10})
    twice = mixing(shares={"long": 5, "short": 1}, by="rows", short="repeat", epochs=3)
    assert used(rows, twice) == {"long": 100, "short": 20}
    capped = mixing(shares={"long": 1, "short": 1}, by="rows", short="repeat", epochs=3)
    assert used(rows, capped) == {"long": 30, "short": 30}
    found = report(rows, mix(rows, capped, 0), capped).sources[1]
    assert (found.rows, found.copies, found.repeats) == (10, 30, 3)


def test_mix_of_a_stated_size_is_that_size() -> None:
    rows = frame({"x": [1] * 100, "y": [1] * 100})
    assert used(rows, mixing(x=5, y=3, by="rows", total=24)) == {"x": 15, "y": 9}


def test_mix_that_must_not_be_short_fails_with_the_figures() -> None:
    rows = frame({"x": [1] * 100, "y": [1] * 10})
    error = refusal(rows, mixing(x=1, y=1, by="rows", short="fail"))
    assert error.code == "data.mix_short"
    assert error.facts["figures"] == "x: 100 / 100; y: 100 / 10"
    assert used(rows, mixing(x=1, y=1, by="rows", short="fail", total=20)) == {"x": 10, "y": 10}


def test_mix_leaves_out_a_source_with_the_part_zero_and_other_parts_of_the_data() -> None:
    train, test = frame({"x": [1] * 4, "y": [1] * 4}), frame({"z": [1] * 4}, part="test")
    rows = pl.concat([train, test.with_columns(pl.col("row") + 100)])
    assert used(rows, mixing(x=1, y=0, by="rows")) == {"x": 4, "y": 0}


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ({"x": 1, "y": 1, "w": 1}, "data.mix_unknown"),
        ({"x": 1}, "data.mix_unnamed"),
    ],
)
def test_mix_with_wrong_names_is_refused(keys: dict[str, Any], code: str) -> None:
    assert refusal(frame({"x": [1], "y": [1]}), mixing(**keys)).code == code
    with pytest.raises(UserError):
        check(mixing(**keys), ["x", "y"])


def test_mix_of_a_source_without_content_is_refused() -> None:
    assert refusal(frame({"x": [1], "y": [0]}), mixing(x=1, y=1)).code == "data.mix_empty"


@pytest.mark.parametrize(
    "keys", [{}, {"x": 0}, {"x": -1}, {"x": "many"}, {"x": float("inf")}, {"shares": 3}, {"by": "x"}]
)
def test_mix_settings_that_make_no_sense_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        mixing(**keys)


def test_mix_settings_survive_a_round_trip() -> None:
    params = mixing(domain=5, general=3, by="rows")
    assert params.shares == {"domain": 5, "general": 3}
    assert MixParams.model_validate(params.model_dump()) == params
    assert MixParams.model_validate(params) is params


def test_mix_report_states_what_was_asked_and_achieved() -> None:
    rows = frame({"x": [10] * 50, "y": [7] * 30, "z": [3] * 90})
    params = mixing(x=5, y=3, z=2)
    found = report(rows, mix(rows, params, 3), params)
    assert found.estimated and found.by == "tokens"
    assert [source.asked for source in found.sources] == [0.5, 0.3, 0.2]
    assert all(abs(source.asked - source.achieved) < 10 / found.size for source in found.sources)
    assert found.size == sum(source.size for source in found.sources)
    assert not report(rows, mix(rows, mixing(x=1, y=1, z=1, by="rows"), 3), mixing(x=1, y=1, z=1, by="rows")).estimated


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", 0),
        ("hello", 2),  # 1.3, rounded up
        ("one two three four five six seven eight nine ten", 13),
        ("你好，世界", 4),
        ("用 Python 写代码", 6),  # 4 ideographs and a word
        ("don't well-known 3.14", 4),  # 3.9
    ],
)
def test_tokens_are_estimated_by_the_stated_rule(text: str, wanted: int) -> None:
    assert estimated_tokens(pl.Series([text])).to_list() == [wanted]


def test_tokens_are_counted_by_a_tokenizer_when_one_is_named(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    texts = ["a b a", "", "c"]
    for place in (".", "tokenizer.json"):
        assert tokens_of(texts, mixing(x=1, tokenizer=place), tmp_path).to_list() == [3, 0, 1]
    assert tokens_of(pl.Series(texts), mixing(x=1), tmp_path).to_list() == [4, 0, 2]


@pytest.mark.parametrize("content", [None, "no tokenizer"])
def test_tokenizer_that_cannot_be_read_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as error:
        tokens_of(["a"], mixing(x=1, tokenizer="."), tmp_path)
    assert error.value.code == "data.mix_tokenizer"
