"""Comparisons of trainings with every objective: each is measured row by row, or refused with its reason."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "train"))

from tiny_training import context, train_params

from inhouse.api.ablation import AblationRequest
from inhouse.api.arms import open_comparison
from inhouse.api.compare_figures import quality
from inhouse.core.errors import UserError
from inhouse.core.protocols import Input
from inhouse.core.rows import Message, Row
from inhouse.core.run import Events
from inhouse.dataset import write_rows
from inhouse.train.compare import Arm, Measured, measure_arm
from inhouse.train.rivals import with_method

TRAIN, HELD = 12, 6


def row(number: int, answer: str | None, **more: Any) -> Row:
    turns = [Message(role="user", content=f"how much wheat in week {number}?")]
    if answer is not None:
        turns.append(Message(role="assistant", content=answer))
    return Row(id=f"{number:016x}", messages=turns, source="s", offset=number, **more)


def rows_for(use: str, count: int) -> list[Row]:
    if use == "kto":
        return [row(n, f"{n} tons" if n % 3 else "no idea", desirable=bool(n % 3)) for n in range(count)]
    if use in ("dpo", "orpo"):
        return [
            row(n, f"{n} tons", rejected=[row(n, None).messages[0], Message(role="assistant", content="no idea")])
            for n in range(count)
        ]
    if use == "pretrain":
        return [
            Row(id=f"{n:016x}", messages=[Message(role="assistant", content=f"wheat rose in week {n} " * 4)],
                source="s", offset=n)
            for n in range(count)
        ]  # fmt: skip
    return [row(n, ("grain", "money")[n % 2], label=("grain", "money")[n % 2]) for n in range(count)]


def given(base: Path, folder: Path, rows: Sequence[Row]) -> dict[str, Input]:
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    write_rows(data, "train", rows[:TRAIN])
    write_rows(data, "valid", rows[TRAIN:])
    inputs = dict(context(base, data, folder).inputs)
    return inputs | {"teacher": inputs["base"]}


def measured(inputs: dict[str, Input], method: Any = "lora", **more: Any) -> Measured:
    objective, steps = more.pop("objective"), more.pop("steps", 2)
    params = train_params(objective=objective, learning_rate=0.005, **more)
    params = with_method(params, method)
    return measure_arm(
        Arm(name=method, params=params.model_dump(mode="json"), seed=3, steps=steps, looks=1), inputs, Events()
    )


OBJECTIVES: dict[str, dict[str, Any]] = {
    "dpo": {"use": "dpo"},
    "ipo": {"use": "dpo", "loss_type": "ipo"},
    "orpo": {"use": "orpo"},
    "kto": {"use": "kto"},
    "pretrain": {"use": "pretrain"},
    "distill": {"use": "distill", "teacher": {"base": "teacher"}},
    "classify": {"use": "classify"},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_rows_of_an_objective_come_to_the_loss_that_the_trainer_measures(
    name: str, tiny_llama: Path, tmp_path: Path
) -> None:
    objective = OBJECTIVES[name]
    use = objective["use"]
    found = measured(given(tiny_llama, tmp_path, rows_for(use, TRAIN + HELD)), objective=objective)
    assert (found.ended, found.steps, len(found.rows)) == ("done", 2, HELD)
    pooled = sum(one.loss for one in found.rows) / sum(one.count for one in found.rows)
    assert pooled == pytest.approx(found.looks[-1].loss, rel=1e-4)
    whole = use in ("dpo", "orpo", "kto", "classify")
    assert {one.right is None for one in found.rows} == {not whole}
    assert (quality([found.rows]).accuracy is not None) == whole


@pytest.mark.parametrize("use", ["dpo", "kto"])
def test_base_of_preferences_has_the_loss_of_a_coin_and_no_accuracy(use: str, tiny_llama: Path, tmp_path: Path) -> None:
    found = measured(given(tiny_llama, tmp_path, rows_for(use, TRAIN + HELD)), objective={"use": use}, steps=0)
    mean = sum(one.loss for one in found.rows) / len(found.rows)
    assert mean == pytest.approx(math.log(2) if use == "dpo" else 0.5, abs=2e-3)  # sigmoid(0) on both
    assert {one.right for one in found.rows} == {None}
    assert quality([found.rows]).accuracy is None


def test_preferences_longer_than_the_model_reads_are_left_out_of_the_figures(tiny_llama: Path, tmp_path: Path) -> None:
    rows = rows_for("dpo", TRAIN + HELD)
    rows[-1] = row(99, "tons " * 600, rejected=[row(99, None).messages[0], Message(role="assistant", content="no")])
    found = measured(given(tiny_llama, tmp_path, rows), objective={"use": "dpo"}, max_length=4096)
    assert {one.id for one in found.rows} == {one.id for one in rows[TRAIN:-1]}


def test_prompt_method_with_preferences_is_measured_behind_its_virtual_tokens(tiny_llama: Path, tmp_path: Path) -> None:
    inputs = given(tiny_llama, tmp_path, rows_for("kto", TRAIN + HELD))
    found = measured(inputs, "prompt", objective={"use": "kto"})
    assert sum(one.loss for one in found.rows) / HELD == pytest.approx(found.looks[-1].loss, rel=1e-4)


def test_rows_that_the_teacher_answered_keep_their_names(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inhouse.core.protocols import Generation
    from inhouse.engines import transformers

    class Teacher:
        """Ends every answer but those to the first rows."""

        ends: frozenset[int] = frozenset()

        def __init__(self, source: Any) -> None:
            self.tokenizer = transformers.load_tokenizer(source)

        def generate(self, prompts: Sequence[Any], *_: Any) -> list[Generation]:
            ends = ["length", "length", *["stop"] * len(prompts)]
            return [Generation("tons", 1, end, 0.0, 0.0) for end in ends[: len(prompts)]]

        def close(self) -> None:
            pass

    monkeypatch.setattr(transformers, "open_model", Teacher)
    rows = rows_for("sft", TRAIN + HELD)
    objective = {"use": "distill", "signal": "text", "teacher": {"base": "teacher"}}
    found = measured(given(tiny_llama, tmp_path, rows), objective=objective)
    assert [one.id for one in found.rows] == [one.id for one in rows[TRAIN + 2 :]]


def test_methods_of_one_range_are_trained_with_one_rate() -> None:
    own = train_params(objective={"use": "dpo"}, learning_rate=1e-3)  # above the range of preferences
    assert with_method(own, "qlora").learning_rate == own.learning_rate
    assert with_method(own, "full").learning_rate < own.learning_rate


PROJECT = """
name: compared
seed: 3
model: {{base: {base}, licence: Apache-2.0}}
data:
  sources: [{{name: news, from: news.jsonl, licence: Apache-2.0, allowed_use: any}}]
  split: {{test: 0.25}}
  shape: {shape}
