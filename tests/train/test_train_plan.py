"""What is foretold of a training, what is refused, and how a rate is found: on the tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from math import log
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from tiny_training import context, rows, train_params, write_dataset

from inhouse.cli import train_views
from inhouse.core.errors import Cancelled, UserError
from inhouse.core.run import Events
from inhouse.core.settings import child_environment
from inhouse.dataset import write_rows
from inhouse.train import memory, planning, saving, search
from inhouse.train import settle as settling
from inhouse.train.arguments import checkpoints
from inhouse.train.batching import backing_off, resized, sizes_of
from inhouse.train.learning import Learning
from inhouse.train.lint import remarks
from inhouse.train.memory import Held, Machine, Peak, held_by, logit_bytes, measured_split, tensor_bytes
from inhouse.train.params import TrainParams
from inhouse.train.planning import Forecast, choose, plan_training, refusal, refuse_base
from inhouse.train.probe import Calibration, Probed, Reading, Shape, calibrate, probe_samples, shape_of
from inhouse.train.rates import find_rate, read_curve
from inhouse.train.saving import saving_seconds
from inhouse.train.search import Budget
from inhouse.train.settle import settle
from inhouse.train.setup import Place, Prepared, job_for, prepare
from inhouse.train.tokens import Sample

GB = 10**9
SHAPE = Shape(tokens=100, predicted=10)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture
def ready(tiny_llama: Path, dataset: Path, tmp_path: Path) -> Prepared:
    return prepare(train_params(), context(tiny_llama, dataset, tmp_path).inputs, 7, Events())


def measured(tokens: int, forward: int, peak: int, seconds: float, predicted: int = 0) -> Reading:
    shape = Shape(tokens=tokens, predicted=predicted)
    return Reading(shape=shape, forward_bytes=forward, peak_bytes=peak, seconds=seconds)


def forecast(ready: Prepared, per_token: int, held: Held | None = None, size: int = 4) -> Forecast:
    """A model that takes `per_token` bytes of activations a token, on steps of four samples."""
    small, large = (measured(n, n * per_token, n * per_token, 1.0) for n in (10, 20))
    calibration = Calibration(small=small, large=large, update_s=0.0, place_bytes=0)
    stands = held or Held(process=GB, weights=GB, gradients=0, optimizer=0)
    samples = ready.texts.samples.kept
    steps = [samples[at : at + size] for at in range(0, len(samples), size)]
    return Forecast(ready, Probed(stands, calibration), steps)


def here(available: float) -> Machine:
    return Machine(device="cpu", memory=64 * GB, available=int(available), cores=1)


# Memory


def test_held_bytes_are_the_sums_of_the_tensors_and_tied_weights_count_once(ready: Prepared) -> None:
    model = ready.loaded.model
    config = model.config
    held = held_by(model)
    embedding = config.vocab_size * 32  # tied to the output layer
    layer = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64 + 2 * 32
    rank = 8 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))
    rotary = 4  # inverse frequencies of heads of 8
    frequencies = sum(b.numel() for name, b in model.named_buffers() if "inv_freq" in name)
    assert frequencies in (rotary, 2 * rotary)
    assert held.weights == 4 * (embedding + 2 * layer + 32 + 2 * rank + frequencies)
    assert held.gradients == 4 * 2 * rank
    assert held.optimizer == 2 * held.gradients
    assert held.process > 50e6


def test_parts_of_a_split_add_up_to_its_peak() -> None:
    held = Held(process=5, weights=7, gradients=3, optimizer=6)
    for extra, logits in ((0, 0), (2, 9), (50, 20), (4, 20)):
        split = held.split(extra, logits).model_dump()
        assert split["peak"] == 5 + 7 + 6 + extra
        assert split.pop("peak") == sum(split.values())
        assert min(split.values()) >= 0


def test_optimisers_bytes_are_those_of_adamw() -> None:
    import torch

    model = torch.nn.Linear(100, 7)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3, 100)).sum().backward()
    optimizer.step()
    state = [value for entry in optimizer.state.values() for name, value in entry.items() if name != "step"]
    assert held_by(model).optimizer == sum(value.nbytes for value in state) == 2 * 4 * 707


def test_measured_split_gives_the_rest_of_the_peak_to_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "peak_memory", lambda: 40_000)
    split = measured_split(Held(process=10_000, weights=4000, gradients=4000, optimizer=8000), 2000)
    assert (split.peak, split.logits) == (40_000, 2000)
    assert split.activations == 40_000 - 10_000 - 4000 - 8000 - 4000 - 2000


def test_views_of_one_memory_count_once() -> None:
    import torch

    whole = torch.zeros(100)
    assert tensor_bytes([whole, whole[:10], whole.view(10, 10), torch.zeros(5)]) == 400 + 20


@pytest.mark.parametrize("watched", [False, True])
def test_peak_sees_memory_that_is_given_back(watched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    import torch

    if watched:  # a system whose high-water mark cannot be reset
        monkeypatch.setattr(memory, "peak_memory", lambda: 1 << 60)
    with Peak() as peak:
        taken = torch.ones(30_000_000)
        until = time.monotonic() + 5
        while watched and peak.above() < 100e6 and time.monotonic() < until:
            pass
        time.sleep(0.02)
        del taken
        assert 115e6 < peak.above() < 180e6


def test_container_limit_bounds_what_is_available(tmp_path: Path) -> None:
    assert memory._container(tmp_path) == (None, 0)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("7\n")
    assert memory._container(tmp_path) == (None, 0)
    (tmp_path / "memory.max").write_text("900\n")
    assert memory._container(tmp_path) == (900, 7)


def test_machine_offers_this_process_its_own_memory_and_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    own = psutil.Process().memory_info().rss
    monkeypatch.setattr(memory, "_container", lambda: (own + 500, own + 100))
    found = memory.machine()
    assert found.memory == own + 500
    assert abs(found.available - (own + 400)) < 50e6


# Measured steps


def test_calibration_foretells_along_its_two_readings() -> None:
    found = Calibration(
        small=measured(100, 1000, 4000, 1.5), large=measured(300, 3000, 5000, 3.5), update_s=1.0, place_bytes=0
    )
    assert found.seconds(Shape(tokens=500, predicted=0)) == pytest.approx(5.5)  # 0.5 + 0.01 a token
    assert found.extra(Shape(tokens=300, predicted=0)) == 5000
    assert found.extra(Shape(tokens=200, predicted=0)) == 4500  # between the peaks
    assert found.extra(Shape(tokens=500, predicted=0)) == 7000  # 10 a token, as the forward pass grew


def test_calibration_counts_scores_of_the_vocabulary_by_themselves() -> None:
    small, large = measured(100, 1000 + 50, 2000, 1.0, 5), measured(200, 2000 + 300, 3000, 2.0, 30)
    found = Calibration(small=small, large=large, update_s=0, place_bytes=10)
    assert found.extra(Shape(tokens=300, predicted=130)) == 3000 + 100 * 10 + 100 * 10
    assert logit_bytes(100, 2) == 100 * 2 * 2  # the scores and their gradient


def test_calibration_of_one_batch_goes_through_the_origin() -> None:
    only = measured(100, 1000, 1500, 2.0)
    found = Calibration(small=only, large=only, update_s=0, place_bytes=0)
    assert found.seconds(Shape(tokens=50, predicted=0)) == pytest.approx(1.0)
    assert found.extra(Shape(tokens=200, predicted=0)) == 2500


def test_probe_takes_samples_up_to_its_two_sizes() -> None:
    samples = [Sample((1,) * n, (True,) * n) for n in (40, 50, 60, 70, 80) * 4]
    small, large = probe_samples(samples)
    assert 128 <= sum(len(s.ids) for s in small) < 128 + 80
    assert 512 <= sum(len(s.ids) for s in large) < 512 + 80
    assert probe_samples(samples[:1]) == (samples[:1], samples[:1])


def test_calibration_changes_no_weight_no_gradient_and_no_draw(ready: Prepared) -> None:
    import torch

    model = ready.loaded.model.eval()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    torch.manual_seed(3)
    drawn = torch.rand(3)
    torch.manual_seed(3)
    probed = calibrate(ready, ready.texts.samples.kept, 1 << 60)
    assert torch.equal(torch.rand(3), drawn)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())
    assert not model.training
    small, large = probed.calibration.small, probed.calibration.large
    assert small.shape.tokens < large.shape.tokens
    assert small.seconds > 0 and small.first_s > 0 and probed.calibration.save_s > 0
    assert large.peak_bytes >= large.forward_bytes >= 0


def test_calibration_leaves_out_a_batch_that_would_not_fit(ready: Prepared) -> None:
    probed = calibrate(ready, ready.texts.samples.kept, 0)
    assert probed.calibration.large == probed.calibration.small


def test_memory_that_must_be_got_from_the_system_is_paid_for_once() -> None:
    small, large = measured(100, 1000, 1000, 1.0), measured(200, 2000, 2000, 2.0)
    small, large = (one.model_copy(update={"first_s": one.seconds + s}) for one, s in ((small, 0.5), (large, 1.0)))
    found = Calibration(small=small, large=large, update_s=0, place_bytes=0)
    assert found.seconds(Shape(tokens=400, predicted=0)) == pytest.approx(4.0)
    assert found.growth_s(Shape(tokens=400, predicted=0)) == pytest.approx(2.0)  # 4,000 bytes, 2,000 a second
    noisy = found.model_copy(update={"small": small.model_copy(update={"first_s": 0.1})})
    assert noisy.growth_s(Shape(tokens=400, predicted=0)) == pytest.approx(4000 / 3000)
    nothing = measured(10, 0, 0, 1.0)
    assert Calibration(small=nothing, large=nothing, update_s=0, place_bytes=0).growth_s(SHAPE) == 0


@pytest.mark.parametrize(("steps", "settings", "wanted"), [(3, {}, 1), (30, {"save_steps": 10}, 3), (31, {}, 4)])
def test_checkpoints_are_counted_with_the_one_at_the_end(steps: int, settings: dict[str, Any], wanted: int) -> None:
    assert checkpoints(TrainParams.model_validate(settings), steps) == wanted


def test_checkpoint_is_timed_by_a_part_that_stands_for_the_rest(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    ticks = iter(range(100))
    monkeypatch.setattr(memory, "CLOCK", lambda: float(next(ticks)))  # all that is timed takes one second
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    written: list[int] = []
    real = saving._write

    def write(folder: Path, part: Any) -> None:
        real(folder, part)
        assert folder.parent == tmp_path
        written.extend(path.stat().st_size for path in folder.iterdir())

    monkeypatch.setattr(saving, "_write", write)
    whole = sum(p.nbytes for p in model.parameters())
    assert saving_seconds(model, tmp_path) == pytest.approx(1.0)
    assert 3 * whole < sum(written) < 3 * whole + 50_000  # weights and two moments
    monkeypatch.setattr(saving, "PART_BYTES", 4096)
    written.clear()
    assert saving_seconds(model, tmp_path) == pytest.approx(whole / 4096)
    assert 3 * 4096 < sum(written) < 3 * 4096 + 10_000
    assert saving_seconds(model.requires_grad_(False), tmp_path) == pytest.approx(whole / 3 / 4096)  # no moments
    assert list(tmp_path.iterdir()) == []


def test_checkpoint_of_adapters_holds_them_alone(ready: Prepared, tiny_llama: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    trained = [p for p in ready.loaded.model.parameters() if p.requires_grad]
    kept = saving.saved_weights(ready.loaded.model)
    assert len(kept) == len(trained) and all(torch.equal(one, p) for one, p in zip(kept, trained, strict=True))
    whole = AutoModelForCausalLM.from_pretrained(tiny_llama)
    assert sum(w.numel() for w in saving.saved_weights(whole)) == whole.num_parameters()
    assert saving_seconds(torch.nn.Module()) == 0


# Plans


def test_plan_counts_what_peft_counts_and_the_steps_that_training_takes(
    tiny_llama: Path, dataset: Path, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    work = context(tiny_llama, dataset, tmp_path)
    params = train_params(max_length=60, gradient_accumulation_steps=2, learning_rate=0.5)
    ready = prepare(params, work.inputs, 7, work.events)
    plan = plan_training(ready, params, 7)
    stock = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_llama), LoraConfig(r=8, target_modules="all-linear")
    )
    trainable, total = stock.get_nb_trainable_parameters()
    assert (plan.trainable, plan.parameters) == (trainable, total)
    assert plan.samples + plan.too_long == 24
    assert plan.steps == 3 * -(-plan.samples // 8)
    assert (plan.batch_size, plan.parts, plan.gradient_checkpointing) == (4, 2, False)
    assert plan.split.peak <= plan.machine.available
    assert (plan.steps, plan.checkpoints) == (6, 2)  # one every third
    assert plan.run_s == pytest.approx(6 * plan.step_s + 2 * plan.checkpoint_s)
    assert plan.peak >= plan.split.peak
    assert [remark.code for remark in plan.remarks] == ["train.lint.learning_rate", "train.lint.few_steps"]


def test_plan_counts_the_tokens_that_batches_hold(ready: Prepared) -> None:
    params = train_params(num_train_epochs=1)
    plan = plan_training(ready, params, 7)
    batches = planning.cut(planning.steps_of(ready, params, 7), 4)
    assert plan.tokens == sum(shape_of(batch, ready).tokens for batch in batches)


def test_plan_of_pairs_counts_pairs(tiny_llama: Path, tmp_path: Path) -> None:
    worse = [row.messages[-1].model_copy(update={"content": "poor"}) for row in rows(7)]
    pairs = [row.model_copy(update={"rejected": [one]}) for row, one in zip(rows(7), worse, strict=True)]
    write_rows(tmp_path, "train", pairs)
    params = train_params(objective="dpo", num_train_epochs=1)
    ready = prepare(params, context(tiny_llama, tmp_path, tmp_path / "work").inputs, 7, Events())
    plan = plan_training(ready, params, 7)
    assert (plan.samples, plan.steps) == (7, 2)


def test_plan_of_a_private_run_is_held_to_its_settings(ready: Prepared) -> None:
    private = train_params(privacy={"noise_multiplier": 1.0})
    plan = plan_training(ready, private.model_copy(update={"gradient_checkpointing": "auto"}), 7)
    assert plan.gradient_checkpointing is False
    with pytest.raises(UserError) as refused:
        plan_training(ready, private.model_copy(update={"eval_steps": 2}), 7)
    assert refused.value.code.startswith("privacy.")


def test_plan_of_a_private_run_tells_its_bound_and_refuses_what_training_would(
    ready: Prepared, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = plan_training(ready, train_params(privacy={"epsilon": 3, "delta": 0.001}), 7)
    assert plan.privacy is not None and (plan.privacy.epsilon, plan.privacy.delta) == (3, 0.001)
    assert plan.privacy.steps == plan.steps
    train_views.plan(plan, Console(width=120))
    assert "epsilon 3 · delta 1.0e-03" in capsys.readouterr().out
    for given, code in (({"epsilon": 3, "delta": 0.5}, "delta"), ({"noise_multiplier": 1e-200}, "no_bound")):
        with pytest.raises(UserError) as refused:
            plan_training(ready, train_params(privacy=given), 7)
        assert refused.value.code == f"privacy.{code}"


def test_trials_on_private_rows_are_refused(ready: Prepared, tmp_path: Path) -> None:
    private = train_params(privacy={"noise_multiplier": 1.0})
    with pytest.raises(UserError) as refused:
        find_rate(ready, private, 20, 7, Events())
    assert refused.value.code == "privacy.no_trials" and "find-rate" in str(refused.value)
    with pytest.raises(UserError) as refused:
        search.search(private, {}, Budget(1, 2, 7, tmp_path), Events())
    assert refused.value.code == "privacy.no_trials"


def test_batch_is_cut_only_where_it_may_be(ready: Prepared) -> None:
    found = forecast(ready, 10**7)
    needed = found.split(found.largest(4), False).peak
    asked = train_params(auto_find_batch_size=True, gradient_checkpointing=False)
    plain, _ = choose(found, asked, needed) or (None, None)
    assert plain is not None
    assert plain.per_device_train_batch_size == 4
    tight, split = choose(found, asked, needed - 1) or (None, None)
    assert tight is not None and split is not None
    assert (tight.per_device_train_batch_size, tight.gradient_accumulation_steps) == (2, 2)
    assert split.peak < needed
    assert choose(found, train_params(gradient_checkpointing=False), needed - 1) is None


def test_activations_are_computed_twice_only_where_nothing_else_fits(ready: Prepared) -> None:
    found = forecast(ready, 10**7)
    params = train_params(auto_find_batch_size=True)
    alone = found.split(found.largest(1), False).peak
    assert (choose(found, params, alone) or (params,))[0].gradient_checkpointing is False
    chosen, split = choose(found, params, alone - 1) or (None, None)
    assert chosen is not None and split is not None
    assert chosen.gradient_checkpointing is True
    assert chosen.per_device_train_batch_size > 1
    assert split.peak < alone


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, "train.per_device_train_batch_size=2 with train.gradient_accumulation_steps=2"),
        ({"gradient_checkpointing": False}, "train.gradient_checkpointing=true"),
        ({"gradient_checkpointing": False}, "train.max_length="),
    ],
)
def test_refusal_names_what_would_fit(ready: Prepared, settings: dict[str, Any], wanted: str) -> None:
    long = Sample((5,) * 200, (False,) * 100 + (True,) * 100)
    found = forecast(ready, 10**7)
    found = Forecast(ready, found.probed, [*found.steps, [long] * 4])
    ready.texts.samples.kept.append(long)
    by_two = found.split(found.largest(2), False).peak
    room = max(by_two, found.split(found.largest(4), True).peak)
    error = refusal(found, train_params(**settings), here((room + 1) / planning.SAFE))
    assert error.code == "train.does_not_fit"
    assert wanted in str(error)
    assert "activations" in str(error)


def test_refusal_says_when_no_change_of_settings_helps(ready: Prepared) -> None:
    error = refusal(forecast(ready, 10**7), train_params(), here(GB))
    assert "smaller base" in str(error)
    assert choose(forecast(ready, 10**7), train_params(), 0) is None


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_refusal_offers_a_method_that_holds_less(ready: Prepared, method: str) -> None:
    trained = ready.loaded.total if method == "lora" else 1000
    loaded = replace(ready.loaded, trainable=trained)
    held = Held(process=0, weights=GB, gradients=2 * GB, optimizer=4 * GB if method == "lora" else 0)
    found = forecast(replace(ready, loaded=loaded), 10, held)
    room = (GB if method == "lora" else GB // 2) + 2 * GB + 10**6
    assert f"train.method.use={method}" in str(refusal(found, train_params(), here(room / planning.SAFE)))


def test_plan_that_does_not_fit_is_refused(ready: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "machine", lambda: here(1000))
    with pytest.raises(UserError) as error:
        plan_training(ready, train_params(), 7)
    assert error.value.code == "train.does_not_fit"


@pytest.mark.parametrize(("method", "each"), [("lora", 4), ("full", 16)])
def test_base_too_large_is_refused_before_it_is_loaded(
    tiny_llama: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, each: int
) -> None:
    header = {"format": "safetensors", "main": ".", "name": "big", "parameters": GB - 1}
    base = context(tiny_llama, dataset, tmp_path, header).inputs["base"]
    params = TrainParams.model_validate({"method": method, "precision": "fp32"})
    for available, refused in ((each * GB + planning.PROCESS_BYTES, False), (each * GB, True)):
        monkeypatch.setattr(planning, "machine", lambda free=available: here(free))
        if refused:
            with pytest.raises(UserError, match="big"):
                refuse_base(base, params)
        else:
            refuse_base(base, params)


# Settling


def place(work: Path) -> Place:
    work.mkdir(exist_ok=True)
    return Place(work, Events(work / "events.jsonl"))


def test_run_with_plenty_of_memory_is_settled_without_measuring(ready: Prepared, tmp_path: Path) -> None:
    found = settle(ready, train_params(weight_decay=0.5), 7, place(tmp_path / "a"))
    assert found.foretold is None
    assert found.params.gradient_checkpointing is False
    assert found.params.per_device_train_batch_size == 4
    facts = found.facts()
    assert facts["measured"]["weights"] == found.held.weights
    assert facts["measured"]["peak"] > facts["measured"]["weights"]
    told = (tmp_path / "a" / "events.jsonl").read_text()
    assert "train.lint.weight_decay" in told


def test_run_that_is_tight_is_settled_by_the_plan_and_keeps_its_decision(
    ready: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = train_params(auto_find_batch_size=True)
    monkeypatch.setattr(settling, "ROOMY", 0.0)
    monkeypatch.setattr(
        planning, "choose", lambda forecast, asked, room: (resized(asked, 2), forecast.split(SHAPE, False))
    )
    first = settle(ready, params, 7, place(tmp_path / "b"))
    assert (first.params.per_device_train_batch_size, first.params.gradient_accumulation_steps) == (2, 2)
    assert first.foretold is not None
    monkeypatch.setattr(planning, "choose", lambda *_: pytest.fail("decided again"))
    again = settle(ready, params, 7, place(tmp_path / "b"))
    assert (again.params, again.foretold) == (first.params, first.foretold)
    monkeypatch.setattr(settling, "ROOMY", 1.0)
    other = settle(ready, train_params(), 7, place(tmp_path / "b"))  # other settings: decided anew
    assert other.params.per_device_train_batch_size == 4


def test_activations_computed_twice_give_the_same_weights(tiny_llama: Path, dataset: Path, tmp_path: Path) -> None:
    import torch

    from inhouse.train.loop import train

    ends = []
    for twice in (False, True):
        params = train_params(gradient_checkpointing=twice, max_steps=4, save_steps=9)
        ready = prepare(params, context(tiny_llama, dataset, tmp_path).inputs, 7, Events())
        train(ready.loaded.model, params, job_for(ready, params, 7, place(tmp_path / str(twice))))
        ends.append([p.detach() for p in ready.loaded.model.parameters() if p.requires_grad])
    for plain, computed_twice in zip(*ends, strict=True):
        torch.testing.assert_close(computed_twice, plain, atol=1e-6, rtol=1e-4)


# Settings


def test_auto_batch_is_eight_a_step_that_may_be_cut() -> None:
    params = TrainParams.model_validate({"per_device_train_batch_size": "auto"})
    assert (params.per_device_train_batch_size, params.auto_find_batch_size, params.step_size) == (8, True, 8)
    assert params == TrainParams.model_validate(params.model_dump())
    schema = TrainParams.model_json_schema()["properties"]["per_device_train_batch_size"]
    assert {"const": "auto"} in schema["anyOf"]


def test_halves_of_a_batch_keep_the_step_whole() -> None:
    params = train_params(per_device_train_batch_size=12, gradient_accumulation_steps=2)
    assert sizes_of(params) == [12, 6, 3, 2, 1]
    for size in sizes_of(params):
        found = resized(params, size)
        assert found.per_device_train_batch_size * found.gradient_accumulation_steps == 24


@pytest.mark.parametrize(
    ("settings", "codes"),
    [
        ({"method": "lora", "learning_rate": 2e-4}, set()),
        ({"method": "lora", "learning_rate": 2e-5}, {"learning_rate"}),
        ({"method": "full", "learning_rate": 2e-5}, set()),
        ({"method": "full", "learning_rate": 1e-3}, {"learning_rate"}),
        ({"method": "prompt", "learning_rate": 0.03}, set()),
        ({"method": {"use": "lora", "lora_dropout": 0.5}}, {"lora_dropout"}),
        ({"method": {"use": "lora", "r": 512, "lora_alpha": 512}}, {"r"}),
        ({"method": {"use": "lora", "r": 16, "lora_alpha": 256}}, {"scale"}),
        ({"method": {"use": "lora", "r": 16, "lora_alpha": 256, "use_rslora": True}}, set()),
        ({"weight_decay": 0.5}, {"weight_decay"}),
        ({"warmup_ratio": 0.5}, {"warmup_ratio"}),
        ({"num_train_epochs": 50}, {"num_train_epochs"}),
        ({"num_train_epochs": 50, "max_steps": 100}, set()),
    ],
)
def test_lint_names_settings_outside_of_known_ranges(settings: dict[str, Any], codes: set[str]) -> None:
    from inhouse.core.messages import text

    found = list(remarks(TrainParams.model_validate(settings), 100))
    assert {remark.code.removeprefix("train.lint.") for remark in found} == codes
    assert all(text(remark.code, **remark.facts) for remark in found)


@pytest.mark.parametrize(
    ("settings", "rate"),
    [
        ({}, 2e-4), ({"method": "qlora"}, 2e-4), ({"method": {"use": "full"}}, 2e-5), ({"method": "prompt"}, 1e-2),
        ({"objective": "dpo"}, 1e-5), ({"method": "full", "objective": {"use": "orpo"}}, 1e-6),
        ({"method": "full", "objective": "pretrain"}, 2e-5),
    ],
)  # fmt: skip
def test_learning_rate_that_is_not_given_is_one_that_the_method_is_known_to_take(
    settings: dict[str, Any], rate: float
) -> None:
    params = TrainParams.model_validate(settings)
    assert params.learning_rate == rate
    assert not [remark for remark in remarks(params, 100) if remark.code == "train.lint.learning_rate"]
    assert TrainParams.model_validate(settings | {"learning_rate": 3e-3}).learning_rate == 3e-3


def test_lint_says_that_preferences_are_what_wants_a_lower_rate() -> None:
    [remark] = remarks(TrainParams.model_validate({"method": "lora", "objective": "dpo", "learning_rate": 2e-4}))
    assert (remark.facts["method"], remark.facts["low"], remark.facts["high"]) == ("lora + dpo", "5e-06", "0.0001")


def test_lint_tells_of_early_stopping_that_cannot_act() -> None:
    settings = {"eval_steps": 50, "early_stopping_patience": 2}
    [remark] = remarks(TrainParams.model_validate(settings), 149)
    assert remark.code == "train.lint.early_stopping" and remark.facts["most"] == 49
    assert not list(remarks(TrainParams.model_validate(settings), 150))
    assert not list(remarks(TrainParams.model_validate(settings | {"eval_steps": 49}), 149))


def test_lint_tells_of_a_run_of_few_steps() -> None:
    assert [r.code for r in remarks(TrainParams(), 5)] == ["train.lint.few_steps"]
    assert not list(remarks(TrainParams()))


# Out of memory


def out_of_memory() -> list[Exception]:
    import torch

    words = "[enforce fail at alloc_cpu.cpp:125] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"
    return [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError(words), MemoryError()]


def trained(model: Path, dataset: Path, work: Path) -> tuple[list[Any], list[dict[str, Any]]]:
    """Weights after three steps of eight, read four at a time; and what was told of memory."""
    from inhouse.train.loop import train

    lora = {"use": "lora", "r": 8, "lora_dropout": 0.0}
    params = train_params(method=lora, gradient_accumulation_steps=2, max_steps=3, save_steps=99)
    here = context(model, dataset, work)
    ready = prepare(params, here.inputs, 7, Events())
    train(ready.loaded.model, params, job_for(ready, params, 7, Place(here.scratch, here.events)))
    lines = map(json.loads, (work / "events.jsonl").read_text().splitlines())
    told = [line["facts"] for line in lines if line.get("code") == "train.backed_off"]
    return [p.detach() for p in ready.loaded.model.parameters() if p.requires_grad], told


def narrow(monkeypatch: pytest.MonkeyPatch, most: int, error: Exception, passes: int = 0) -> None:
    """A model to which more than `most` samples at once are too much, but for the first `passes` times."""
    real, seen = Learning.loss, []

    def loss(self: Learning, model: Any, inputs: dict[str, Any]) -> Any:
        seen.append(len(inputs["batch"].own))
        if seen[-1] > most and len(seen) > passes:
            raise error
        return real(self, model, inputs)

    monkeypatch.setattr(Learning, "loss", loss)


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_memory_that_runs_out_halves_the_batch_and_training_stays_the_same(
    tiny_llama: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: int
) -> None:
    import torch

    whole, told = trained(tiny_llama, dataset, tmp_path / "whole")
    assert not told
    narrow(monkeypatch, 1, out_of_memory()[kind], passes=3)  # in the middle of the second step
    cut, told = trained(tiny_llama, dataset, tmp_path / "cut")
    assert [facts["size"] for facts in told] == [2, 1]
    for before, after in zip(whole, cut, strict=True):
        torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-3)


def test_one_conversation_too_large_is_told(
    tiny_llama: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow(monkeypatch, 0, MemoryError())
    with pytest.raises(UserError) as error:
        trained(tiny_llama, dataset, tmp_path)
    assert error.value.code == "train.out_of_memory"


def held_back_losses(model: Path, dataset: Path, work: Path) -> tuple[list[dict[str, float]], list[dict[str, Any]]]:
    """What two measurements on rows held back found; and what was told of memory while measuring."""
    from inhouse.train.loop import train

    lora = {"use": "lora", "r": 8, "lora_dropout": 0.0}
    params = train_params(method=lora, eval_steps=1, eval_share=0.4, max_steps=2, save_steps=99)
    here = context(model, dataset, work)
    ready = prepare(params, here.inputs, 7, Events())
    made = train(ready.loaded.model, params, job_for(ready, params, 7, Place(here.scratch, here.events)))
    lines = map(json.loads, (work / "events.jsonl").read_text().splitlines())
    return made.evaluations, [line["facts"] for line in lines if line.get("code") == "train.eval_backed_off"]


def test_memory_that_runs_out_while_measuring_reads_fewer_rows_and_finds_the_same(
    tiny_llama: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    whole, told = held_back_losses(tiny_llama, dataset, tmp_path / "whole")
    assert len(whole) == 2 and not told
    real, most = Learning.loss, [3]

    def loss(self: Learning, model: Any, inputs: dict[str, Any]) -> Any:
        if not torch.is_grad_enabled() and len(inputs["batch"].own) > most[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, model, inputs)

    monkeypatch.setattr(Learning, "loss", loss)
    cut, told = held_back_losses(tiny_llama, dataset, tmp_path / "cut")
    assert told == [{"before": 8, "size": 4}, {"before": 4, "size": 2}]
    for before, after in zip(whole, cut, strict=True):
        assert after == pytest.approx(before, rel=1e-5)
    most[0] = 0
    with pytest.raises(UserError) as error:
        held_back_losses(tiny_llama, dataset, tmp_path / "none")
    assert error.value.code == "train.out_of_memory"


def test_other_errors_are_not_taken_for_lack_of_memory() -> None:
    def fail(params: TrainParams) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        backing_off(fail, train_params(), Events())


# Learning rates


def curve(of: Callable[[float], float], count: int = 60) -> tuple[list[float], list[float]]:
    ramp = [1e-6 * 1e6 ** (step / (count - 1)) for step in range(count)]
    return ramp, [of(rate) for rate in ramp]


def test_curve_with_a_known_shape_gives_its_steepest_fall_and_a_tenth_of_its_lowest() -> None:
    from math import tanh

    # falls around 1e-4 (steepest there), lowest before 1e-2, then rises
    ramp, losses = curve(lambda rate: 3 - tanh(log(rate / 1e-4)) + 20 * rate)
    found = read_curve(ramp, losses, (1e-5, 1e-3))
    assert 1e-4 < found.steepest < 4e-4  # smoothing lags a little
    lowest = min(found.points, key=lambda point: point.smooth).learning_rate
    assert found.tenth == pytest.approx(lowest / 10)
    assert found.suggestion == pytest.approx(min(found.steepest, found.tenth), rel=0.05)
    assert not found.blown_up


@pytest.mark.parametrize("losses", [[1.0, 2.0, 3.0] * 10, [3.0, 2.0], []])
def test_curve_that_never_falls_or_is_short_is_refused(losses: list[float]) -> None:
    with pytest.raises(UserError) as error:
        read_curve(curve(log)[0], losses, (1, 2))
    assert error.value.code == "train.rate_flat"


def test_rate_is_found_with_weights_as_they_were(ready: Prepared, tmp_path: Path) -> None:
    import torch

    before = {name: p.detach().clone() for name, p in ready.loaded.model.named_parameters()}
    found = find_rate(ready, train_params(), 40, 7, Events())
    assert all(torch.equal(before[name], p) for name, p in ready.loaded.model.named_parameters())
    assert found.points[0].learning_rate == pytest.approx(1e-6)
    assert found.points[-1].smooth < float("inf")
    assert found.points[0].learning_rate < found.suggestion < found.points[-1].learning_rate
    assert min(point.smooth for point in found.points) < found.points[0].smooth


def test_ramp_ends_where_the_loss_blows_up() -> None:
    from inhouse.train.rates import blown_up, smoothed

    assert not blown_up(smoothed([3.0, 2.0, 1.0, 2.0]))
    assert blown_up(smoothed([1.0] * 5 + [100.0]))
    assert blown_up(smoothed([1.0, float("nan")]))
    assert smoothed([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])


# Search


@pytest.fixture
def budget(tmp_path: Path) -> Budget:
    return Budget(minutes=5, trials=3, seed=7, folder=tmp_path / "search")


SHORT = {"num_train_epochs": 1, "learning_rate": 2e-3}


def test_search_tries_the_projects_own_settings_first_and_goes_on_where_it_stopped(
    tiny_llama: Path, dataset: Path, tmp_path: Path, budget: Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = context(tiny_llama, dataset, tmp_path).inputs
    stops = Events(tmp_path / "job" / "events.jsonl")
    first = search.search(train_params(**SHORT), inputs, replace(budget, trials=2), Events())
    assert first.resumed == 0
    assert {line.number for line in first.trials} == {1, 2}
    own = next(line for line in first.trials if line.number == 1)
    assert (own.learning_rate, own.r) == (2e-3, 8)
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "cancel").touch()
    with pytest.raises(Cancelled):  # a trial that is cut off
        search.search(train_params(**SHORT), inputs, budget, stops)
    second = search.search(train_params(**SHORT), inputs, budget, Events())
    assert second.resumed == 2
    assert len(second.trials) == 3
    losses = [line.loss for line in second.trials if line.state == "done"]
    assert losses == sorted(losses)
    best = second.trials[0]
    assert second.overrides[0] == f"train.learning_rate={best.learning_rate:.2g}"
    assert second.overrides[1:] == (f"train.method.r={best.r}", f"train.method.lora_alpha={2 * best.r:g}")
    assert second.rows == 3  # a tenth of 24 rows
    assert second.steps <= second.whole


def test_projects_own_settings_are_tried_whatever_an_earlier_search_did(
    tiny_llama: Path, dataset: Path, tmp_path: Path, budget: Budget
) -> None:
    inputs = context(tiny_llama, dataset, tmp_path).inputs
    stops = Events(tmp_path / "job" / "events.jsonl")
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "cancel").touch()
    once = replace(budget, trials=1)
    with pytest.raises(Cancelled):  # ended within the first trial, as by kill -9
        search.search(train_params(**SHORT), inputs, once, stops)
    found = search.search(train_params(**SHORT), inputs, once, Events())
    assert [(line.learning_rate, line.r) for line in found.trials] == [(2e-3, 8)]
    other = search.search(train_params(**SHORT | {"learning_rate": 5e-4}), inputs, once, Events())
    assert other.resumed == 1 and {line.learning_rate for line in other.trials} == {2e-3, 5e-4}
    method = train_params(**SHORT).method.model_dump() | {"lora_alpha": 1}
    scaled = search.search(train_params(**SHORT, method=method), inputs, once, Events())
    assert scaled.resumed == 0  # what was measured with another lora_alpha says nothing of this one


def test_search_measures_on_the_valid_part_and_never_reads_test(
    tiny_llama: Path, tmp_path: Path, budget: Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inhouse.train import held_out, setup

    folder = write_dataset(tmp_path / "parts")
    write_rows(folder, "valid", rows(5))
    write_rows(folder, "test", rows(5))
    read: set[str] = set()
    for module in (held_out, setup):
        real = module.read_rows
        monkeypatch.setattr(module, "read_rows", lambda path, part, real=real: read.add(part) or real(path, part))
    inputs = context(tiny_llama, folder, tmp_path).inputs
    found = search.search(train_params(**SHORT), inputs, replace(budget, trials=1), Events())
    assert read == {"train", "valid"}
    assert found.rows == 5


def test_search_without_time_is_told(tiny_llama: Path, dataset: Path, tmp_path: Path, budget: Budget) -> None:
    inputs = context(tiny_llama, dataset, tmp_path).inputs
    with pytest.raises(UserError) as error:
        search.search(train_params(), inputs, replace(budget, minutes=1e-4), Events())
    assert error.value.code == "train.search_too_short"


class Ahead(Events):
    """Events that put the clock of a search past its end at the second step of a trial."""

    def __init__(self, trial: int, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.trial, self.ahead = f"trial {trial}", 0.0
        self.steps: list[tuple[str, float, float | None]] = []
        monkeypatch.setattr(search, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + self.ahead))

    def progress(self, done: float, total: float | None = None, unit: str = "", **facts: Any) -> None:
        super().progress(done, total, unit, **facts)
        step = facts.get("step", "")
        if step.startswith("trial"):
            self.steps.append((step, done, total))
        if step == self.trial and done == 2:
            self.ahead = 3600.0


def test_search_ends_the_trial_in_which_its_minutes_are_over_and_judges_those_before(
    tiny_llama: Path, dataset: Path, tmp_path: Path, budget: Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    import optuna

    inputs = context(tiny_llama, dataset, tmp_path).inputs
    told = Ahead(2, monkeypatch)
    found = search.search(train_params(**SHORT), inputs, budget, told)
    assert [(line.number, line.state) for line in found.trials] == [(1, "done")]  # of the three that were asked for
    trial, last, whole = told.steps[-1]
    assert (trial, last) == ("trial 2", 2) and whole is not None and whole > 2
    [study] = optuna.get_all_study_summaries(f"sqlite:///{budget.folder / 'trials.db'}")
    trials = optuna.load_study(study_name=study.study_name, storage=f"sqlite:///{budget.folder / 'trials.db'}").trials
    assert [(t.state.name, t.user_attrs["state"]) for t in trials] == [("COMPLETE", "done"), ("FAIL", "out_of_time")]
    told.ahead, told.trial = 0.0, ""
    again = search.search(train_params(**SHORT), inputs, replace(budget, trials=2), told)
    assert again.resumed == 1 and len(again.trials) == 2  # the trial that was cut off is no result


def test_search_whose_minutes_are_over_in_the_first_trial_says_so(
    tiny_llama: Path, dataset: Path, tmp_path: Path, budget: Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = context(tiny_llama, dataset, tmp_path).inputs
    told = Ahead(1, monkeypatch)
    with pytest.raises(UserError) as error:
        search.search(train_params(**SHORT), inputs, budget, told)
    assert error.value.code == "train.search_too_short"
    assert error.value.facts["minutes"] == "5" and error.value.facts["steps"] == told.steps[-1][2]
    assert told.steps[-1][:2] == ("trial 1", 2)


def test_trials_that_diverge_or_fall_behind_end_early_and_are_no_winners(
    tiny_llama: Path, dataset: Path, tmp_path: Path, budget: Budget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rates far apart: 1e-6 learns nothing, 1e30 gives no number."""
    import optuna

    begun = optuna.create_study

    def with_rates(**settings: Any) -> optuna.Study:
        study = begun(**settings)
        for rate in (2e-2, 1e-2, 1.5e-2, 1e-6, 1e30):
            study.enqueue_trial({"learning_rate": rate, "r": 8})
        return study

    monkeypatch.setattr(optuna, "create_study", with_rates)
    monkeypatch.setattr(search, "_rates", lambda params: (1e-7, 1e31))
    params = train_params(num_train_epochs=2, learning_rate=2e-2, max_grad_norm=1e30, warmup_ratio=0.0)
    inputs = context(tiny_llama, dataset, tmp_path).inputs
    found = search.search(params, inputs, Budget(5, 5, 7, budget.folder), Events())
    states = {line.learning_rate: line.state for line in found.trials}
    assert states[1e30] == "diverged"
    assert states[2e-2] == "done"
    assert states[1e-6] == "ended_early"
    assert found.trials[0].learning_rate > 1e-6
    assert next(line.loss for line in found.trials if line.learning_rate == 1e30) is None


SHAPES = """
import psutil, torch
torch.set_num_threads(1)
weight, seen = torch.randn(576, 576, dtype=torch.bfloat16), []
for rows in range(64, 464):
    torch.randn(rows, 576, dtype=torch.bfloat16) @ weight
    seen.append(psutil.Process().memory_info().rss)
print(seen[-1] - seen[64])
"""


def test_products_of_many_shapes_do_not_fill_a_jobs_memory() -> None:
    """With what the libraries keep by themselves the same 400 shapes took 246 MB."""
    environment = child_environment(offline=True)
    done = subprocess.run([sys.executable, "-c", SHAPES], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 30 << 20


def test_no_training_ends_before_its_learning_rate_has_risen() -> None:
    params = train_params()
    assert [params.warmup_steps(steps) for steps in (1, 2, 10, 11, 100)] == [0, 1, 1, 2, 10]
    assert [train_params(warmup_ratio=0.9).warmup_steps(steps) for steps in (1, 2, 3)] == [0, 1, 2]
