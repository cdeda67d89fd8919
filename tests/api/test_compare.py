"""Comparisons of trainings: what is measured of one, what is made of several, and how a terminal shows it."""

from __future__ import annotations

import gc
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score

from inhouse.api import ablation as ablations
from inhouse.api import compare, learning_curve
from inhouse.api.ablation import Ablation, AblationRequest
from inhouse.api.arms import ArmRequest, Comparison, Outcome, Refused, Turn, measure_one, open_comparison
from inhouse.api.claims import claims
from inhouse.api.compare import BenchTrain, BenchTrainRequest
from inhouse.api.compare_figures import apart, quality
from inhouse.api.learning_curve import CurveRequest, LearningCurve
from inhouse.api.training import TrainingRequest
from inhouse.cli import compare_views, views
from inhouse.cli.main import main
from inhouse.core.errors import Cancelled, UserError
from inhouse.core.messages import use_language
from inhouse.core.rows import Message, Row
from inhouse.core.run import Events
from inhouse.dataset import read_rows
from inhouse.train.compare import Arm, Look, Measured, measure_arm, reached
from inhouse.train.curve import Point, fit_power, nested_part
from inhouse.train.lint import rate_range
from inhouse.train.memory import Split
from inhouse.train.params import TrainParams
from inhouse.train.rivals import checkpointed, with_method
from inhouse.train.row_quality import RowFound, answers_of

PROJECT = """
name: compared
seed: 3
model: {{base: {base}, licence: Apache-2.0}}
data:
  sources: [{{name: news, from: news.csv, licence: Apache-2.0, allowed_use: any}}]
  split: {{test: 0.25}}
  shape: {{use: classification, labels: [money, grain], prompt: "Desk?\\n{{text}}"}}
train:
  method: {{use: lora, r: 4, lora_alpha: 8}}
  learning_rate: 1.0e-3
  num_train_epochs: 2
  per_device_train_batch_size: 4
  precision: fp32
"""
TEXTS = {"money": ["the bank cut its rate", "net profit rose"], "grain": ["wheat exports fell", "the harvest was poor"]}


