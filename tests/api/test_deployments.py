from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "release"))

from release_workspace import key_of, make_model, make_report, run_stage

from inhouse.cli.main import main
from inhouse.core.gate import Gate
from inhouse.core.store import Store
from inhouse.release.keys import create_numbered_key
from inhouse.release.registry import Registry, open_registry
from inhouse.release.results import Counters, Feedback, add_feedback, add_results
from inhouse.release.settings import ReleaseNode, ReleaseParams, ServeParams


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Two releases that passed and one that did not; 'desk' is at the first."""
    monkeypatch.setenv("INHOUSE_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.setenv("COLUMNS", "200")
    store = Store(tmp_path / "workspace")
    store.create()
    inputs = {"model": make_model(store, b"GGUF"), "report": make_report(store, {"tuned.accuracy": {"value": 0.8}})}
    found = open_registry(store)
    for at_least, context in ((0.7, 2048), (0.7, 1024), (0.9, 512)):
        gates = (Gate(figure="tuned.accuracy", at_least=at_least),)
        serve = ServeParams(context_length=context)
        node = ReleaseNode(project="routing", release=ReleaseParams(gates=gates), serve=serve)
        found.register("routing", run_stage(store, node, inputs))
    found.promote("desk", "routing:v1")
    return found


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any]:
    """The exit code of a command with --json, and what it printed: its result or its error."""
    code = main([*words, "--json"])
    printed = capsys.readouterr()
    told = json.loads(printed.out or printed.err)
    return code, told.get("error", told)


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 0
    return capsys.readouterr().out


def arms(line: dict[str, Any]) -> list[tuple[str, float, str]]:
    return [(arm["release"], arm["share"], arm["role"]) for arm in line["arms"]]


def test_split_takes_percent_and_shows_every_arm(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    code, line = said(capsys, "deployments", "split", "desk", "routing:v1=12.5%", "routing:v2=87.5")
    assert code == 0 and arms(line) == [("routing:v2", 87.5, "live"), ("routing:v1", 12.5, "live")]
    assert "87.5 %" in shown(capsys, "deployments", "list")
    assert [r["deployments"] for r in said(capsys, "release", "list")[1]["releases"]] == [["desk"], ["desk"], []]
    code, line = said(capsys, "deployments", "rollback", "desk")
    assert arms(line) == [("routing:v1", 100.0, "live")] and line["previous"] == "routing:v2"


@pytest.mark.parametrize(
    ("words", "problem", "code"),
    [
        ("split desk routing:v1=50", "release.split_sum", 2),
        ("split desk routing:v1=x", "release.bad_share", 2),
        ("split desk 100", "release.bad_share", 2),
        ("split desk routing:v1=nan", "release.weight", 2),
        ("split desk routing:v1=50 routing:v1=50", "release.split_twice", 2),
        ("split desk routing:v1=33.33 routing:v2=66.67", "release.weight", 2),
        ("canary desk routing:v2 --weight 100", "release.weight", 2),
        ("canary desk routing:v2 --weight 1e300", "release.weight", 2),
        ("canary desk routing:v2 --steps 5,3", "release.bad_rule", 2),
        ("canary desk routing:v2 --steps 5,x]", "project.override", 2),
        ("canary desk routing:v3", "release.gates_failed", 3),
        ("canary disk routing:v2", "release.deployment_unknown", 2),
        ("shadow desk routing:v1", "release.already_live", 2),
        ("shadow desk routing:v2 --share -1", "release.weight", 2),
        ("promote desk routing:v9", "release.unknown", 2),
        ("promote D!sk routing:v1", "release.bad_name", 2),
        ("rollback desk", "release.no_previous", 2),
        ("rules desk sticky=sometimes", "release.bad_rule", 2),
        ("rules desk nothing.such=1", "release.bad_rule", 2),
        ("rules desk sticky", "project.override", 2),
        ("rules desk overflow.never_with_personal_data=false", "release.bad_rule", 2),
        ("history disk", "release.deployment_unknown", 2),
        ("remove disk", "release.deployment_unknown", 2),
    ],
)
def test_change_that_makes_no_sense_says_why_and_changes_nothing(
    registry: Registry, capsys: pytest.CaptureFixture[str], words: str, problem: str, code: int
) -> None:
    before = registry.deployment("desk")
    found, told = said(capsys, "deployments", *words.split())
    assert (found, told["code"]) == (code, problem) and told["message"]
    assert registry.deployment("desk") == before


def test_canary_sets_its_rules_and_is_promoted_by_hand(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    words = "canary desk routing:v2 --weight 2.5 --max-error-rate 0.01 --min-requests 7 --window-s 5 --steps 2.5,50,100"
    code, line = said(capsys, "deployments", *words.split())
    assert code == 0 and arms(line) == [("routing:v1", 97.5, "live"), ("routing:v2", 2.5, "canary")]
    rules = said(capsys, "deployments", "show", "desk")[1]["rules"]["canary"]
    assert (rules["max_error_rate"], rules["min_requests"], rules["steps"]) == (0.01, 7, [2.5, 50.0, 100.0])
    assert rules["max_latency_ratio"] == 1.5  # not named, so as it was
    assert "canary" in shown(capsys, "deployments", "show", "desk")
    assert "routing:v2" in shown(capsys, "deployments", "promote", "desk", "routing:v2")
    assert said(capsys, "deployments", "list")[1]["deployments"][0]["previous"] == "routing:v1"


def test_shadow_begins_and_ends(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    assert arms(said(capsys, "deployments", "shadow", "desk", "routing:v2", "--share", "10")[1])[1] == (
        "routing:v2",
        10.0,
        "shadow",
    )
    assert len(said(capsys, "deployments", "shadow", "desk", "routing:v2", "--share", "0")[1]["arms"]) == 1


def test_rules_change_together_and_unset_what_is_null(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("sticky=header:x-user", "overflow.url=https://host/v1", "overflow.model=big", "canary.min_requests=9")
    rules = said(capsys, "deployments", "rules", "desk", *words)[1]["rules"]
    assert rules["sticky"] == "header:x-user" and rules["canary"]["min_requests"] == 9
    assert rules["overflow"] == {
        "url": "https://host/v1",
        "model": "big",
        "queue": 16,
        "never_with_personal_data": True,
    }
    assert said(capsys, "deployments", "rules", "desk", "overflow=null")[1]["rules"]["overflow"] is None
    assert "header:x-user" in shown(capsys, "deployments", "rules", "desk")


def test_report_shows_each_arm_and_who_wins_in_both_languages(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "nothing to compare" in shown(capsys, "deployments", "report", "desk")
    found = registry.split("desk", {"routing:v1": 600, "routing:v2": 400})
    counted = Counters()
    for _ in range(300):
        counted.count(0.25)
    add_results(registry.engine, "desk", [(arm, counted) for arm in found.arms])
    assert said(capsys, "keys", "create", "one")[0] == 0
    for number in range(300):
        arm = found.arms[number % 2]
        score = 1.0 if arm.release.label == "routing:v2" or number % 3 == 0 else -1.0
        add_feedback(registry.engine, Feedback(f"r{number}", "desk", arm.release.id, "live", 1, score))
    result = said(capsys, "deployments", "report", "desk")[1]["experiment"]
    assert (result["decision"], result["winner"]) == ("stop_winner", "routing:v2")
    first, second = result["arms"]
    assert (first["requests"], first["scored"], second["mean_score"]) == (300, 150, 1.0)
    assert "routing:v2 wins" in shown(capsys, "deployments", "report", "desk")
    assert "routing:v2 胜出" in shown(capsys, "deployments", "report", "desk", "--lang", "zh")


def test_deployment_that_is_removed_leaves_its_history_and_comes_back_without_its_counts(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    since = registry.deployment("desk").arms
    add_results(registry.engine, "desk", [(arm, Counters(requests=5, errors=2)) for arm in since])
    key = create_numbered_key(registry.engine, "ann")[1].id
    add_feedback(registry.engine, Feedback("r1", "desk", since[0].release.id, "live", key, 1.0))
    told = shown(capsys, "deployments", "remove", "desk")
    assert "promote desk routing:v1" in told
    assert "已移除" not in told
    assert said(capsys, "deployments", "list")[1]["deployments"] == []
    changes = said(capsys, "deployments", "history", "desk")[1]["changes"]
    assert [change["action"] for change in changes[:2]] == ["remove", "promote"]
    registry.promote("desk", "routing:v1", "test")
    report = said(capsys, "deployments", "report", "desk")[1]["experiment"]["arms"][0]
    assert report["requests"] == report["errors"] == 0
    with registry.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM feedback").scalar() == 0


def test_history_tells_who_did_what(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    registry.set_rules("desk", registry.deployment("desk").rules.model_copy(update={"sticky": "user"}), "ann")
    registry.start_canary("desk", "routing:v2", 50, "bob")
    canary = registry.deployment("desk").canary
    assert canary is not None
    registry.roll_back_canary("desk", canary, "5 errors in 9 requests", "serve")
    changes = said(capsys, "deployments", "history", "desk")[1]["changes"]
    assert [(c["actor"], c["action"]) for c in changes[:3]] == [
        ("serve", "canary.rollback"), ("bob", "canary"), ("ann", "rules"),
    ]  # fmt: skip
    assert "5 errors in 9 requests" in shown(capsys, "deployments", "history", "desk")
    assert len(said(capsys, "deployments", "history", "desk", "--limit", "1")[1]["changes"]) == 1


def test_keys_are_made_with_limits_changed_for_new_ones_and_ended(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "--scopes chat --scopes embed --models desk --requests-per-minute 60 --tokens-per-day 1000 --expires-days 2"
    made = said(capsys, "keys", "create", "ann", *words.split())[1]
    key = key_of(registry, made["token"])
    assert key is not None and key.id == made["id"] and key.limits.scopes == ("chat", "embed")
    assert (key.limits.models, key.limits.requests_per_minute, key.limits.tokens_per_day) == (("desk",), 60, 1000)
    listed = shown(capsys, "keys", "list")
    assert "60 req/min" in listed and "chat, embed" in listed and made["token"] not in listed
    rotated = said(capsys, "keys", "rotate", "ann")[1]
    assert rotated["id"] == made["id"] and key_of(registry, made["token"]) is None
    assert said(capsys, "keys", "revoke", "ann")[1]["keys"][0]["revoked"] is not None
    assert "revoked" in shown(capsys, "keys", "list")
    assert rotated["token"].startswith("ih-") and key_of(registry, rotated["token"]) is None


@pytest.mark.parametrize(
    ("words", "problem"),
    [(("ann", "--models", "disk"), "release.deployment_unknown"), (("an\x1b[31mn",), "keys.bad_name")],
)
def test_key_that_makes_no_sense_is_refused(
    registry: Registry, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], problem: str
) -> None:
    code, told = said(capsys, "keys", "create", *words)
    assert (code, told["code"]) == (2, problem)
    assert said(capsys, "keys", "list")[1]["keys"] == []
    assert main(["keys", "create", "ann", "--scopes", "root"]) == 2
    capsys.readouterr()
    assert main(["keys", "create", "ann", "--scopes", "chat, embed"]) == 2
    assert "--scopes chat --scopes embed" in capsys.readouterr().err
    assert main(["keys", "create", "x" * 65]) == 2


def test_release_is_promoted_and_shown_by_its_own_commands(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "desk now serves routing:v2" in shown(capsys, "release", "promote", "routing:v2", "--deployment", "desk")
    assert said(capsys, "release", "promote", "routing:v1", "--deployment", "other")[1]["deployment"] == "other"
    again = shown(capsys, "release", "promote", "routing:v2", "--deployment", "desk")
    assert "serves routing:v2 already" in again and "before" not in again
    assert said(capsys, "deployments", "promote", "desk", "routing:v2")[1]["changed"] is False
    assert said(capsys, "release", "rollback", "desk")[1]["release"] == "routing:v1"
    detail = said(capsys, "release", "show", "routing:v3")[1]
    assert detail["line"]["passed"] is False and detail["evidence"]["verdicts"][0]["figure"] == "tuned.accuracy"
    assert "release evidence" in shown(capsys, "release", "show", "routing:v1")


def test_workspace_without_deployments_and_keys_says_how_to_make_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("INHOUSE_WORKSPACE", str(tmp_path))
    assert "inhouse deployments promote" in shown(capsys, "deployments", "list")
    assert "inhouse keys create" in shown(capsys, "keys", "list")
    assert shown(capsys, "keys", "create", "ann").splitlines()[-1].startswith("ih-")


def test_split_is_shown_with_what_follows_by_itself(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    told = shown(capsys, "deployments", "split", "desk", "routing:v1=50", "routing:v2=50")
    assert "50 %" in told and "running server" in told
