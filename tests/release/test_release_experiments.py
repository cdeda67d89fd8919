from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, special, stats

from inhouse.release.arms import Arm, Release, Role
from inhouse.release.experiments import Experiment, Sample, difference_bounds, judge_experiment, log_e_value
from inhouse.release.results import Counters, Scores
from inhouse.release.rules import ExperimentRules

RULES = ExperimentRules()


def arm(version: int, role: Role = "live", weight: int = 500) -> Arm:
    release = Release(version, "routing", version, "ab" * 16, True, "2026-01-01T00:00:00+00:00")
    return Arm(release, weight, role, "2026-01-01T00:00:00+00:00")


def counted(requests: int, errors: int) -> Counters:
    found = Counters()
    for number in range(requests):
        found.count(0.1, failed=number < errors)
    return found


def judged(
    errors: tuple[tuple[int, int], ...], scores: tuple[tuple[int, float], ...], rules: ExperimentRules = RULES
) -> Experiment:
    """An experiment over arms with (requests, errors) and (scores, their mean)."""
    arms = [arm(n) for n in range(1, len(errors) + 1)]
    counters = [counted(*e) for e in errors]
    return judge_experiment(arms, counters, [Scores(n, n * mean) for n, mean in scores], rules)


@pytest.mark.parametrize(
    ("control", "other"), [((40, 12.0), (55, 30.0)), ((200, 3.0), (180, 0.0)), ((9, 9.0), (7, 2.5))]
)
def test_evidence_is_the_mixture_over_the_greatest_likelihood(
    control: tuple[int, float], other: tuple[int, float]
) -> None:
    def log_likelihood(sample: tuple[int, float], mean: float) -> float:
        return float(special.xlogy(sample[1], mean) + special.xlog1py(sample[0] - sample[1], -mean))

    def mixture(sample: tuple[int, float]) -> float:
        jeffreys = stats.beta(0.5, 0.5)
        return math.log(jeffreys.expect(lambda p: math.exp(log_likelihood(sample, p)), limit=400))

    for difference in (0.0, 0.15, -0.1):
        low, high = max(0.0, -difference), min(1.0, 1.0 - difference)
        best = optimize.minimize_scalar(
            lambda p, d=difference: -(log_likelihood(control, p) + log_likelihood(other, p + d)),
            bounds=(low, high), method="bounded", options={"xatol": 1e-12},
        )  # fmt: skip
        expected = mixture(control) + mixture(other) + best.fun
        assert log_e_value(Sample(*control), Sample(*other), difference) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("mean", [0.5, 0.03])
def test_false_alarms_stay_below_alpha_though_every_observation_is_looked_at(mean: float) -> None:
    runs, steps, alpha = 200, 250, 0.1
    random = np.random.default_rng(11)
    alarms = 0
    for _ in range(runs):
        sums = np.cumsum(random.random((steps, 2)) < mean, axis=0).tolist()
        alarms += any(
            log_e_value(Sample(n, a), Sample(n, b)) >= math.log(1 / alpha) for n, (a, b) in enumerate(sums, 1)
        )
    assert stats.binomtest(alarms, runs, alpha, alternative="greater").pvalue > 0.01
    assert alarms / runs <= alpha


def test_bounds_cover_the_difference_of_scores_that_are_no_votes_at_every_look() -> None:
    random = np.random.default_rng(12)
    missed = 0
    for _ in range(20):
        scores = np.cumsum(np.stack([random.beta(2, 3, 400), random.beta(3, 2, 400)], axis=1), axis=0).tolist()
        for n in range(10, 401, 30):
            low, high = difference_bounds(Sample(n, scores[n - 1][0]), Sample(n, scores[n - 1][1]), 0.1)
            missed += not low <= 0.2 <= high
    assert missed <= 2


def test_real_difference_is_found_and_the_better_arm_named() -> None:
    random = np.random.default_rng(13)
    found = 0
    for _ in range(20):
        votes = random.random((1200, 2)) < (0.5, 0.65)
        result = judged(((1200, 0), (1200, 0)), tuple((1200, 2 * mean - 1) for mean in votes.mean(axis=0).tolist()))
        found += (result.decision, result.winner, result.reason) == ("stop_winner", "routing:v2", "scored_higher")
    assert found >= 18


def test_bounds_are_everything_before_the_first_observation_and_narrow_with_more() -> None:
    assert difference_bounds(Sample(0, 0.0), Sample(0, 0.0), 0.05) == (-1.0, 1.0)
    widths = []
    for n in (10, 100, 1000, 10_000):
        low, high = difference_bounds(Sample(n, 0.5 * n), Sample(n, 0.5 * n), 0.05)
        assert low < 0 < high and low == pytest.approx(-high, abs=1e-6)
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True) and widths[-1] < 0.08
    low, high = difference_bounds(Sample(50, 0.0), Sample(50, 50.0), 0.05)
    assert 0.7 < low < high == 1.0


@pytest.mark.parametrize(
    ("errors", "scores", "expected"),
    [
        (((9, 0),), ((0, 0.0),), ("continue", None, "one_arm")),
        (((0, 0), (0, 0)), ((0, 0.0), (0, 0.0)), ("continue", None, "no_data")),
        (((90, 1), (90, 2)), ((5, 0.2), (5, 0.4)), ("continue", None, "undecided")),
        (((900, 9), (900, 90)), ((0, 0.0), (0, 0.0)), ("stop_winner", "routing:v1", "fails_more")),
        (((900, 90), (900, 9)), ((0, 0.0), (0, 0.0)), ("stop_winner", "routing:v2", "fails_more")),
        (((900, 9), (900, 90)), ((900, -0.5), (900, 0.5)), ("stop_winner", "routing:v1", "fails_more")),
        (((900, 9), (900, 9)), ((900, 0.6), (900, 0.1)), ("stop_winner", "routing:v1", "scored_higher")),
        (((9000, 9), (9000, 9)), ((0, 0.0), (0, 0.0)), ("stop_no_difference", None, "no_difference")),
        (((30000, 9), (30000, 9)), ((30000, 0.9), (30000, 0.9)), ("stop_no_difference", None, "no_difference")),
        (((900, 9),) * 3, ((900, 0.0), (900, 0.5), (900, 0.7)), ("stop_winner", "routing:v3", "scored_higher")),
    ],
)  # fmt: skip
def test_decision_follows_errors_first_and_scores_then(
    errors: tuple[tuple[int, int], ...],
    scores: tuple[tuple[int, float], ...],
    expected: tuple[str, str | None, str],
) -> None:
    result = judged(errors, scores)
    assert (result.decision, result.winner, result.reason) == expected


def test_shadow_is_shown_and_not_compared() -> None:
    arms = [arm(1), arm(2, "canary", 50), arm(3, "shadow", 1000)]
    result = judge_experiment(
        arms, [counted(10, 1), counted(10, 0), Counters()], [Scores(2, 1.0), Scores(), Scores()], RULES
    )
    assert [a.release for a in result.arms] == ["routing:v1", "routing:v2", "routing:v3"]
    assert {c.release for c in result.comparisons} == {"routing:v2"} and {c.control for c in result.comparisons} == {
        "routing:v1"
    }
    first, _, shadow = result.arms
    assert (first.requests, first.errors, first.error_rate, first.scored, first.mean_score) == (10, 1, 0.1, 2, 0.5)
    assert first.latency_p50_s == pytest.approx(0.1, rel=0.25)
    assert (shadow.error_rate, shadow.mean_score, shadow.latency_p95_s) == (None, None, None)