@pytest.fixture(autouse=True)
def _heap_is_not_searched() -> Iterator[None]:
    """Looking for garbage in all that the libraries loaded takes longer than a tiny training."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def project(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    news = [f"{text} in week {week},{desk}" for desk, texts in TEXTS.items() for text in texts for week in range(12)]
    (folder / "news.csv").write_text("text,label\n" + "\n".join(news) + "\n", encoding="utf-8")
    (folder / "inhouse.yaml").write_text(PROJECT.format(base=tiny_llama), encoding="utf-8")
    return folder


def asked(kind: type[TrainingRequest], project: Path, **more: Any) -> Any:
    return kind(workspace=project / ".inhouse", offline=True, project=project, **more)


class InProcess:
    """Runs what a child process would, here; and counts."""

    def __init__(self) -> None:
        self.ran: list[Arm] = []
        self.rows: list[set[str]] = []

    def __call__(self, request: ArmRequest, watch: Callable[[dict[str, Any]], None]) -> Measured:
        self.ran.append(request.arm)
        dataset = request.inputs["dataset"].path
        self.rows.append({row.id for row in read_rows(dataset, "train")})
        watch({"event": "stage.progress", "done": 1, "total": 2, "unit": "steps", "step": request.arm.name})
        watch({"event": "note", "code": "train.too_long", "facts": {"dropped": 1, "rows": 2, "max_length": 3}})
        return measure_one(request, Events())


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> InProcess:
    found = InProcess()
    monkeypatch.setattr(Comparison, "run", staticmethod(found))
    opened = open_comparison

    def here(request: Any, events: Events, command: str) -> Comparison:
        return replace(opened(request, events, command), run=found)

    for module in (compare, learning_curve, ablations):
        monkeypatch.setattr(module, "open_comparison", here)
    return found


# One training


@pytest.fixture(scope="module")
def comparison(project: Path) -> Comparison:
    return open_comparison(asked(BenchTrainRequest, project, rows=8), Events(), "bench train")


def given(bench: Comparison, folder: Path, rows: Sequence[Row]) -> dict[str, Any]:
    from inhouse.dataset import write_rows

    folder.mkdir(exist_ok=True)
    write_rows(folder, "train", rows)
    write_rows(folder, "valid", bench.held)
    inputs = dict(bench.training.inputs)
    inputs["dataset"] = replace(inputs["dataset"], path=folder)
    return inputs


def arm(bench: Comparison, **more: Any) -> Arm:
    params = bench.training.params.model_copy(update=more.pop("params", {}))
    return Arm(**{"name": "lora", "params": params.model_dump(mode="json"), "seed": 3, **more})


def test_rows_held_back_are_never_learned_nor_of_the_test_part(comparison: Comparison) -> None:
    dataset = comparison.training.inputs["dataset"].path
    test = {row.id for row in read_rows(dataset, "test")}
    learned, held = {row.id for row in comparison.train}, {row.id for row in comparison.held}
    assert held
    assert not learned & held
    assert not (learned | held) & test
    assert comparison.about.part == "train"


def test_base_without_steps_has_the_losses_and_guesses_of_plain_transformers(
    comparison: Comparison, tmp_path: Path, tiny_llama: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    inputs = given(comparison, tmp_path / "data", comparison.train)
    found = measure_arm(arm(comparison, steps=0), inputs, Events())
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_llama), AutoTokenizer.from_pretrained(tiny_llama)
    assert (found.steps, found.split, found.train_s, found.looks) == (0, None, 0, ())
    assert {row.id for row in found.rows} == {row.id for row in comparison.held}
    for one in found.rows:
        row = next(row for row in comparison.held if row.id == one.id)
        asked_ids = tokenizer.apply_chat_template(
            [m.as_dict() for m in row.prompt], add_generation_prompt=True, return_dict=False
        )
        likely = {}
        for label in TEXTS:
            answer = tokenizer(f"{label}<|im_end|>", add_special_tokens=False).input_ids
            ids = torch.tensor([asked_ids + answer])
            with torch.no_grad():
                logits = model(ids).logits[0, len(asked_ids) - 1 : -1].log_softmax(-1)
            likely[label] = sum(float(logits[place, token]) for place, token in enumerate(answer))
        assert one.loss == pytest.approx(-likely[str(row.label)], abs=1e-4)
        assert one.guess == max(likely, key=likely.__getitem__)
        assert one.label == row.label


@pytest.fixture(scope="module")
def trained(comparison: Comparison, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    folder = tmp_path_factory.mktemp("trained") / "data"
    return measure_arm(arm(comparison, steps=6, looks=3), given(comparison, folder, comparison.train), Events())


def test_training_is_measured(trained: Measured, comparison: Comparison, tiny_llama: Path) -> None:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(tiny_llama)
    h, kv, inner = config.hidden_size, config.num_key_value_heads * config.head_dim, config.intermediate_size
    places = [(h, h), (h, kv), (h, kv), (h, h), (h, inner), (h, inner), (inner, h)]
    assert trained.trainable == config.num_hidden_layers * sum(4 * (a + b) for a, b in places)
    assert (trained.ended, trained.steps, trained.planned) == ("done", 6, 6)
    assert trained.examples == 24
    assert trained.tokens_per_s is not None
    assert trained.tokens_per_s == pytest.approx(trained.tokens / trained.train_s, rel=3)
    assert [look.step for look in trained.looks] == [0, 2, 4, 6]
    assert trained.looks[0].train_s == 0
    assert trained.looks[-1].train_s == pytest.approx(trained.train_s, abs=0.01)
    assert trained.split is not None
    parts = trained.split.model_dump()
    assert sum(size for name, size in parts.items() if name != "peak") == parts["peak"]
    assert parts["gradients"] == 4 * trained.trainable
    assert parts["optimizer"] == 8 * trained.trainable


def test_tokens_are_those_of_the_samples_without_padding(comparison: Comparison, tmp_path: Path) -> None:
    from inhouse.train.setup import prepare

    inputs = given(comparison, tmp_path / "data", comparison.train)
    one = arm(comparison, params={"num_train_epochs": 1.0})
    found = measure_arm(one.model_copy(update={"quality": False}), inputs, Events())
    ready = prepare(one.settings, inputs, 3, Events())
    assert found.tokens == sum(len(sample.ids) for sample in ready.texts.samples.kept)
    assert found.rows == ()
    assert found.looks == ()


def test_prompt_tuning_counts_no_virtual_tokens_and_changes_the_answers(
    comparison: Comparison, trained: Measured, tmp_path: Path
) -> None:
    params = with_method(comparison.training.params, "prompt")
    inputs = given(comparison, tmp_path / "data", comparison.train)
    one = Arm(name="prompt", params=params.model_dump(mode="json"), seed=3, steps=6, looks=1)
    found = measure_arm(one, inputs, Events())
    assert found.tokens == trained.tokens
    assert found.trainable == 10 * 32
    pooled = sum(row.loss for row in found.rows) / sum(row.count for row in found.rows)
    assert pooled == pytest.approx(found.looks[-1].loss, rel=1e-4)


def test_training_without_labels_is_measured_by_its_own_loss(comparison: Comparison, tmp_path: Path) -> None:
    params = {"objective": {"use": "pretrain"}}
    made = TrainParams.model_validate(comparison.training.params.model_dump(mode="json") | params)
    inputs = given(comparison, tmp_path / "data", comparison.train)
    one = Arm(name="lora", params=made.model_dump(mode="json"), seed=3, steps=2, looks=1)
    found = measure_arm(one, inputs, Events())
    assert len(found.rows) == len(comparison.held)
    assert all(row.label is None for row in found.rows)
    pooled = sum(row.loss for row in found.rows) / sum(row.count for row in found.rows)
    assert pooled == pytest.approx(found.looks[-1].loss, rel=1e-4)


def test_training_ends_when_its_time_is_over(comparison: Comparison, tmp_path: Path) -> None:
    inputs = given(comparison, tmp_path / "data", comparison.train)
    found = measure_arm(arm(comparison, steps=9, most_s=1e-6, looks=2), inputs, Events())
    assert (found.ended, found.steps, found.planned) == ("out_of_time", 1, 9)
    assert found.looks[-1].step == 1


def test_steps_fit_into_the_seconds_given(comparison: Comparison, tmp_path: Path) -> None:
    inputs = given(comparison, tmp_path / "data", comparison.train)
    once = {"num_train_epochs": 1.0}
    short = measure_arm(arm(comparison, params=once, fit_s=1e-6, quality=False), inputs, Events())
    whole = measure_arm(arm(comparison, params=once, fit_s=1e6, quality=False), inputs, Events())
    assert short.planned == 4
    assert whole.planned == math.ceil(len(comparison.train) / 4)


def test_training_that_diverges_says_so_and_gives_no_figures(comparison: Comparison, tmp_path: Path) -> None:
    inputs = given(comparison, tmp_path / "data", comparison.train)
    wild = {"learning_rate": 1e30, "warmup_ratio": 0.0, "max_grad_norm": 1e9}
    found = measure_arm(arm(comparison, steps=6, params=wild), inputs, Events())
    assert found.ended == "diverged"
    assert found.rows == ()


def test_seconds_to_a_loss_are_read_off_straight_lines() -> None:
    looks = [Look(step=0, train_s=0, loss=4), Look(step=1, train_s=10, loss=2), Look(step=2, train_s=20, loss=1)]
    assert reached(looks, 3) == 5
    assert reached(looks, 1) == 20
    assert reached(looks, 5) == 0
    assert reached(looks, 0.5) is None


# Settings of the methods


def test_other_methods_take_what_they_share_and_a_rate_of_their_own() -> None:
    own = TrainParams.model_validate({"method": {"use": "lora", "r": 4, "lora_alpha": 12}, "learning_rate": 2e-3})
    rounded, whole = with_method(own, "qlora"), with_method(own, "full")
    assert rounded.method.model_dump()["r"] == 4
    assert rounded.method.model_dump()["lora_alpha"] == 12
    assert rounded.learning_rate == own.learning_rate
    assert whole.learning_rate == pytest.approx(rate_range(whole)[1])
    assert with_method(own, "lora") == own
    low = with_method(own.model_copy(update={"learning_rate": 1e-9}), "full")
    assert low.learning_rate == pytest.approx(rate_range(low)[0])
    assert checkpointed(own, True).gradient_checkpointing is True


# Learning curves


def plain_row(number: int, **more: Any) -> Row:
    turns = [Message(role="user", content=f"q{number}"), Message(role="assistant", content="a")]
    return Row(
        id=hashlib.sha256(str(number).encode()).hexdigest()[:16], messages=turns, source="s", offset=number, **more
    )


def test_parts_are_nested_random_and_in_order() -> None:
    rows = [plain_row(number) for number in range(50)]
    small, large, other = nested_part(rows, 10, 1), nested_part(rows, 30, 1), nested_part(rows, 10, 2)
    assert (len(small), len(large)) == (10, 30)
    assert {row.id for row in small} < {row.id for row in large}
    assert {row.id for row in small} != {row.id for row in other}
    assert [row.offset for row in large] == sorted(row.offset for row in large)


def points_of(law: Callable[[float], float], sizes: Sequence[int], half: float = 0.02) -> list[Point]:
    return [Point(rows=n, loss=law(n), low=law(n) - half, high=law(n) + half) for n in sizes]


def test_power_law_is_found_where_there_is_one() -> None:
    three = fit_power(points_of(lambda n: 5 * n**-0.4, (100, 300, 1000)))
    assert three is not None
    assert (three.scale, three.fall, three.floor) == pytest.approx((5, 0.4, 0), rel=1e-6)
    assert three.forecast[0][0] == 2000
    assert three.forecast[0][1] == pytest.approx(5 * 2000**-0.4)
    floored = fit_power(points_of(lambda n: 0.3 + 8 * n**-0.6, (50, 150, 500, 1500), half=0.01))
    assert floored is not None
    assert floored.at(3000) == pytest.approx(0.3 + 8 * 3000**-0.6, rel=0.05)


@pytest.mark.parametrize(
    "points",
    [
        points_of(lambda n: 5 * n**-0.4, (100, 300)),
        points_of(lambda n: 1.0, (100, 300, 1000)),
        points_of(lambda n: 2.0 if n == 300 else 1.0, (100, 300, 1000), half=0.01),
        points_of(lambda n: 0.001 * n, (100, 300, 1000), half=0.01),
        points_of(lambda n: 0.0, (100, 300, 1000)),
    ],
    ids=["two sizes", "flat", "a peak", "rising", "nothing left"],
)
def test_power_law_is_refused_where_there_is_none(points: list[Point]) -> None:
    assert fit_power(points) is None


# Figures


def found_rows(losses: Sequence[float], right: Sequence[bool] | None = None) -> list[RowFound]:
    labels = [("x", "y")[place % 2] for place in range(len(losses))]
    rows = []
    for place, loss in enumerate(losses):
        label = labels[place] if right is not None else None
        other = "y" if label == "x" else "x"
        guess = None if right is None else label if right[place] else other
        rows.append(RowFound(id=str(place), loss=loss, count=place + 1, label=label, guess=guess))
    return rows


def test_quality_is_the_mean_per_token_with_accuracy_and_f1() -> None:
    right = [True, False, True, True, False, True, True, True]
    rows = found_rows([1.0, 2, 3, 4, 5, 6, 7, 8], right)
    found = quality([rows])
    assert found.loss is not None
    assert found.loss.value == 1.0
    assert found.accuracy is not None
    assert found.accuracy.value == 0.75
    said, gold = [row.guess for row in rows], [row.label for row in rows]
    assert found.macro_f1 is not None
    assert found.macro_f1.value == pytest.approx(f1_score(gold, said, average="macro"), abs=1e-6)
    assert quality([]).loss is None
    assert quality([found_rows([1.0, 1])]).accuracy is None


def test_seeds_are_averaged_and_differences_paired() -> None:
    generator = np.random.default_rng(0)
    hard = generator.uniform(0, 50, 200)
    one = [found_rows(list(hard + 1 + shift)) for shift in (0.0, 1.0)]
    two = [found_rows(list(hard))]
    found = apart(one, two).loss
    assert found is not None
    tokens = 200 * 201 / 2
    assert found.value == pytest.approx(200 * 1.5 / tokens, abs=1e-5)
    assert found.low is not None
    assert found.high is not None
    alone = quality(two).loss
    assert alone is not None
    assert alone.low is not None
    assert alone.high is not None
    assert found.high - found.low < (alone.high - alone.low) / 5  # what is hard for both cancels out
    assert apart(one, [two[0][:150]]).loss.n == 150  # type: ignore[union-attr]
    assert apart(one, [[]]).loss is None


def test_answers_are_taken_from_rows_where_each_label_has_one() -> None:
    turns = [Message(role="user", content="q"), Message(role="assistant", content="Grain")]
    grain, money = plain_row(1, label="grain"), plain_row(2, label="money")
    assert answers_of([grain, money]) == {"grain": "a", "money": "a"}
    assert answers_of([grain]) == {}
    assert answers_of([grain, grain.model_copy(update={"messages": turns}), money]) == {}


def made_up(**facts: Any) -> Measured:
    split = Split(
        process=10, weights=20, gradients=5, optimizer=10, activations=50, logits=5, peak=facts.pop("peak", 100)
    )
    plain = {
        "ended": "done", "trainable": 1, "total": 100, "precision": "float32", "steps": 1, "planned": 1, "examples": 1,
        "tokens": 1, "train_s": 1.0, "tokens_per_s": 10.0, "tokens_per_cpu_s": 5.0, "split": split,
        "looks": (), "rows": (),
    }  # fmt: skip
    return Measured.model_validate(plain | facts)


def test_claims_are_set_beside_what_was_measured() -> None:
    def looks(*ends: tuple[float, float]) -> tuple[Look, ...]:
        return tuple(Look(step=n, train_s=s, loss=loss) for n, (s, loss) in enumerate(ends))

    lora = made_up(looks=looks((0, 4), (10, 1)), tokens_per_s=30.0, peak=50)
    full = made_up(looks=looks((0, 4), (20, 2), (40, 1)), peak=200)
    slow = made_up(peak=40, tokens_per_s=20.0)
    found = {one.about: one for one in claims({"lora": lora, "full": full, "lora_checkpointed": slow})}
    here = {name: one.here for name, one in found.items()}
    assert here == pytest.approx(
        {"memory": 0.75, "training_memory": 0, "speed": 3, "share": 0.01, "hours": 0.75, "checkpointing": 0.2,
         "checkpointing_time": 1.5}
    )  # fmt: skip
    assert (found["memory"].claimed, found["speed"].claimed, found["hours"].claimed) == (0.92, 3, 0.8)
    worse = full.model_copy(update={"looks": looks((0, 4), (40, 2.5)), "tokens_per_s": None})
    found = {one.about: one for one in claims({"lora": lora, "full": worse})}
    assert found["hours"].here == pytest.approx(1 - 5 / 40)  # to the loss that full tuning ended with
    assert found["speed"].here is None
    found = {one.about: one for one in claims({"lora": lora, "full": made_up()})}
    assert found["hours"].here is None
    assert claims({"full": full}) == ()
    assert [one.about for one in claims({"lora": made_up()})] == ["share"]


# Whole commands


@pytest.fixture
def bench(project: Path, runner: InProcess) -> tuple[BenchTrain, InProcess]:
    request = asked(BenchTrainRequest, project, steps=4, rows=8, method=("full",))
    return compare.bench_train(request, Events(project / "events.jsonl")), runner


def test_bench_measures_methods_on_the_same_batches_and_keeps_what_it_measured(
    bench: tuple[BenchTrain, InProcess], project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, runner = bench
    lines = {line.name: line for line in found.lines}
    assert list(lines) == ["base", "lora", "lora_checkpointed", "full"]
    assert {lines[name].tokens for name in ("lora", "full", "lora_checkpointed")} == {lines["lora"].tokens}
    assert lines["full"].trainable == lines["full"].total
    assert lines["lora"].reached_s == pytest.approx(lines["lora"].train_s, abs=0.02)
    assert lines["base"].split is None
    assert lines["base"].quality.loss is not None
    assert lines["base"].quality.accuracy is not None
    assert lines["lora"].versus_lora.loss is None
    assert lines["full"].versus_lora.loss is not None
    assert [arm.name for arm in runner.ran] == ["lora", "base", "lora_checkpointed", "full"]
    again = compare.bench_train(asked(BenchTrainRequest, project, steps=4, rows=8, method=("full",)), Events())
    assert len(runner.ran) == 4
    assert again.kept == 4
    assert again.lines == found.lines
    assert BenchTrain.model_validate_json(found.model_dump_json()) == found
    said = shown("bench_train", again, capsys)
    for word in ("full", "claimed", "92%", "activations", "never on the test part", "--again"):
        assert word in said
    assert "激活重算" in shown("bench_train", again, capsys, "zh")
    noted = [json.loads(line) for line in (project / "events.jsonl").read_text().splitlines()]
    assert sum(event.get("code") == "train.too_long" for event in noted) == 1  # once, though each training noted it


def shown(view: str, result: Any, capsys: pytest.CaptureFixture[str], language: str = "en") -> str:
    use_language(language)
    capsys.readouterr()
    views.show(view, result, as_json=False)
    return capsys.readouterr().out


def test_refused_and_cut_off_methods_say_why(bench: tuple[BenchTrain, InProcess], capsys: Any) -> None:
    found, _ = bench
    lora, full = found.lines[1], found.lines[-1]
    cut = full.model_copy(update={"ended": "out_of_time", "steps": 2, "reached_s": None})
    refused = lora.model_copy(update={"name": "qlora", "refused": "no bitsandbytes", "split": None})
    said = shown("bench_train", found.model_copy(update={"lines": (lora, cut, refused)}), capsys)
    assert "QLoRA was not run: no bitsandbytes" in said
    assert "cut off after 2 of 4 steps" in said
    assert "not reached" in said


def test_learning_curve_grows_on_nested_rows_from_the_base_on(
    project: Path, runner: InProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    request = asked(CurveRequest, project, sizes="8,500", rows=8, seeds=2)
    found = learning_curve.learning_curve(request, Events(project / "curve.jsonl"))
    whole = found.held.train
    assert [point.rows for point in found.points] == [0, 8, whole]
    assert [point.steps for point in found.points] == [0, 4, 2 * math.ceil(whole / 4)]
    assert all(len(point.by_seed) == (2 if point.rows else 1) for point in found.points)
    by = {(arm.name, arm.seed): rows for arm, rows in zip(runner.ran, runner.rows, strict=True)}
    for seed in (3, 4):
        assert by["n=8", seed] < by[f"n={whole}", seed]
    assert by["n=8", 3] != by["n=8", 4]
    assert "compare.sizes_cut" in (project / "curve.jsonl").read_text()
    assert LearningCurve.model_validate_json(found.model_dump_json()) == found
    said = shown("learning_curve", found, capsys)
    assert said.count("●") == 3
    assert "fewer than three sizes" in said
    assert "少于三个规模" in shown("learning_curve", found, capsys, "zh")
    law = fit_power(points_of(lambda n: 5 * n**-0.4, (100, 300, 1000)))
    assert "no power law" in shown("learning_curve", found.model_copy(update={"points": found.points * 2}), capsys)
    assert "2,000 rows" in shown("learning_curve", found.model_copy(update={"power": law, "epochs": None}), capsys)


def test_sizes_that_name_no_rows_are_told(project: Path) -> None:
    with pytest.raises(UserError) as error:
        learning_curve.learning_curve(asked(CurveRequest, project, sizes="0"), Events())
    assert error.value.code == "compare.no_sizes"


def test_ablation_leaves_out_the_slice_and_pairs_the_differences(
    project: Path, runner: InProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    request = asked(AblationRequest, project, slice=("label=grain",), rows=8, control=True)
    found = ablations.ablation(request, Events())
    whole, without, random = runner.rows
    line = found.lines[0]
    assert without < whole
    assert len(whole) - len(without) == line.rows
    assert len(random) == len(without)
    assert line.difference.loss is not None
    assert found.whole.loss is not None
    assert line.without.loss is not None
    assert line.difference.loss.value == pytest.approx(found.whole.loss.value - line.without.loss.value, abs=2e-6)
    assert line.inside.loss is not None
    assert line.outside.loss is not None
    assert (line.inside.loss.n or 0) + (line.outside.loss.n or 0) == line.difference.loss.n
    assert line.same_sign == 1
    assert line.random.loss is not None
    assert Ablation.model_validate_json(found.model_dump_json()) == found
    said = shown("ablation", found.model_copy(update={"seeds": 3}), capsys)
    assert "without label=grain" in said
    assert "random rows" in said
    assert "1 of 3 seeds" in said
    assert "不含 label=grain" in shown("ablation", found, capsys, "zh")


@pytest.mark.parametrize(
    ("slice", "code"),
    [("desk=grain", "compare.slice_unknown"), ("label", "compare.slice_unknown"), ("label=oil", "compare.slice_empty"),
     ("source=news", "compare.slice_empty"), ("parent=*", "compare.slice_empty")],
)  # fmt: skip
def test_slice_that_cannot_be_left_out_is_told(slice: str, code: str, project: Path) -> None:
    with pytest.raises(UserError) as error:
        ablations.ablation(asked(AblationRequest, project, slice=(slice,)), Events())
    assert error.value.code == code
    assert slice in str(error.value)


def test_bounds_are_shown_as_finely_as_they_need() -> None:
    from inhouse.core.gate import Figure

    assert compare_views.interval(Figure(value=0.4123, low=0.381, high=0.449)) == "0.412 [0.38, 0.45]"
    assert (
        compare_views.interval(Figure(value=-0.0123, low=-0.02, high=0.0041), signed=True) == "-0.012 [-0.020, +0.004]"
    )
    assert compare_views.interval(Figure(value=0.78, low=0.7, high=0.861), percent=True) == "78 % [70, 86]"
    assert compare_views.interval(Figure(value=0.5)) == "0.500"
    assert compare_views.interval(None) == "–"


def test_verdict_follows_the_interval(capsys: pytest.CaptureFixture[str]) -> None:
    from inhouse.api.ablation import SliceLine
    from inhouse.api.arms import Held
    from inhouse.api.compare_figures import Quality
    from inhouse.core.gate import Figure

    def said(low: float, high: float, n: int = 20) -> str:
        loss = Figure(value=(low + high) / 2, low=low, high=high, n=n)
        line = SliceLine(slice="source=a[b]", rows=3, difference=Quality(loss=loss))
        refused = SliceLine(slice="label=c", rows=3, refused="the time was over")
        held = Held(train=9, rows=9, part="valid")
        found = Ablation(whole=Quality(loss=loss), lines=(line, refused), seeds=1, epochs=1, held=held, kept=0)
        return shown("ablation", found, capsys)

    assert "source=a[b]: these rows help" in said(-0.3, -0.1)
    assert "do harm" in said(0.1, 0.3)
    assert "over 20 held-out rows" in said(-0.3, -0.1)
    assert "no difference beyond chance" in said(-0.1, 0.3)
    few = said(-0.3, -0.1, n=19)
    assert "nothing is claimed from 19 held-out rows; 20 are needed" in few and "help" not in few
    assert "label=c was not run: the time was over" in said(0.1, 0.3)


def test_part_of_few_rows_has_no_interval_and_accuracy_beyond_chance_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from inhouse.api.ablation import SliceLine
    from inhouse.api.arms import Held
    from inhouse.api.compare_figures import Quality
    from inhouse.core.gate import Figure

    few, many = Figure(value=-1.2, low=-1.4, high=-1.0, n=2), Figure(value=-0.1, low=-0.4, high=0.2, n=27)
    right = Figure(value=-0.28, low=-0.52, high=-0.03, n=29)
    line = SliceLine(
        slice="label=a", rows=3, difference=Quality(loss=many, accuracy=right), inside=Quality(loss=few),
        outside=Quality(loss=many),
    )  # fmt: skip
    held = Held(train=9, rows=9, part="valid")
    found = Ablation(whole=Quality(loss=many), lines=(line,), seeds=1, epochs=None, held=held, kept=0)
    said = shown("ablation", found, capsys)
    assert "on 2 held-out rows of the slice: -1.200 (too few rows for an interval)" in said
    assert "on the other 27 held-out rows: -0.100 [-0.40, +0.20]" in said
    assert "the accuracy differs with these rows: -28 pp [-52, -3]" in said
    assert "Equal steps" in said


@pytest.mark.parametrize("rows", [6, 20])
def test_interval_of_few_rows_is_as_wide_as_that_of_students_t(rows: int) -> None:
    from scipy.stats import ttest_1samp  # type: ignore[import-untyped, unused-ignore]

    generator, ratios, holds = np.random.default_rng(1), [], 0
    for _ in range(60):
        losses = generator.normal(5, 1, rows)
        one, two = (
            [RowFound(id=str(number), loss=float(loss), count=1) for number, loss in enumerate(found)]
            for found in (losses, np.full(rows, 5.0))
        )
        found = apart([one], [two]).loss
        assert found is not None and found.low is not None and found.high is not None and found.n == rows
        wanted = ttest_1samp(losses - 5.0, 0).confidence_interval(0.95)
        ratios.append((found.high - found.low) / (wanted.high - wanted.low))
        holds += found.low <= 0 <= found.high
    assert np.mean(ratios) == pytest.approx(1, abs=0.1)
    assert holds >= 54  # of 60; 57 are to be expected


def test_difference_on_one_row_has_no_interval() -> None:
    one, two = ([RowFound(id="1", loss=loss, count=1)] for loss in (1.0, 2.0))
    found = apart([one], [two]).loss
    assert found is not None and (found.value, found.low, found.high) == (-1.0, None, None)


# What may go wrong


def fails(error: Exception) -> Callable[..., Measured]:
    def run(request: ArmRequest, watch: Any) -> Measured:
        raise error

    return run


def test_training_that_is_refused_gives_its_reason_and_leaves_nothing(comparison: Comparison) -> None:
    one = replace(comparison, run=fails(UserError("train.no_rows")))
    one.folder.mkdir(exist_ok=True)
    before = set(one.folder.iterdir())
    outcome = one.measure(arm(comparison, steps=1), comparison.train, Turn(1, 1, 0))
    assert outcome.refused is not None
    assert outcome.refused.code == "train.no_rows"
    assert set(one.folder.iterdir()) == before
    with pytest.raises(Cancelled):
        replace(comparison, run=fails(Cancelled())).measure(arm(comparison), comparison.train, Turn(1, 1, 0))


def test_no_training_begins_that_would_not_end_in_time(comparison: Comparison) -> None:
    late = replace(comparison, deadline=0.0)
    outcome = late.measure(arm(comparison, steps=1, most_s=1.0), comparison.train, Turn(1, 1, 0))
    assert outcome.refused is not None
    assert "10 minutes" in outcome.refused.message
    slow = replace(comparison, spent=1e6, learned=1)
    assert slow.measure(arm(comparison), comparison.train, Turn(1, 1, 0)).refused is not None


@pytest.mark.parametrize("command", [compare.bench_train, learning_curve.learning_curve, ablations.ablation])
def test_command_whose_reference_is_refused_ends_with_the_reason(
    command: Callable[..., Any], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Comparison, *_: Any) -> Outcome:
        return Outcome(None, Refused(code="x", message="the base is too large"))

    monkeypatch.setattr(Comparison, "measure", refuse)
    kinds: dict[Any, type[TrainingRequest]] = {
        compare.bench_train: BenchTrainRequest, learning_curve.learning_curve: CurveRequest,
    }  # fmt: skip
    request = asked(
        kinds.get(command, AblationRequest),
        project,
        **({"slice": ("label=grain",)} if command is ablations.ablation else {}),
    )
    with pytest.raises(UserError, match="the base is too large"):
        command(request, Events())


@pytest.mark.parametrize(
    ("command", "kind", "named"),
    [
        (compare.bench_train, BenchTrainRequest, "bench train"),
        (learning_curve.learning_curve, CurveRequest, "bench learning-curve"),
        (ablations.ablation, AblationRequest, "bench ablation"),
    ],
)
def test_private_rows_are_compared_by_nothing_that_reads_them_without_noise(
    project: Path, command: Callable[..., Any], kind: type[TrainingRequest], named: str
) -> None:
    more = {"slice": ("label=grain",)} if kind is AblationRequest else {}
    with pytest.raises(UserError) as error:
        command(asked(kind, project, overrides=("train.privacy={epsilon: 8}",), **more), Events())
    assert error.value.code == "privacy.no_trials" and f"`inhouse {named}`" in str(error.value)


def test_too_few_rows_are_told(project: Path) -> None:
    request = asked(BenchTrainRequest, project, overrides=("train.eval_share=0.01", "train.eval_steps=1"))
    with pytest.raises(UserError) as error:
        open_comparison(request, Events(), "bench train")
    assert error.value.code == "compare.few_rows"


def test_child_process_measures_its_own_peak(comparison: Comparison) -> None:
    ballast = np.ones(300_000_000 // 8)  # of this process: no part of the child's peak
    outcome = comparison.measure(arm(comparison, steps=2, quality=False), comparison.train, Turn(1, 1, 0))
    assert outcome.measured is not None
    assert outcome.measured.split is not None
    from inhouse.core.run import peak_memory

    assert outcome.measured.split.peak < peak_memory()
    assert ballast.sum() > 0


@pytest.mark.parametrize("command", ["train", "learning-curve", "ablation"])
def test_commands_have_help_in_both_languages(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for language in ("en", "zh"):
        assert main(["bench", command, "--help", "--lang", language]) == 0
        said = capsys.readouterr().out
        assert "--minutes" in said
        assert ("budget in minutes" if language == "en" else "时间预算") in said
