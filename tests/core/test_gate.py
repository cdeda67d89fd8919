"""Gates: pure rules; what is missing or not finite never passes."""

from __future__ import annotations

import math

import pytest

from inhouse.core.gate import Figure, Gate, figures_of, judge, rule_text

FIGURES = {"tuned.accuracy": Figure(value=0.8, low=0.75, high=0.85, n=300), "base.speed": Figure(value=5.0)}


@pytest.mark.parametrize(
    ("gate", "passed", "reason"),
    [
        (Gate(figure="tuned.accuracy", at_least=0.8), True, "ok"),
        (Gate(figure="tuned.accuracy", at_least=0.81), False, "too_low"),
        (Gate(figure="tuned.accuracy", at_least=0.76, bound="low"), False, "too_low"),
        (Gate(figure="tuned.accuracy", at_most=0.84, bound="high"), False, "too_high"),
        (Gate(figure="tuned.accuracy", at_least=0.7, at_most=0.9), True, "ok"),
        (Gate(figure="base.speed", at_least=1, bound="low"), False, "missing"),
        (Gate(figure="no.such", at_least=-1e9), False, "missing"),
    ],
)
def test_judge_applies_bounds(gate: Gate, passed: bool, reason: str) -> None:
    verdict = judge(gate, FIGURES)
    assert (verdict.passed, verdict.reason) == (passed, reason)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_judge_refuses_numbers_that_are_not_finite(value: float) -> None:
    verdict = judge(Gate(figure="x", at_least=-1e300, at_most=1e300), {"x": Figure(value=value)})
    assert not verdict.passed and verdict.reason == "not_finite" and verdict.measured is None


def test_gate_without_a_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="at_least or at_most"):
        Gate(figure="x")


def test_rule_text_reads_like_a_formula() -> None:
    assert rule_text(Gate(figure="x", at_least=0.7, at_most=1, bound="low")) == "low >= 0.7 <= 1"


def test_figures_of_reads_a_report() -> None:
    assert figures_of({"figures": {"x": {"value": 1.0, "n": 3}}}) == {"x": Figure(value=1.0, n=3)}
