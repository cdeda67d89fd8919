from __future__ import annotations

import pytest

from inhouse.core.errors import GateFailed, UserError
from inhouse.release.arms import apportion
from inhouse.release.registry import Deployment, Registry
from inhouse.release.rules import CanaryRules, Overflow, Rules, weight_of


def shown(found: Deployment) -> list[tuple[str, int, str]]:
    return [(arm.release.label, arm.weight, arm.role) for arm in found.arms]


def code_of(error: pytest.ExceptionInfo[UserError]) -> str:
    assert str(error.value)
    return error.value.code


def test_split_gives_each_release_its_part_and_rollback_returns_to_the_parts_before(four: Registry) -> None:
    split = four.split("desk", {"routing:v1": 125, "routing:v2": 875}, "ann")
    assert shown(split) == [("routing:v2", 875, "live"), ("routing:v1", 125, "live")]
    assert split.release.label == "routing:v2" and split.generation == 2
    again = four.split("desk", {"routing:v1": 500, "routing:v3": 500})
    assert again.release.label == "routing:v3"  # of equal parts, the newest
    assert shown(four.rollback("desk")) == shown(split)
    assert shown(four.rollback("desk")) == shown(again)
    assert [e.action for e in four.audit(3, "desk")] == ["rollback", "rollback", "split"]


