"""Plan, rate and search of a project's training, as a command runs them and as a terminal shows them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inhouse.api import training
from inhouse.api.training import FindRateRequest, SearchRequest, TrainingRequest
from inhouse.cli import train_views, views
from inhouse.cli.main import main
from inhouse.core.errors import UserError
from inhouse.core.messages import use_language
from inhouse.core.run import Events
from inhouse.dataset import read_rows
from inhouse.train import planning
from inhouse.train.memory import Machine, Split
from inhouse.train.planning import Plan
from inhouse.train.rates import RateFound, RatePoint
from inhouse.train.search import Searched, TrialLine

PROJECT = """
name: planned
seed: 3
model: {{base: {base}, licence: Apache-2.0}}
data:
  sources: [{{name: news, from: news.csv, licence: Apache-2.0, allowed_use: any}}]
  split: {{test: 0.25}}
  shape: {{use: classification, labels: [money, grain], prompt: "Desk?\\n{{text}}"}}
train:
  method: {{use: lora, r: 4, lora_alpha: 8}}
  learning_rate: 2.0e-3
  per_device_train_batch_size: 4
  precision: fp32
"""
TEXTS = {"money": ["the bank cut its rate", "net profit rose"], "grain": ["wheat exports fell", "the harvest was poor"]}


@pytest.fixture(scope="module")
def project(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    news = [f"{text} in week {week},{desk}" for desk, texts in TEXTS.items() for text in texts for week in range(8)]
    (folder / "news.csv").write_text("text,label\n" + "\n".join(news) + "\n", encoding="utf-8")
    (folder / "inhouse.yaml").write_text(PROJECT.format(base=tiny_llama), encoding="utf-8")
    return folder


def asked(kind: type[TrainingRequest], project: Path, **more: Any) -> Any:
    return kind(workspace=project / ".inhouse", offline=True, project=project, **more)


@pytest.fixture(scope="module")
def plan(project: Path) -> Plan:
    return training.plan_train(asked(TrainingRequest, project), Events())


def test_plan_makes_the_dataset_and_trains_nothing(plan: Plan, project: Path) -> None:
    found = {json.loads(p.read_text())["node"]: p.parent for p in (project / ".inhouse").glob("objects/*/record.json")}
    assert set(found) == {"base", "dataset"}
    assert plan.samples == sum(1 for _ in read_rows(found["dataset"], "train"))
    assert plan.steps == -(-plan.samples // 4)
    assert 0 < plan.trainable_share < 1
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


def test_overrides_change_the_plan(project: Path, plan: Plan) -> None:
    more = training.plan_train(asked(TrainingRequest, project, overrides=("train.method.r=8",)), Events())
    assert more.trainable == 2 * plan.trainable
    assert more.split.gradients == 2 * plan.split.gradients


def test_rate_and_search_of_a_project(project: Path) -> None:
    found = training.find_rate(asked(FindRateRequest, project, steps=20), Events())
    assert len(found.points) <= 20
    assert found.suggestion > 0
    searched = training.search_rates(asked(SearchRequest, project, minutes=5, trials=1), Events())
    assert searched.trials[0].learning_rate == 2e-3
    assert (project / ".inhouse" / "search" / "trials.db").exists()


@pytest.mark.parametrize(
    ("overrides", "section", "code"),
    [((), 2, "train.no_section"), (("train=null",), 1, "plan.no_step")],
)
def test_training_that_is_not_there_is_told(project: Path, overrides: tuple[str, ...], section: int, code: str) -> None:
    with pytest.raises(UserError) as error:
        training.plan_train(asked(TrainingRequest, project, overrides=overrides, section=section), Events())
    assert error.value.code == code
    assert str(error.value)


def test_base_that_is_too_large_is_refused_for_every_command(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = Machine(device="cpu", memory=100, available=100, cores=1)
    monkeypatch.setattr(planning, "machine", lambda: small)
    commands: list[tuple[Callable[..., Any], Any]] = [
        (training.plan_train, asked(TrainingRequest, project)),
        (training.find_rate, asked(FindRateRequest, project)),
        (training.search_rates, asked(SearchRequest, project, minutes=1)),
    ]
    for command, request in commands:
        with pytest.raises(UserError, match="inhouse models list"):
            command(request, Events())


def shown(view: str, result: Any, capsys: pytest.CaptureFixture[str], language: str = "en") -> str:
    use_language(language)
    capsys.readouterr()
    views.show(view, result, as_json=False)
    return capsys.readouterr().out


def test_plan_is_shown_with_its_split_and_where_it_comes_from(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    said = shown("train_plan", plan, capsys)
    assert f"{plan.trainable:,}" in said
    for part in ("weights", "gradients", "optimiser", "activations", "logits", "peak", "predicted"):
        assert part in said
    assert "measured just now" in said
    assert "train.lint" not in said
    assert f"{plan.steps} optimiser steps" in said  # a remark: below 20 little is learned
    assert "预测" in shown("train_plan", plan, capsys, "zh")
    dropped = plan.model_copy(update={"too_long": 3, "run_s": 7300.0, "gradient_checkpointing": True})
    said = shown("train_plan", dropped, capsys)
    assert "3 more are too long" in said
    assert "2 h 1 min" in said
    short = shown("train_plan", plan.model_copy(update={"run_s": 61.0}), capsys)
    assert "61 s" in short


def test_measured_memory_is_shown_beside_what_was_foretold(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    split = Split(process=GB, weights=GB, gradients=1, optimizer=2, activations=3, logits=4, peak=2 * GB + 10)
    facts = {"memory": {"measured": split.model_dump(), "foretold": split.model_dump()}}
    train_views.trained(facts, Console())
    said = capsys.readouterr().out
    assert "predicted" in said
    assert "measured" in said
    assert said.count("2.00 GB") == 2
    train_views.trained({"memory": None}, Console())
    assert not capsys.readouterr().out


GB = 10**9


def test_rate_is_shown_as_a_chart(capsys: pytest.CaptureFixture[str]) -> None:
    points = tuple(RatePoint(learning_rate=1e-5 * 1.2**n, loss=3, smooth=3 - n / 50) for n in range(50))
    found = RateFound(points=points, steepest=1e-3, tenth=2e-3, suggestion=1e-3, usual=(1e-4, 2e-3), blown_up=True)
    said = shown("rate", found, capsys)
    assert "train.learning_rate=0.001" in said
    bars = [line.count("█") for line in said.splitlines() if "█" in line]
    assert len(bars) == train_views.CHART_LINES
    assert bars == sorted(bars, reverse=True)
    assert bars[0] == train_views.CHART_WIDTH
    flat = found.model_copy(update={"points": points[:1] * 9, "blown_up": False})
    assert "建议" in shown("rate", flat, capsys, "zh")


def test_search_is_shown_as_a_table_with_what_to_copy(capsys: pytest.CaptureFixture[str]) -> None:
    best = TrialLine(number=2, learning_rate=1e-3, r=16, loss=0.5, state="done", seconds=9.0)
    worst = TrialLine(number=1, learning_rate=1e-1, r=None, loss=None, state="diverged", seconds=2.0)
    found = Searched(
        trials=(best, worst), overrides=("train.learning_rate=0.001", "train.method.r=16"), steps=10, whole=50, rows=8,
        resumed=1,
    )  # fmt: skip
    said = shown("searched", found, capsys)
    assert "train.learning_rate=0.001 train.method.r=16" in said
    assert "diverged" in said
    assert "1 trials were there from an earlier search" in said


@pytest.mark.parametrize("command", ["plan", "find-rate", "search"])
def test_commands_have_help_in_both_languages(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for language in ("en", "zh"):
        assert main(["train", command, "--help", "--lang", language]) == 0
        assert "--section" in capsys.readouterr().out
