from __future__ import annotations

import numpy as np
import pytest

from inhouse.api.deployments import experiment_of
from inhouse.cli.deployment_views import _figures
from inhouse.core.errors import UserError
from inhouse.database import writing
from inhouse.release.canary import judge_canary
from inhouse.release.keys import create_key
from inhouse.release.registry import Registry
from inhouse.release.results import Counters, Feedback, Scores, add_feedback, add_results, read_results, read_scores
from inhouse.release.rules import CanaryRules, Rules

RULES = CanaryRules(max_error_rate=0.05, max_latency_ratio=1.5, min_requests=100, window_s=30, steps=(5, 20, 100))


def counted(requests: int, errors: int = 0, alarms: int = 0, seconds: float = 0.1) -> Counters:
    found = Counters()
    for number in range(requests):
        found.count(seconds, failed=number < errors, alarm=number < alarms)
    return found


@pytest.mark.parametrize(
    ("live", "canary", "seconds", "expected"),
    [
        (counted(900), counted(99), 60.0, ("keep", "too_few", 50)),
        (counted(900), counted(500), 29.0, ("keep", "too_early", 50)),
        (counted(900), counted(100), 30.0, ("advance", "healthy", 200)),
        (counted(900), counted(6, errors=5), 1.0, ("keep", "too_few", 50)),
        (counted(900), counted(6, errors=6), 1.0, ("roll_back", "errors", 0)),  # 6 of 100 at best: over 5 %
        (counted(900), counted(200, errors=10), 60.0, ("advance", "healthy", 200)),
        (counted(900), counted(200, errors=11), 60.0, ("roll_back", "errors", 0)),
        (counted(900, errors=90), counted(200, errors=20), 60.0, ("advance", "healthy", 200)),  # live fails as much
        (Counters(), counted(6, errors=6), 1.0, ("roll_back", "errors", 0)),
        (counted(900), counted(6, alarms=6), 1.0, ("roll_back", "alarms", 0)),
        (counted(900, alarms=900), counted(100, alarms=100), 30.0, ("advance", "healthy", 200)),
        (counted(900), counted(100, seconds=0.2), 5.0, ("roll_back", "latency", 0)),
        (counted(900), counted(100, seconds=0.12), 30.0, ("advance", "healthy", 200)),
        (counted(99), counted(100, seconds=0.2), 30.0, ("advance", "healthy", 200)),  # too few to compare with
    ],
)
def test_canary_is_kept_given_more_or_taken_back(
    live: Counters, canary: Counters, seconds: float, expected: tuple[str, str, int]
) -> None:
    step = judge_canary(live, canary, seconds, 50, RULES)
    assert (step.action, step.reason, step.weight) == expected and step.detail


def test_canary_goes_step_by_step_to_its_promotion_or_stays_at_the_last() -> None:
    good = (counted(900), counted(100), 60.0)
    assert [judge_canary(*good, weight, RULES).weight for weight in (10, 50, 100, 200, 999)] == [
        50,
        200,
        200,
        1000,
        1000,
    ]
    step = judge_canary(*good, 200, CanaryRules(steps=(5, 20)))
    assert (step.action, step.reason, step.weight) == ("keep", "last_step", 200)


@pytest.mark.parametrize("steps", [(5, 5), (20, 5), (0,), (101,), (0.05,), ()])
def test_steps_that_do_not_rise_to_a_hundred_are_refused(steps: tuple[float, ...]) -> None:
    with pytest.raises(ValueError):
        CanaryRules(steps=steps)


@pytest.mark.parametrize("sticky", ["", "users", "header:", "header:a b", "header:a\n", "user "])
def test_stickiness_of_no_known_kind_is_refused(sticky: str) -> None:
    with pytest.raises(ValueError):
        Rules(sticky=sticky)


