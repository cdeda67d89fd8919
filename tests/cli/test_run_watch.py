"""`inhouse run --watch`: what changes is run again; what fails is told once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from inhouse.api.run import RunRequest
from inhouse.cli import actions
from inhouse.core.errors import GateFailed, UserError


class Ended(Exception):
    """The test's Ctrl-C."""


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Plays runs: `looks` are what is left to do at each look (or an error), `outcomes` those of the runs."""
    played = SimpleNamespace(looks=[], outcomes=[], runs=[], slept=[])

    def run_once(request: RunRequest, as_json: bool) -> None:
        played.runs.append(request)
        outcome = played.outcomes.pop(0) if played.outcomes else None
        if outcome is not None:
            raise outcome

    def left_to_do(request: RunRequest) -> frozenset[str]:
        found: Any = played.looks[len(played.slept)]
        if isinstance(found, Exception):
            raise found
        return frozenset(found)

    def sleep(seconds: float) -> None:
        if len(played.slept) == len(played.looks) - 1:
            raise Ended
        played.slept.append(seconds)

    monkeypatch.setattr(actions, "_run_once", run_once)
    monkeypatch.setattr(actions, "left_to_do", left_to_do)
    monkeypatch.setattr(actions, "time", SimpleNamespace(sleep=sleep))
    return played


def watch(**more: Any) -> None:
    with pytest.raises(Ended):
        actions.run_project(RunRequest(project=Path("p.yaml"), watch=0.5, **more), as_json=False)


def test_only_what_changed_is_run_again_and_not_because_it_was_asked_for_once(seen: SimpleNamespace) -> None:
    seen.looks = ["", "", "d", ""]
    watch(again=("train",))
    assert [request.again for request in seen.runs] == [("train",), ()] and set(seen.slept) == {30.0}


def test_what_failed_is_told_once_and_run_again_when_what_it_reads_has_changed(
    seen: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    unread = UserError("sources.offline", uri="hf:c/d", cache="c")
    seen.outcomes = [UserError("sources.offline", uri="hf:a/b", cache="c"), None]
    seen.looks = ["t", "t", unread, unread, "u", ""]
    watch()
    said = capsys.readouterr().out
    assert len(seen.runs) == 2 and said.count("hf:a/b") == 1 and said.count("hf:c/d") == 1


def test_failed_gate_does_not_end_the_watch(seen: SimpleNamespace) -> None:
    failed = GateFailed("release.export_failed", release="r:v1")
    seen.outcomes, seen.looks = [failed, click.exceptions.Exit(3)], ["t", "u", ""]
    watch()
    assert len(seen.runs) == 2


def test_dry_run_is_not_watched(seen: SimpleNamespace) -> None:
    actions.run_project(RunRequest(project=Path("p.yaml"), watch=0.5, dry_run=True), as_json=False)
    assert len(seen.runs) == 1 and not seen.slept