def test_arms_are_counted_from_one_moment_on(four: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = "2030-01-01T00:00:00+00:00"
    monkeypatch.setattr("inhouse.release.arms.now", lambda: moment)
    found = four.split("desk", {"routing:v1": 400, "routing:v2": 600})
    assert {arm.since for arm in found.arms} == {moment}
    monkeypatch.setattr("inhouse.release.arms.now", lambda: "2031-01-01T00:00:00+00:00")
    same = four.split("desk", {"routing:v1": 400, "routing:v2": 600})  # no change is no new beginning
    assert {arm.since for arm in same.arms} == {moment}


@pytest.mark.parametrize(
    ("weights", "code"),
    [
        ({"routing:v1": 500, "routing:v2": 499}, "release.split_sum"),
        ({}, "release.split_sum"),
        ({"routing:v1": 1000, "routing:v2": 0}, "release.weight"),
        ({"routing:v1": 1001, "routing:v2": -1}, "release.weight"),
        ({"routing:v1": 500, "routing:v9": 500}, "release.unknown"),
    ],
)
def test_split_that_makes_no_sense_is_refused_and_changes_nothing(
    four: Registry, weights: dict[str, int], code: str
) -> None:
    before = four.deployment("desk")
    with pytest.raises(UserError) as error:
        four.split("desk", weights)
    assert code_of(error) == code and four.deployment("desk") == before


def test_split_over_one_release_named_twice_is_refused(four: Registry) -> None:
    with pytest.raises(UserError) as error:
        four.split("desk", {"routing:v1": 500, four.show("routing:v1").artifact: 500})
    assert code_of(error) == "release.split_twice"


def test_deployment_with_a_name_that_urls_cannot_hold_is_refused(four: Registry) -> None:
    for name in ("", "De/sk", "x" * 64, "a b", "-x", "ärger"):
        with pytest.raises(UserError) as error:
            four.promote(name, "routing:v1")
        assert code_of(error) == "release.bad_name"


@pytest.mark.parametrize("change", ["split", "start_canary", "shadow"])
def test_release_that_failed_its_gates_gets_no_request(four: Registry, change: str) -> None:
    calls = {
        "split": lambda: four.split("desk", {"routing:v1": 900, "routing:v4": 100}),
        "start_canary": lambda: four.start_canary("desk", "routing:v4", 50),
        "shadow": lambda: four.shadow("desk", "routing:v4", 50),
    }
    with pytest.raises(GateFailed) as error:
        calls[change]()
    assert code_of(error) == "release.gates_failed"


def test_canary_takes_its_part_of_everything_and_the_live_arms_share_the_rest(four: Registry) -> None:
    four.split("desk", {"routing:v1": 700, "routing:v2": 300})
    found = four.start_canary("desk", "routing:v3", 50, "ann")
    assert shown(found) == [("routing:v1", 665, "live"), ("routing:v2", 285, "live"), ("routing:v3", 50, "canary")]
    assert found.canary is not None and found.canary.release.label == "routing:v3"
    assert found.release.label == "routing:v1"
    more = four.start_canary("desk", "routing:v3", 100)
    assert [arm.weight for arm in more.arms] == [630, 270, 100]
    assert [arm.weight for arm in four.rollback("desk").arms] == [700, 300]


def test_canary_advances_to_its_promotion_and_rollback_returns_to_before_it(four: Registry) -> None:
    first = four.start_canary("desk", "routing:v2", 50).canary
    assert first is not None
    second = four.advance_canary("desk", first, 500, "serve").canary
    assert second is not None and second.weight == 500 and second.since >= first.since  # arms begin anew
    stale = four.advance_canary("desk", first, 900, "serve")  # another gateway, which decided on the step before
    assert stale.canary == second
    done = four.advance_canary("desk", second, 1000, "serve")
    assert shown(done) == [("routing:v2", 1000, "live")]
    assert shown(four.advance_canary("desk", second, 1000, "serve")) == shown(done)
    assert four.rollback("desk").release.label == "routing:v1"
    assert [e.action for e in four.audit(4, "desk")] == ["rollback", "promote", "canary.advance", "canary"]


def test_canary_taken_back_leaves_its_reason_and_a_second_gateway_changes_nothing(four: Registry) -> None:
    four.promote("desk", "routing:v3")
    canary = four.start_canary("desk", "routing:v2", 50).canary
    assert canary is not None
    found = four.roll_back_canary("desk", canary, "errors: 5 of 50", "serve")
    assert shown(found) == [("routing:v3", 1000, "live")]
    assert four.roll_back_canary("desk", canary, "errors: 5 of 50", "serve") == found
    entry = four.audit(1, "desk")[0]
    assert entry.action == "canary.rollback" and entry.actor == "serve"
    assert (entry.detail["canary"], entry.detail["reason"]) == ("routing:v2", "errors: 5 of 50")
    with pytest.raises(UserError) as error:  # who meant the canary must not put v1 in the place of v3
        four.rollback("desk")
    assert error.value.code == "release.canary_ended" and "routing:v2" in str(error.value)
    assert four.deployment("desk") == found
    four.promote("desk", "routing:v1")
    assert four.rollback("desk").release.label == "routing:v3"


def test_canary_of_what_is_live_or_beside_another_or_of_nothing_is_refused(four: Registry) -> None:
    for release, weight, code in (
        ("routing:v1", 50, "release.already_live"),
        ("routing:v2", 1000, "release.weight"),
        ("routing:v2", 0, "release.weight"),
    ):
        with pytest.raises(UserError) as error:
            four.start_canary("desk", release, weight)
        assert code_of(error) == code
    four.start_canary("desk", "routing:v2", 50)
    with pytest.raises(UserError) as error:
        four.start_canary("desk", "routing:v3", 50)
    assert code_of(error) == "release.canary_running"
    with pytest.raises(UserError) as error:
        four.start_canary("disk", "routing:v3", 50)
    assert code_of(error) == "release.deployment_unknown"


def test_promote_and_split_end_a_canary(four: Registry) -> None:
    four.start_canary("desk", "routing:v2", 50)
    assert shown(four.promote("desk", "routing:v1")) == [("routing:v1", 1000, "live")]
    four.start_canary("desk", "routing:v2", 50)
    assert shown(four.promote("desk", "routing:v2")) == [("routing:v2", 1000, "live")]
    previous = four.deployment("desk").previous
    assert previous is not None and previous.label == "routing:v1"


def test_shadow_gets_copies_beside_the_arms_and_survives_their_changes(four: Registry) -> None:
    found = four.shadow("desk", "routing:v3", 250)
    assert shown(found) == [("routing:v1", 1000, "live"), ("routing:v3", 250, "shadow")]
    assert shown(four.promote("desk", "routing:v2"))[1:] == [("routing:v3", 250, "shadow")]
    assert shown(four.rollback("desk"))[1:] == [("routing:v3", 250, "shadow")]
    assert shown(four.shadow("desk", "routing:v3", 0)) == [("routing:v1", 1000, "live")]
    with pytest.raises(UserError) as error:
        four.shadow("desk", "routing:v3", 0)
    assert code_of(error) == "release.no_shadow"
    with pytest.raises(UserError) as error:
        four.shadow("desk", "routing:v1", 100)
    assert code_of(error) == "release.already_live"


def test_release_that_only_gets_copies_is_not_rolled_back_to(four: Registry) -> None:
    four.promote("desk", "routing:v2")
    assert four.rollback("desk").release.label == "routing:v1"
    tried = four.shadow("desk", "routing:v2", 500)
    with pytest.raises(UserError) as error:  # it was taken back once, and is looked at again
        four.rollback("desk")
    assert error.value.code == "release.only_copies" and four.deployment("desk") == tried
    four.shadow("desk", "routing:v2", 0)
    assert four.rollback("desk").release.label == "routing:v2"


def test_shadow_that_is_promoted_or_tried_is_a_shadow_no_more(four: Registry) -> None:
    four.shadow("desk", "routing:v2", 1000)
    assert shown(four.start_canary("desk", "routing:v2", 100))[1:] == [("routing:v2", 100, "canary")]
    four.rollback("desk")
    four.shadow("desk", "routing:v2", 1000)
    assert shown(four.promote("desk", "routing:v2")) == [("routing:v2", 1000, "live")]


def test_rules_are_kept_and_only_a_change_counts(four: Registry) -> None:
    rules = Rules(
        sticky="header:X-User",
        canary=CanaryRules(min_requests=200, steps=(1, 10, 100)),
        overflow=Overflow(url="https://host/v1", model="big"),
    )
    found = four.set_rules("desk", rules, "ann")
    assert found.rules == rules and found.generation == 2 and found.rules.sticky_header == "x-user"
    assert four.set_rules("desk", rules) == found
    assert Rules().sticky_header is None and found.rules.overflow is not None
    assert found.rules.overflow.never_with_personal_data is True


def test_canary_with_rules_is_one_change(four: Registry) -> None:
    rules = Rules(canary=CanaryRules(min_requests=7))
    assert four.start_canary("desk", "routing:v2", 50, "ann", rules).rules == rules
    with pytest.raises(UserError):
        four.start_canary("desk", "routing:v1", 50, "ann", Rules())
    assert four.deployment("desk").rules == rules


def test_key_of_the_same_name_is_not_in_the_history_of_a_deployment(four: Registry) -> None:
    from inhouse.release.keys import create_key

    create_key(four.engine, "desk")
    assert [e.action for e in four.audit(10, "desk")] == ["promote"]
    with pytest.raises(UserError):
        four.audit(10, "disk")


@pytest.mark.parametrize(
    ("weights", "whole", "parts"),
    [
        ({1: 1000}, 950, {1: 950}),
        ({1: 1, 2: 1, 3: 1}, 1000, {1: 334, 2: 333, 3: 333}),
        ({1: 999, 2: 1}, 500, {1: 500, 2: 0}),
    ],
)
def test_parts_add_up_to_the_whole(weights: dict[int, int], whole: int, parts: dict[int, int]) -> None:
    assert apportion(weights, whole) == parts


def test_share_in_percent_is_a_weight_in_steps_of_a_tenth() -> None:
    found = [
        weight_of(share) for share in (0.1, 12.5, 100, 33.3, 0, -1, 100.1, 0.05, 12.34, float("nan"), float("inf"))
    ]
    assert found == [1, 125, 1000, 333, None, None, None, None, None, None, None]