def test_quantiles_are_near_those_of_the_latencies_themselves() -> None:
    latencies = np.random.default_rng(5).lognormal(-1.5, 1.0, 5000)
    found = Counters()
    for seconds in latencies.tolist():
        found.count(seconds)
    for share in (0.05, 0.5, 0.95, 0.99):
        assert found.quantile(share) == pytest.approx(np.quantile(latencies, share), rel=0.1)
    assert Counters().quantile(0.5) is None
    assert counted(3, seconds=10_000.0).quantile(0.5) == pytest.approx(486, rel=0.01)  # the last bound


def test_results_of_several_gateways_add_up_and_begin_anew_with_each_change(
    four: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = four.split("desk", {"routing:v1": 500, "routing:v2": 500}).arms
    more = counted(3, errors=1, alarms=2)
    more.count(0.1)  # that no guard looked at
    more.prompt_tokens, more.answer_tokens = 30, 60
    for _ in range(2):
        add_results(four.engine, "desk", [(arm, more) for arm in arms])
    found, same = read_results(four.engine, "desk", arms)
    assert (found.requests, found.errors, found.alarms, found.prompt_tokens, found.answer_tokens) == (8, 2, 4, 60, 120)
    assert found.looked_at == 6
    assert found.latency_s == pytest.approx(0.8) and sum(found.histogram) == 8 and found == same
    four.promote("desk", "routing:v1")
    monkeypatch.setattr("inhouse.release.arms.now", lambda: "2030-01-01T00:00:00+00:00")
    again = four.split("desk", {"routing:v1": 500, "routing:v2": 500}).arms
    assert [arm.release.label for arm in again] == ["routing:v2", "routing:v1"]
    assert read_results(four.engine, "desk", again) == [Counters(), Counters()]  # of one period: both begin anew


def test_alarms_are_told_out_of_the_answers_that_guards_looked_at(four: Registry) -> None:
    arms = four.split("desk", {"routing:v1": 500, "routing:v2": 500}).arms
    seen = counted(20, alarms=3)
    for _ in range(80):
        seen.count(0.1)
    add_results(four.engine, "desk", [(arms[0], seen)])
    first, second = experiment_of(four, four.deployment("desk")).arms
    assert (first.requests, first.alarms, first.looked_at) == (100, 3, 20)
    assert (second.alarms, second.looked_at) == (0, 0)
    assert _figures(first)[5] == "3 / 20" and _figures(second)[5] == "-"
    with writing(four.engine) as connection:  # as the registry had it before this was counted
        connection.exec_driver_sql("UPDATE arm_results SET looked_at = NULL")
    add_results(four.engine, "desk", [(arms[0], seen)])
    old = experiment_of(four, four.deployment("desk")).arms[0]
    assert (old.alarms, old.looked_at, _figures(old)[5]) == (6, None, "6")


def test_feedback_counts_once_for_each_request_of_a_key_and_only_since_the_arm_is_there(
    four: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = four.split("desk", {"routing:v1": 500, "routing:v2": 500}).arms
    keys = [create_key(four.engine, name)[1].id for name in ("one", "two")]
    release = arms[0].release.id
    for request, key, score in (
        ("r1", keys[0], -1.0),
        ("r1", keys[0], 1.0),
        ("r1", keys[1], 0.5),
        ("r2", keys[0], -9.0),
    ):
        add_feedback(four.engine, Feedback(request, "desk", release, "live", key, score, "good \x00 " + "x" * 9999))
    monkeypatch.setattr("inhouse.release.results.now", lambda: "2001-01-01T00:00:00+00:00")
    add_feedback(four.engine, Feedback("r3", "desk", release, "live", keys[0], -1.0))
    assert read_scores(four.engine, "desk", arms) == [Scores(3, 0.5), Scores()]


def test_pattern_of_an_overflow_takes_only_web_addresses(four: Registry) -> None:
    for url in ("file:///etc/passwd", "host/v1", "ftp://h", "http://"):
        with pytest.raises(ValueError):
            Rules.model_validate({"overflow": {"url": url, "model": "m"}})
    with pytest.raises(ValueError):
        Rules.model_validate({"overflow": {"url": "http://h/v1", "model": "m", "never_with_personal_data": False}})
    with pytest.raises(UserError):
        four.set_rules("disk", Rules())
