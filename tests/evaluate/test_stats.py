"""Intervals against independent oracles: scipy's Wilson interval and bootstrap, scikit-learn's scores."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import stats as scipy_stats
from sklearn.metrics import accuracy_score, f1_score

from inhouse.evaluate.metrics import accuracy, exact_match, macro_f1, perplexity, tool_calls, valid_answers
from inhouse.evaluate.predictions import Prediction, Predictions
from inhouse.evaluate.stats import BootstrapParams, Measure, difference, figure, resample, wilson

LABELS = ("acq", "crude", "earn")


def predictions(gold: list[str], said: list[str | None], **columns: object) -> Predictions:
    rows = [
        Prediction(id=f"{at:016x}", question="q", gold=wanted, label=wanted, text=given or "?", predicted=given)
        for at, (wanted, given) in enumerate(zip(gold, said, strict=True))
    ]
    return Predictions(tuple(row.model_copy(update=columns) for row in rows), LABELS)


def random_answers(rows: int, seed: int, right: float) -> tuple[list[str], list[str | None]]:
    generator = np.random.default_rng(seed)
    gold = list(generator.choice(LABELS, rows))
    other: list[str | None] = [*LABELS, None]
    said = [g if generator.random() < right else other[generator.integers(4)] for g in gold]
    return gold, said


@pytest.mark.parametrize("successes", [0, 1, 40, 99, 100])
def test_wilson_interval_equals_scipy(successes: int) -> None:
    expected = scipy_stats.binomtest(successes, 100).proportion_ci(0.95, method="wilson")
    assert wilson(successes, 100) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_accuracy_and_macro_f1_equal_scikit_learn(seed: int) -> None:
    gold, said = random_answers(200, seed, 0.6)
    named = [label or "no label" for label in said]
    found = predictions(gold, said)
    measured = macro_f1.measure(found, macro_f1.MacroF1Params())["macro_f1"]
    expected = f1_score(gold, named, labels=LABELS, average="macro", zero_division=0)
    assert measured.value == pytest.approx(expected, abs=1e-12)
    assert float(measured.statistic(measured.columns)) == pytest.approx(expected, abs=1e-12)
    share = accuracy.measure(found, accuracy.AccuracyParams())["accuracy"]
    assert share.value == accuracy_score(gold, named)


def test_macro_f1_of_resamples_equals_scikit_learn_on_each() -> None:
    gold, said = random_answers(40, 1, 0.5)
    measured = macro_f1.measure(predictions(gold, said), macro_f1.MacroF1Params())["macro_f1"]
    drawn = np.random.default_rng(3).integers(0, 40, (25, 40))
    expected = [
        f1_score(
            [gold[i] for i in rows],
            [said[i] or "-" for i in rows],
            labels=LABELS,
            average="macro",
            zero_division=0,
        )
        for rows in drawn
    ]
    assert measured.statistic(measured.columns[drawn]) == pytest.approx(np.array(expected), abs=1e-12)


def test_macro_f1_leaves_out_labels_that_no_test_row_holds() -> None:
    gold = ["acq"] * 5 + ["crude"] * 5
    found = macro_f1.measure(predictions(gold, list(gold)), macro_f1.MacroF1Params())
    assert found["macro_f1"].value == 1.0


def test_macro_f1_interval_agrees_with_scipy_bootstrap() -> None:
    gold, said = random_answers(300, 2, 0.7)
    measured = macro_f1.measure(predictions(gold, said), macro_f1.MacroF1Params())["macro_f1"]
    made = figure(measured, BootstrapParams(samples=4000))
    expected = scipy_stats.bootstrap(
        (measured.columns[:, 0], measured.columns[:, 1]),
        lambda g, s, axis=-1: macro_f1.macro_f1_of_codes(g.astype(int), s.astype(int), 3),
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=4000,
        rng=np.random.default_rng(9),
    ).confidence_interval
    assert made is not None
    assert (made.low, made.high) == pytest.approx((expected.low, expected.high), abs=0.006)


def test_paired_difference_of_one_model_with_itself_is_zero_with_no_width() -> None:
    gold, said = random_answers(100, 4, 0.5)
    measured = accuracy.measure(predictions(gold, said), accuracy.AccuracyParams())["accuracy"]
    made = difference(measured, measured, BootstrapParams())
    assert made is not None
    assert (made.value, made.low, made.high, made.n) == (0.0, 0.0, 0.0, 100)


def test_paired_difference_agrees_with_scipy_and_is_narrower_than_unpaired() -> None:
    gold, first = random_answers(300, 5, 0.8)
    second = [g if at % 10 == 0 else s for at, (g, s) in enumerate(zip(gold, first, strict=True))]
    params = accuracy.AccuracyParams()
    one = accuracy.measure(predictions(gold, second), params)["accuracy"]
    other = accuracy.measure(predictions(gold, first), params)["accuracy"]
    made = difference(one, other, BootstrapParams(samples=4000))
    gain = one.columns[:, 0] - other.columns[:, 0]
    expected = scipy_stats.bootstrap(
        (gain,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert made is not None and made.low is not None and made.high is not None
    assert made.value == pytest.approx(gain.mean(), abs=1e-6)
    assert (made.low, made.high) == pytest.approx((expected.low, expected.high), abs=0.005)
    low, high = wilson(round(one.value * 300), 300)
    assert made.high - made.low < high - low


def test_bootstrap_same_seed_gives_the_same_interval() -> None:
    gold, said = random_answers(80, 6, 0.5)
    measured = macro_f1.measure(predictions(gold, said), macro_f1.MacroF1Params())["macro_f1"]
    assert figure(measured, BootstrapParams(seed=1)) == figure(measured, BootstrapParams(seed=1))
    assert figure(measured, BootstrapParams(seed=1)) != figure(measured, BootstrapParams(seed=2))


def test_bootstrap_in_blocks_draws_the_asked_number_of_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inhouse.evaluate.stats.BLOCK", 700)
    gold, said = random_answers(100, 6, 0.5)
    measured = accuracy.measure(predictions(gold, said), accuracy.AccuracyParams())["accuracy"]
    assert resample(measured, None, BootstrapParams(samples=101)).shape == (101,)


def test_macro_f1_interval_of_two_thousand_rows_takes_under_a_second_of_cpu() -> None:
    gold, said = random_answers(2000, 7, 0.7)
    measured = macro_f1.measure(predictions(gold, said), macro_f1.MacroF1Params())["macro_f1"]
    started = time.process_time()
    figure(measured, BootstrapParams())
    assert time.process_time() - started < 1.0


def test_perplexity_equals_the_definition() -> None:
    found = predictions(["acq", "earn"], ["acq", "earn"])
    rows = (
        found.rows[0].model_copy(update={"gold_logprob": -2.0, "gold_tokens": 2}),
        found.rows[1].model_copy(update={"gold_logprob": -7.0, "gold_tokens": 4}),
    )
    measured = perplexity.measure(Predictions(rows, LABELS), perplexity.PerplexityParams())
    assert measured["perplexity"].value == pytest.approx(np.exp(9 / 6))


def test_perplexity_beyond_a_float_is_no_figure() -> None:
    found = predictions(["acq"], ["acq"], gold_logprob=-2000.0, gold_tokens=1)
    measured = perplexity.measure(found, perplexity.PerplexityParams())
    assert figure(measured["perplexity"], BootstrapParams()) is None


def test_difference_to_a_value_that_is_not_finite_is_no_figure() -> None:
    broken = Measure(float("nan"), np.zeros((3, 1)), lambda columns: columns[..., 0].mean(axis=-1))
    assert difference(broken, broken, BootstrapParams()) is None


def test_interval_without_a_finite_resample_has_no_ends() -> None:
    odd = Measure(1.0, np.full((3, 1), np.inf), lambda columns: columns[..., 0].mean(axis=-1))
    made = figure(odd, BootstrapParams())
    assert made is not None and made.low is None and made.high is None


def test_valid_answers_and_exact_match_count_what_they_say() -> None:
    found = predictions(["acq", "earn", "crude", "acq"], ["acq", "acq", None, "acq"])
    rows = (found.rows[0], found.rows[1], found.rows[2], found.rows[3].model_copy(update={"text": " acq\n"}))
    table = Predictions(rows, LABELS)
    valid = valid_answers.measure(table, valid_answers.ValidAnswersParams())["valid_answers"]
    exact = exact_match.measure(table, exact_match.ExactMatchParams())["exact_match"]
    assert (valid.value, exact.value) == (0.75, 0.5)
    made = figure(valid, BootstrapParams())
    assert made is not None and (made.low, made.high) == pytest.approx(wilson(3, 4), abs=1e-6)


def test_metrics_without_their_columns_find_nothing() -> None:
    bare = Predictions((Prediction(id="0", question="q", gold="an answer"),), ())
    assert accuracy.measure(bare, accuracy.AccuracyParams()) == {}
    assert macro_f1.measure(bare, macro_f1.MacroF1Params()) == {}
    assert valid_answers.measure(bare, valid_answers.ValidAnswersParams()) == {}
    assert exact_match.measure(bare, exact_match.ExactMatchParams()) == {}
    assert perplexity.measure(bare, perplexity.PerplexityParams()) == {}


def calling(*calls: str, before: str = "") -> str:
    return before + "".join(f"<tool_call>\n{call}\n</tool_call>\n" for call in calls)


ONE = '{"name": "book", "arguments": {"seats": 2, "at": "noon"}}'
SAME = '{"arguments":{"at":"noon","seats":2},"name":"book"}'
OTHER = '{"name": "book", "arguments": {"seats": 3, "at": "noon"}}'
TWO = '{"name": "cancel", "arguments": {}}'


@pytest.mark.parametrize(
    ("wanted", "said", "right", "named"),
    [
        (calling(ONE), calling(SAME), True, True),
        (calling(ONE), calling(ONE).rstrip().removesuffix("</tool_call>"), True, True),
        (calling(ONE), calling(OTHER), False, True),
        (calling(ONE), calling(TWO), False, False),
        (calling(ONE, TWO), calling(TWO, SAME), True, True),
        (calling(ONE, TWO), calling(ONE), False, False),
        (calling(ONE), "I shall book", False, False),
        (calling(ONE), calling("{"), False, False),
        (calling(ONE), "<think>\n\n</think>\n\n" + calling(ONE), True, True),
        ("No tool for that.", "Sorry.", True, True),
        ("No tool for that.", calling(ONE), False, False),
    ],
)
def test_calls_are_compared_as_values(wanted: str, said: str, right: bool, named: bool) -> None:
    row = Prediction(id="0" * 16, question="q", gold=wanted, tools=True, text=said)
    plain = Prediction(id="1" * 16, question="q", gold="a", text="b")  # no tools: it does not count
    found = tool_calls.measure(Predictions((row, plain), ()), tool_calls.ToolCallsParams())
    assert (found["tool_calls"].value, found["tool_names"].value) == (right, named)
    exact = exact_match.measure(Predictions((row,), ()), exact_match.ExactMatchParams())["exact_match"]
    assert exact.value == (right and wanted.startswith("<"))


def test_tool_calls_are_left_out_where_no_row_has_tools_or_nothing_was_written() -> None:
    params = tool_calls.ToolCallsParams()
    assert tool_calls.measure(Predictions((Prediction(id="0", question="q", gold="a", text="b"),), ()), params) == {}
    silent = Prediction(id="0", question="q", gold=calling(ONE), tools=True)
    assert tool_calls.measure(Predictions((silent,), ()), params) == {}
