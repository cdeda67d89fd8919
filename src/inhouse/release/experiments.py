"""Compare the arms of a deployment, with a stop rule that stays valid however often somebody looks.

Method: an e-process for two bounded means. Its numerator is each arm's Beta(1/2, 1/2) mixture likelihood (Robbins 1970;
the sub-Bernoulli mixture of Howard, Ramdas, McAuliffe and Sekhon, Annals of Statistics 49(2), 2021), its denominator
the greatest likelihood that a difference `d` allows (universal inference: Wasserman, Ramdas and Balakrishnan, PNAS
117(29), 2020). If `d` is the true difference it is, at every moment, below a nonnegative supermartingale that starts
at 1; by Ville's inequality it ever reaches 1/alpha with probability alpha at most. All `d` that have not reached it
are a confidence sequence: an interval that covers the true difference at all moments at once. Scores need not be
0 or 1: the Bernoulli likelihood ratio is convex in the outcome, so any outcome between them keeps the bound.

It holds for outcomes whose mean, given all before, is the arm's. Where users stick to arms and judge many answers
each, count one score a user.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import lgamma, log
from typing import Literal

from inhouse.release.arms import Arm
from inhouse.release.results import Counters, Scores
from inhouse.release.rules import ExperimentRules

Figure = Literal["score", "error_rate"]
Outcome = Literal["better", "worse", "same", "open"]
Decision = Literal["continue", "stop_winner", "stop_no_difference"]
Reason = Literal["one_arm", "no_data", "undecided", "fails_more", "scored_higher", "no_difference"]
HALVINGS = 50  # of an interval: enough for any difference that matters, and for floating point


@dataclass(frozen=True)
class Sample:
    """Outcomes between 0 and 1: how many, and their sum."""

    count: int
    total: float

    @property
    def mean(self) -> float:
        """0.5 when there are none."""
        return self.total / self.count if self.count else 0.5


@dataclass(frozen=True)
class Comparison:
    """An arm beside the control arm in one figure. `low` and `high` bound the difference at every look at once."""

    figure: Figure
    release: str
    control: str
    difference: float
    low: float
    high: float
    outcome: Outcome


@dataclass(frozen=True)
class ArmFigures:
    """What one arm did since it was added. Latency in seconds; None where nothing was counted."""

    release: str
    role: str
    weight: int
    since: str
    requests: int
    errors: int
    alarms: int
    looked_at: int | None  # answers that guards looked at, which alarms are out of; None: not known
    error_rate: float | None
    scored: int
    mean_score: float | None
    latency_p50_s: float | None
    latency_p95_s: float | None
    prompt_tokens: int
    answer_tokens: int


@dataclass(frozen=True)
class Experiment:
    """The arms, each comparison, and what follows. `winner` is the label of a release."""

    arms: tuple[ArmFigures, ...]
    comparisons: tuple[Comparison, ...]
    decision: Decision
    winner: str | None
    reason: Reason


def judge_experiment(
    arms: Sequence[Arm], counters: Sequence[Counters], scores: Sequence[Scores], rules: ExperimentRules
) -> Experiment:
    """Compare every arm that answers with the first one, which is the control.

    The chance that it ever names a winner where there is no difference is at most `alpha`, over all arms and both
    figures together (Bonferroni).
    """
    figures = tuple(_figures(*one) for one in zip(arms, counters, scores, strict=True))
    answering = [i for i, arm in enumerate(arms) if arm.role != "shadow"]
    alpha = rules.alpha / (2 * max(1, len(answering) - 1))
    found: list[Comparison] = []
    for i in answering[1:]:
        pair = (figures[i].release, figures[0].release)
        errors = [_failures(counters[j]) for j in (0, i)]
        judged = [_judged(scores[j]) for j in (0, i)]
        found.append(_compared("error_rate", pair, errors, alpha, rules.min_error_difference))
        found.append(_compared("score", pair, judged, alpha, rules.min_score_difference))
    decision, winner, reason = _decide(figures, found)
    return Experiment(figures, tuple(found), decision, winner, reason)


def log_e_value(control: Sample, other: Sample, difference: float = 0.0) -> float:
    """Logarithm of the evidence that mean(other) - mean(control) is not `difference`; it may be looked at any time."""
    return _mixture(control) + _mixture(other) - _greatest(control, other, difference)


def difference_bounds(control: Sample, other: Sample, alpha: float) -> tuple[float, float]:
    """Bounds of mean(other) - mean(control) that hold at all moments at once with probability 1 - alpha."""
    best = other.mean - control.mean
    needed = log(1 / alpha)

    def edge(outside: float) -> float:
        inside = best
        if log_e_value(control, other, outside) < needed:
            return outside
        for _ in range(HALVINGS):  # the evidence grows with the distance from `best`: the likelihood is concave
            middle = (inside + outside) / 2
            if log_e_value(control, other, middle) < needed:
                inside = middle
            else:
                outside = middle
        return outside

    return edge(-1.0), edge(1.0)


def _mixture(sample: Sample) -> float:
    """Log of the likelihood, averaged over Beta(1/2, 1/2)."""
    left = sample.count - sample.total
    return _log_beta(sample.total + 0.5, left + 0.5) - _log_beta(0.5, 0.5)


def _log_beta(a: float, b: float) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)


def _greatest(control: Sample, other: Sample, difference: float) -> float:
    """The greatest log-likelihood of both samples when the means differ by `difference`."""
    low, high = max(0.0, -difference), min(1.0, 1.0 - difference)
    if difference == 0.0:
        both = Sample(control.count + other.count, control.total + other.total)
        return _log_likelihood(both, both.mean)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if _slope(control, middle) + _slope(other, middle + difference) > 0:
            low = middle
        else:
            high = middle
    middle = (low + high) / 2
    return _log_likelihood(control, middle) + _log_likelihood(other, middle + difference)


def _log_likelihood(sample: Sample, mean: float) -> float:
    return _times_log(sample.total, mean) + _times_log(sample.count - sample.total, 1 - mean)


def _times_log(times: float, value: float) -> float:
    if times <= 0:
        return 0.0
    return times * log(value) if value > 0 else float("-inf")


def _slope(sample: Sample, mean: float) -> float:
    """Derivative of the log-likelihood; at the ends of what a mean can be, its sign."""
    up, down = sample.total, sample.count - sample.total
    left = 0.0 if up <= 0 else up / mean if mean > 0 else float("inf")
    right = 0.0 if down <= 0 else down / (1 - mean) if mean < 1 else float("inf")
    return left - right if left < float("inf") else left


def _compared(
    figure: Figure, pair: tuple[str, str], samples: Sequence[Sample], alpha: float, margin: float
) -> Comparison:
    """One arm beside the control. A score spans 2, from -1 to 1; more errors are worse."""
    control, other = samples
    span = 2.0 if figure == "score" else 1.0
    low, high = (span * bound for bound in difference_bounds(control, other, alpha))
    difference = span * (other.mean - control.mean) if control.count and other.count else 0.0
    good, bad = (low > 0, high < 0) if figure == "score" else (high < 0, low > 0)
    outcome: Outcome = "better" if good else "worse" if bad else "same" if -margin < low and high < margin else "open"
    return Comparison(figure, *pair, difference, low, high, outcome)


def _decide(figures: Sequence[ArmFigures], found: Sequence[Comparison]) -> tuple[Decision, str | None, Reason]:
    """Who fails more loses, whatever was said of the answers; then the score decides."""
    if not found:
        return "continue", None, "one_arm"
    if not any(arm.requests or arm.scored for arm in figures):
        return "continue", None, "no_data"
    control = found[0].control
    errors = {c.release: c.outcome for c in found if c.figure == "error_rate"}
    scores = {c.release: c.outcome for c in found if c.figure == "score"}
    scored = {arm.release: arm.mean_score or 0.0 for arm in figures}
    for outcomes, rest, reason in ((errors, scores, "fails_more"), (scores, errors, "scored_higher")):
        good = [release for release, outcome in outcomes.items() if outcome == "better" and rest[release] != "worse"]
        if good:
            return "stop_winner", max(good, key=lambda release: scored[release]), _reason(reason)
    lost = [release for release in errors if "worse" in (errors[release], scores[release])]
    if len(lost) == len(errors):
        failed = all(errors[release] == "worse" for release in lost)
        return "stop_winner", control, "fails_more" if failed else "scored_higher"
    nobody = not any(arm.scored for arm in figures)
    if all(errors[r] == "same" and (nobody or scores[r] == "same") for r in errors if r not in lost):
        return "stop_no_difference", None, "no_difference"
    return "continue", None, "undecided"


def _reason(name: str) -> Reason:
    return "fails_more" if name == "fails_more" else "scored_higher"


def _failures(counters: Counters) -> Sample:
    return Sample(counters.requests, float(counters.errors))


def _judged(scores: Scores) -> Sample:
    return Sample(scores.count, (scores.total + scores.count) / 2)


def _figures(arm: Arm, counters: Counters, scores: Scores) -> ArmFigures:
    return ArmFigures(
        release=arm.release.label,
        role=arm.role,
        weight=arm.weight,
        since=arm.since,
        requests=counters.requests,
        errors=counters.errors,
        alarms=counters.alarms,
        looked_at=counters.looked_at,
        error_rate=counters.errors / counters.requests if counters.requests else None,
        scored=scores.count,
        mean_score=scores.mean,
        latency_p50_s=counters.quantile(0.5),
        latency_p95_s=counters.quantile(0.95),
        prompt_tokens=counters.prompt_tokens,
        answer_tokens=counters.answer_tokens,
    )
