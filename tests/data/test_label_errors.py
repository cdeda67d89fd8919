"""Confident learning: planted label noise is found, and the counts equal a slow reading of the paper."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from truth_labels import planted_noise

from inhouse.core.errors import UserError
from inhouse.core.run import Events
from inhouse.data.label.errors import Doubts, FindErrors, confident_joint, find_errors, folds_of, usable
from inhouse.data.label.items import Item, text_id


@pytest.fixture(scope="module")
def found() -> tuple[Doubts, dict[str, str]]:
    planted = planted_noise(seed=11, count=500, share=0.1)
    return find_errors(planted.rows, FindErrors(), Events()), planted.wrong


def test_find_errors_ranks_planted_errors_first(found: tuple[Doubts, dict[str, str]]) -> None:
    doubts, wrong = found
    count = len(wrong)
    top = [suspect.id for suspect in doubts.suspects]
    assert count == 50
    at_half = sum(name in wrong for name in top[: count // 2]) / (count // 2)
    at_count = sum(name in wrong for name in top[:count]) / count
    print(f"\nprecision@{count // 2} {at_half:.3f}, precision@{count} {at_count:.3f} (chance 0.100)")
    assert at_half >= 0.96 and at_count >= 0.85


def test_find_errors_names_the_true_label_of_what_it_finds(found: tuple[Doubts, dict[str, str]]) -> None:
    doubts, wrong = found
    caught = [suspect for suspect in doubts.suspects if suspect.id in wrong]
    assert sum(wrong[suspect.id] == suspect.likely for suspect in caught) / len(caught) >= 0.95
    confident = [suspect for suspect in doubts.suspects if suspect.confident]
    assert sum(suspect.id in wrong for suspect in confident) / len(confident) >= 0.9
    margins = [suspect.margin for suspect in doubts.suspects]
    assert margins == sorted(margins, reverse=True) and min(margins) > 0


def test_find_errors_estimates_how_noisy_each_label_is(found: tuple[Doubts, dict[str, str]]) -> None:
    doubts, _ = found
    assert [one.label for one in doubts.noise] == ["account", "delivery", "refund"]
    assert all(abs(one.wrong - 0.1) < 0.06 for one in doubts.noise)
    assert sum(one.rows for one in doubts.noise) == doubts.rows == 500


def test_find_errors_says_when_its_judge_is_not_to_be_believed(found: tuple[Doubts, dict[str, str]]) -> None:
    doubts, wrong = found
    assert not doubts.weak and doubts.judge.rows == 500
    assert abs(doubts.judge.share - (1 - len(wrong) / 500)) < 0.06  # right on all but the wrong labels
    draw = random.Random(1)
    texts = {"".join(draw.choices("abcdefgh", k=8)): "xy"[n % 2] for n in range(60)}  # labels without a reason
    noise = [Item(text_id(text), text, label, {}) for text, label in texts.items()]
    assert find_errors(noise, FindErrors(), Events()).weak


def test_find_errors_does_not_depend_on_the_order_of_rows() -> None:
    rows = planted_noise(seed=3, count=90, share=0.1).rows
    mixed = random.Random(0).sample(rows, len(rows))
    assert find_errors(rows, FindErrors(folds=3), Events()) == find_errors(mixed, FindErrors(folds=3), Events())


def test_find_errors_leaves_out_what_cannot_be_judged() -> None:
    def row(text: str, label: str | None) -> Item:
        return Item(text_id(text), text, label, {})

    rows = [row(f"a{n}", "a") for n in range(6)] + [row(f"b{n}", "b") for n in range(5)]
    rows += [row("a0", "a"), row("c", "c"), row("d", None), row("a0", "b")]
    assert Counter(item.label for item in usable(rows, 5)) == {"a": 6, "b": 6}
    with pytest.raises(UserError) as raised:
        find_errors(rows, FindErrors(folds=7), Events())
    assert raised.value.code == "label.few_labelled"


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 4), st.integers(4, 30), st.integers(0, 10_000))
def test_confident_joint_equals_a_slow_reading_of_the_paper(labels: int, rows: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    probabilities = draw.dirichlet(np.ones(labels), rows)
    given_labels = [*range(labels), *draw.integers(0, labels, max(rows - labels, 0)).tolist()][:rows]
    given_labels = given_labels if len(set(given_labels)) == labels else [n % labels for n in range(rows)]
    found = confident_joint(given_labels, probabilities)
    thresholds = []
    for label in range(labels):
        mine = [probabilities[r][label] for r in range(rows) if given_labels[r] == label]
        thresholds.append(sum(mine) / len(mine))
    counts = np.zeros((labels, labels), dtype=int)
    for r in range(rows):
        reached = [j for j in range(labels) if probabilities[r][j] >= thresholds[j] - 1e-12]
        best = max(reached, key=lambda j: probabilities[r][j]) if reached else -1
        assert found.confident[r] == best
        if reached:
            counts[given_labels[r]][best] += 1
    assert (found.counts == counts).all()


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(2, 6))
def test_folds_hold_their_share_of_every_label(given_labels: list[int], folds: int) -> None:
    counts = Counter(zip(given_labels, folds_of(given_labels, folds), strict=True))
    for label in set(given_labels):
        sizes = [counts[label, fold] for fold in range(folds)]
        assert max(sizes) - min(sizes) <= 1