train: {{method: {{use: lora, r: 4}}, objective: {objective}, precision: fp32}}
"""


def opened(base: Path, folder: Path, found: Sequence[dict[str, Any]], shape: str, objective: str) -> Any:
    (folder / "news.jsonl").write_text("\n".join(map(json.dumps, found)), encoding="utf-8")
    (folder / "inhouse.yaml").write_text(PROJECT.format(base=base, shape=shape, objective=objective), encoding="utf-8")
    asked = AblationRequest(workspace=folder / "ws", offline=True, project=folder, slice=("label=grain",))
    return open_comparison(asked, Events(), "bench train")


def test_classifier_of_a_part_knows_the_labels_of_all_rows(tiny_llama: Path, tmp_path: Path) -> None:
    desks = ("grain", "money", "ship")
    found = [{"text": f"news of week {n}", "label": desks[n % 3]} for n in range(48)]
    shape = "{use: classification, labels: [grain, money, ship], prompt: '{text}'}"
    bench = opened(tiny_llama, tmp_path, found, shape, "{use: classify}")
    assert bench.training.params.objective.model_dump()["labels"] == desks


def test_classifier_of_rows_without_labels_is_refused_before_any_training(tiny_llama: Path, tmp_path: Path) -> None:
    found = [{"messages": [{"role": "user", "content": f"q {n}"}, {"role": "assistant", "content": "always so"}]}
             for n in range(48)]  # fmt: skip
    with pytest.raises(UserError) as error:
        opened(tiny_llama, tmp_path, found, "messages", "{use: classify}")
    assert error.value.code == "train.one_label"
