"""What training tells, what it measures while it runs, and what stops it."""

from __future__ import annotations

import io
import json
import threading
from math import ceil, inf, isclose, nan
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tiny_training import context, rows, train_params, write_dataset

from inhouse.cli.watch import Lines
from inhouse.cli.watch_training import sparkline
from inhouse.core.errors import MissingExtra, UserError
from inhouse.core.messages import use_language
from inhouse.core.protocols import Made
from inhouse.core.rows import Row
from inhouse.core.run import Events
from inhouse.dataset import write_rows
from inhouse.train.divergence import Divergence
from inhouse.train.held_out import hold_out, share_of
from inhouse.train.stall import Pulse, stall_watch
from inhouse.train.track import check_trackers, keep_curves
from inhouse.train.watch import Pace, WatchParams


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_dataset(tmp_path_factory.mktemp("dataset"), 16)
    write_rows(folder, "valid", rows(30)[24:])
    write_rows(folder, "test", rows(36)[30:])
    return folder


@pytest.fixture(scope="module")
def measured(tiny_llama: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Made, Path]:
    from inhouse.train.stage import run

    work = tmp_path_factory.mktemp("measured")
    # No fall of the loss is large enough: training ends at the fourth measurement, half way through.
    stop = {"early_stopping_patience": 3, "early_stopping_threshold": 100.0}
    parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "num_train_epochs": 8}
    settings = {"eval_steps": 4, "save_steps": 6, "report_to": ["tensorboard"], **stop, **parts}
    return run(train_params(learning_rate=0.05, **settings), context(tiny_llama, dataset, work)), work


def events_of(work: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (work / "events.jsonl").read_text().splitlines()]


def reference_loss(model: Any, folder: Path, part: list[Row]) -> tuple[float, float]:
    """Loss and accuracy per token of the answers, row by row, with labels as transformers takes them."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    total = count = right = 0.0
    for row in part:
        turns = [message.as_dict() for message in row.messages]
        start = tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True, return_dict=False)
        ids = tokenizer.apply_chat_template(turns, return_dict=False)
        ids = ids[: len(ids) - ids[::-1].index(tokenizer.eos_token_id)]
        labels = [-100] * len(start) + ids[len(start) :]
        learned = len(ids) - len(start)
        with torch.no_grad():
            made = model(torch.tensor([ids]), labels=torch.tensor([labels]))
        total, count = total + float(made.loss) * learned, count + learned
        right += int((made.logits[0, len(start) - 1 : -1].argmax(-1) == torch.tensor(ids[len(start) :])).sum())
    return total / count, right / count


def test_model_left_behind_has_the_loss_and_accuracy_of_its_best_measurement(measured: tuple[Made, Path]) -> None:
    from transformers import AutoModelForCausalLM

    facts, merged = measured[0].facts, measured[1] / "out" / "merged"
    found = {point["step"]: point for point in facts["evaluations"]}
    assert list(found) == [4, 8, 12, 16]
    best = min(found.values(), key=lambda point: point["loss"])
    assert facts["best_step"] == best["step"]
    loss, accuracy = reference_loss(AutoModelForCausalLM.from_pretrained(merged), merged, rows(30)[24:])
    assert best["loss"] == pytest.approx(loss, rel=1e-4)
    assert best["accuracy"] == pytest.approx(accuracy, abs=1e-6)


def test_events_tell_steps_measurements_saves_and_the_end(measured: tuple[Made, Path]) -> None:
    facts, events = measured[0].facts, events_of(measured[1])
    steps = [event for event in events if event["event"] == "train.step"]
    wanted = {"loss", "learning_rate", "grad_norm", "tokens_per_s", "memory_bytes", "eta_s"}
    assert all(wanted <= event.keys() for event in steps)
    assert [event["step"] for event in steps] == [point["step"] for point in facts["losses"]] == list(range(2, 17, 2))
    assert steps[0]["eta_s"] > 0 and steps[0]["tokens_per_s"] > 0
    told = [event for event in events if event["event"] == "train.evaluated"]
    assert [(event["step"], event["loss"]) for event in told] == [
        (point["step"], point["loss"]) for point in facts["evaluations"]
    ]
    lowest = inf
    for event in told:
        assert event["best"] == (event["loss"] < lowest)
        lowest = min(lowest, event["loss"])
    saved = [event["step"] for event in events if event["event"] == "train.saved"]
    assert set(saved) == {event["step"] for event in told if event["best"]} | {8, 16}  # save_steps 6, rounded up
    (end,) = [event for event in events if event["event"] == "train.ended"]
    assert (end["step"], end["best_step"], end["stopped_early"]) == (16, facts["best_step"], True)
    assert end["steps"] == 32 and facts["steps"] == 16 and facts["epochs"] == 4
    assert "train.stopped_early" in [event.get("code") for event in events]


def test_tensorboard_files_hold_the_curves_and_no_local_path(measured: tuple[Made, Path]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = measured[1] / "out" / "measured" / "tensorboard"
    board = EventAccumulator(str(folder)).Reload()
    losses = {point["step"]: point["loss"] for point in measured[0].facts["losses"]}
    assert {point.step: point.value for point in board.Scalars("train/loss")} == pytest.approx(losses)
    evaluated = {point["step"]: point["loss"] for point in measured[0].facts["evaluations"]}
    assert {point.step: point.value for point in board.Scalars("eval/loss")} == pytest.approx(evaluated)
    assert board.Tags()["tensors"] == []
    epochs = {point.step: point.value for point in board.Scalars("train/epoch")}
    assert epochs == pytest.approx({step: step / 4 for step in epochs}) and max(epochs.values()) == 4
    assert not any("per_second" in name or "train_loss" in name for name in board.Tags()["scalars"])
    assert not any(str(measured[1]).encode() in path.read_bytes() for path in folder.iterdir())
    note = next(event for event in events_of(measured[1]) if event.get("code") == "train.tensorboard")
    assert note["facts"]["folder"] == str(measured[1] / "scratch" / "tensorboard")


def test_lines_of_a_log_tell_measurements_and_end_with_the_curve(measured: tuple[Made, Path]) -> None:
    out = io.StringIO()
    lines = Lines(out)
    lines({"t": 0.0, "event": "stage.started", "stage": ""})
    for event in events_of(measured[1]):
        lines(event)
    lines({"t": 0.0, "event": "train.evaluating", "stage": "", "done": 3, "total": 7})
    lines({"t": 1e12, "event": "stage.progress", "stage": "", "done": 9, "total": 16, "unit": "steps"})
    stall = {"step": 3, "seconds": 301.2, "where": "step.py:1 in read", "stacks": "/job/stacks-1.txt"}
    lines({"t": 2e12, "event": "train.stall", "stage": "", **stall})
    told = out.getvalue().splitlines()
    losses = [point["loss"] for point in measured[0].facts["losses"]]
    assert f"  loss {losses[0]:.3f} {sparkline(losses, 32)} {losses[-1]:.3f}" in told
    assert sum("held back: loss" in line and "of tokens right" in line for line in told) >= 4
    assert any("measuring 3/7 · loss" in line and "tok/s" in line for line in told)
    assert "301 s after step 3, in step.py:1 in read" in told[-1] and "stacks-1.txt" in told[-1]


def test_curve_is_drawn_from_high_to_low_in_the_width_given() -> None:
    assert sparkline([7, 6, 5, 4, 3, 2, 1, 0], 8) == "█▇▆▅▄▃▂▁"
    assert sparkline([8.0, 8.0, 0.0, 0.0, 4.0, 4.0], 3) == "█▁▅"
    assert sparkline([2.0, 2.0], 9) == "▁▁"


def test_share_held_back_is_never_trained_on_and_keeps_relatives_together() -> None:
    some = [*rows(20), *(row.model_copy(update={"id": f"f{row.id[1:]}", "parent": row.id}) for row in rows(20))]
    some += [row.model_copy(update={"id": f"e{row.id[1:]}"}) for row in rows(10)]
    some += [row.model_copy(update={"id": f"{row.id}#2"}) for row in rows(4)]
    kept, held = share_of(some, 0.25, 3)
    assert len(held) >= ceil(0.25 * len(some)) and len(kept) + len(held) == len(some)
    sides = [{row.answer + row.prompt[0].content for row in part} for part in (kept, held)]
    assert not sides[0] & sides[1]
    assert share_of(some, 0.25, 3) == (kept, held)
    assert share_of(some, 0.25, 4) != (kept, held)


def test_chain_of_relatives_stays_on_one_side_whatever_their_order() -> None:
    first, second, third = rows(3)
    bridge = second.model_copy(update={"parent": first.id})  # first - bridge by origin, bridge - third by text
    twin = third.model_copy(update={"messages": second.messages})
    for order in ([twin, bridge, first], [first, bridge, twin], [bridge, first, twin]):
        kept, held = share_of([*order, *rows(9)[5:]], 0.2, 1)
        assert len({side for side, part in enumerate((kept, held)) for row in part if row in order}) == 1


def test_rows_to_measure_on_are_the_valid_part_or_refused_by_name(dataset: Path, tmp_path: Path) -> None:
    given = context(tmp_path, dataset, tmp_path).inputs["dataset"]
    train = rows(16)
    assert hold_out(train, given, WatchParams(), 1) == (train, [])
    kept, held = hold_out(train, given, WatchParams(eval_steps=5), 1)
    assert kept == train and [row.id for row in held] == [row.id for row in rows(30)[24:]]
    kept, held = hold_out(train, given, WatchParams(eval_steps=5, eval_share=0.25), 1)
    assert len(kept) == 12 and {row.id for row in held} < {row.id for row in train}
    bare = context(tmp_path, write_dataset(tmp_path / "bare", 4), tmp_path).inputs["dataset"]
    with pytest.raises(UserError) as error:
        hold_out(train, bare, WatchParams(eval_steps=5), 1)
    assert error.value.code == "train.no_valid"
    with pytest.raises(UserError) as error:
        hold_out(train[:1], given, WatchParams(eval_steps=5, eval_share=0.25), 1)
    assert error.value.code == "train.share_takes_all" and "1 training rows" in str(error.value)


@pytest.mark.parametrize("settings", [{"early_stopping_patience": 2}, {"eval_share": 0.1}])
def test_settings_of_evaluation_without_evaluation_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="need eval_steps"):
        train_params(**settings)


def high(curve: list[float], factor: float = 3.0, patience: int = 3) -> tuple[int | None, int | None]:
    """Where training stops on a curve of one point a step, and since when the loss was high."""
    judge = Divergence(factor, patience)
    for step, loss in enumerate(curve, 1):
        if judge.add(step, loss):
            return step, judge.since
    return None, judge.since


def test_loss_that_rises_and_stays_there_stops_training() -> None:
    assert high([4, 3, 2, 2, 9, 9, 9, 9]) == (7, 5)
    assert high([4, 3, 2, 2, 9, 9], patience=1) == (5, 5)


@pytest.mark.parametrize(
    "curve",
    [[4, 3, 2, 9, 2, 9, 9, 2], [4, 3, 2, 5, 5, 5, 5], [0.5, 0.001, 0.4, 0.3, 0.6, 0.4], [11, 11, 11, 12], [4, 9, 9]],
    ids=["a spike", "below the factor", "noise near zero", "no fall yet", "not long enough"],
)
def test_loss_that_does_not_stay_high_goes_on(curve: list[float]) -> None:
    assert high(curve)[0] is None


def test_weights_count_as_good_only_where_a_good_loss_of_theirs_was_seen() -> None:
    judge = Divergence(3.0, 3)
    for step, loss in ((5, 4.0), (10, 2.0), (15, 40.0)):
        judge.add(step, loss)
    assert (judge.since, judge.unproven) == (15, 10)  # the weights of checkpoint 10 are first seen in step 11
    judge.add(20, 2.0)
    assert judge.unproven is None


def test_diverged_run_stops_keeps_the_last_good_checkpoint_and_a_rerun_at_another_rate_begins_anew(
    tiny_llama: Path, dataset: Path, tmp_path: Path
) -> None:
    from inhouse.train.stage import run

    wild = {"method": "full", "save_steps": 2, "logging_steps": 1, "num_train_epochs": 8, "warmup_ratio": 0.9}
    settings = {**wild, "learning_rate": 3.0, "max_grad_norm": 1e9, "divergence_factor": 1.5, "divergence_patience": 2}
    with pytest.raises(UserError) as error:
        run(train_params(**settings), context(tiny_llama, dataset, tmp_path))
    assert error.value.code == "train.loss_rose"
    good, since = Path(error.value.facts["checkpoint"]), error.value.facts["step"]
    left = {int(path.name.split("-")[1]) for path in (tmp_path / "scratch" / "checkpoints").iterdir()}
    assert good.exists() and max(left) < since - 1 and good.name == f"checkpoint-{max(left)}"
    losses = [event["loss"] for event in events_of(tmp_path) if event["event"] == "train.step"]
    assert len(losses[since - 1 :]) == 2 and all(loss > 1.5 * error.value.facts["best"] for loss in losses[since - 1 :])
    made = run(
        train_params(**{**settings, "learning_rate": 1e-4, "max_steps": 2}), context(tiny_llama, dataset, tmp_path)
    )
    assert made.facts["resumed_from"] == 0


@pytest.mark.parametrize("logs", [{"loss": nan, "grad_norm": 1.0}, {"loss": 1.0, "grad_norm": inf}])
def test_log_that_is_not_finite_stops_before_anything_is_saved(logs: dict[str, float], tmp_path: Path) -> None:
    from transformers import TrainerControl, TrainerState

    from inhouse.train.watch import Watched, watcher

    watch = watcher(WatchParams(), Watched(Events(tmp_path / "e.jsonl"), tmp_path, {}, [5]), Pulse(9))
    with pytest.raises(UserError) as error:
        watch.on_log(None, TrainerState(global_step=4), TrainerControl(), logs={"learning_rate": 0.1, **logs})
    assert error.value.code == "train.diverged"
    assert error.value.facts == {"step": 4, "learning_rate": 0.1, "checkpoint": "none was saved before"}
    (event,) = events_of_file(tmp_path / "e.jsonl")
    assert event["event"] == "train.step" and None in (event["loss"], event["grad_norm"])


def events_of_file(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Clock:
    """A clock that moves when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_stall_is_found_once_after_the_longer_of_the_limit_and_twenty_usual_steps() -> None:
    clock = Clock()
    pulse = Pulse(10.0, clock)
    clock.now = 9.9
    assert pulse.stalled() is None
    clock.now = 10.0
    assert pulse.stalled() == 10.0
    assert pulse.stalled() is None  # told once
    for step in range(1, 6):
        clock.now += 2
        pulse.stepped(step)
    assert pulse.longest() == 40.0
    clock.now += 39
    assert pulse.stalled() is None
    pulse.alive()
    clock.now += 39
    assert pulse.stalled() is None
    clock.now += 1
    assert pulse.stalled() == 40.0 and pulse.step == 5


def test_stall_writes_the_stacks_of_all_threads_tells_where_and_goes_on(tmp_path: Path) -> None:
    told = threading.Event()

    class Log(Events):
        def emit(self, event: str, **facts: Any) -> None:
            super().emit(event, **facts)
            told.set()

    def hang() -> bool:
        return told.wait(30)

    with stall_watch(Log(tmp_path / "events.jsonl"), 0.05) as pulse:
        pulse.stepped(7)
        assert hang()
    (event,) = events_of_file(tmp_path / "events.jsonl")
    assert event["event"] == "train.stall" and event["step"] == 7 and event["seconds"] >= 0.05
    assert "in wait" in event["where"]
    stacks = Path(event["stacks"])
    assert stacks.parent == tmp_path and "in hang" in stacks.read_text() and "stall.py" in stacks.read_text()
    assert not any(thread.name == "stall-watch" for thread in threading.enumerate())


def test_place_of_a_stall_names_our_innermost_line_too() -> None:
    import sys

    from inhouse.train.stall import place

    assert place(None) == "?"
    assert place(sys._getframe()).startswith("test_train_watch.py:")
    seen: list[str] = []
    pulse = Pulse(1.0, lambda: len(seen.append(place(sys._getframe())) or seen))
    pulse.alive()
    assert " in alive" in seen[-1] and " in <lambda> < stall.py:" in seen[-1]


def test_pace_counts_tokens_since_the_log_without_evaluation_and_eta_from_the_resume(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr("time.monotonic", clock)
    pace = Pace([100] * 20)
    pace.begin(10)
    clock.now = 4.0
    assert pace.log(12, 20) == {"tokens_per_s": 50.0, "eta_s": 16.0}
    clock.now = 10.0
    pace.paused(4.0)
    found = pace.log(14, 20)
    assert isclose(found["tokens_per_s"], 100.0) and found["eta_s"] == 15.0


def test_trackers_that_cannot_work_are_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    check_trackers((), offline=True)
    check_trackers(("tensorboard",), offline=True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in ("tensorboard", "mlflow"):
        with pytest.raises(MissingExtra, match="track"):
            check_trackers((name,), offline=False)


class Server:
    """What check_trackers asks of mlflow, for a machine without it."""

    class exceptions:
        MlflowException = RuntimeError

    def __init__(self, uri: str | None) -> None:
        self.uri = uri

    def is_tracking_uri_set(self) -> bool:
        return self.uri is not None

    def get_tracking_uri(self) -> str | None:
        return self.uri

    def MlflowClient(self) -> Any:
        raise RuntimeError("refused")


@pytest.mark.parametrize(
    ("uri", "offline", "code"),
    [
        (None, False, "train.mlflow_unset"),
        ("http://far", True, "train.mlflow_offline"),
        ("http://far", False, "train.mlflow_unreachable"),
    ],
)
def test_mlflow_that_cannot_be_reached_is_refused_before_training(
    uri: str | None, offline: bool, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "mlflow", Server(uri))  # type: ignore[arg-type]
    monkeypatch.setattr("inhouse.train.track.require", lambda *_: None)
    with pytest.raises(UserError) as error:
        check_trackers(("mlflow",), offline)
    assert error.value.code == code
    use_language("zh")
    assert "MLFLOW" in str(error.value).upper()


def test_mlflow_run_holds_the_curves_and_is_ended_also_when_training_fails(
    tiny_llama: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    from inhouse.train.stage import run

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    settings = {"report_to": ["mlflow"], "max_steps": 4, "eval_steps": 2}
    made = run(train_params(**settings), context(tiny_llama, dataset, tmp_path / "a"))
    with pytest.raises(UserError):
        run(train_params(**{**settings, "learning_rate": 1e30}), context(tiny_llama, dataset, tmp_path / "b"))
    client = mlflow.MlflowClient()
    failed, done = client.search_runs(["0"], order_by=["attributes.start_time DESC"])
    assert (failed.info.status, done.info.status) == ("FAILED", "FINISHED")
    told = {point.step: point.value for point in client.get_metric_history(done.info.run_id, "loss")}
    assert told == pytest.approx({point["step"]: point["loss"] for point in made.facts["losses"]})


def test_no_tensorboard_files_leave_no_folder(tmp_path: Path) -> None:
    keep_curves(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def scaler_beyond_float32(backoff_factor: float) -> Any:
    """A scaler whose gradients overflow for as long as its scale is large, whatever order they are computed in."""
    import torch

    class Scaler(torch.amp.GradScaler):
        def scale(self, outputs: Any) -> Any:
            scaled = super().scale(outputs)
            return scaled * 2.0**100 if self.get_scale() > 2.0**100 else scaled

    return Scaler("cpu", init_scale=2.0**127, backoff_factor=backoff_factor)


def scaled_run(scaler: Any, model: Path, dataset: Path, work: Path, monkeypatch: pytest.MonkeyPatch, steps: int) -> Any:
    """A run whose gradients a scaler holds, as fp16 has it; on the CPU, in float32."""
    from inhouse.train import loop
    from inhouse.train.arguments import optimizer_of
    from inhouse.train.setup import Place, job_for, prepare

    real = loop.build_trainer

    def build(*given: Any) -> Any:
        trainer = real(*given)
        trainer.accelerator.scaler = scaler
        trainer.args.optim = optimizer_of("fp16")
        return trainer

    monkeypatch.setattr(loop, "build_trainer", build)
    params = train_params(max_steps=steps, logging_steps=1, save_steps=99, lr_scheduler_type="constant")
    here = context(model, dataset, work)
    ready = prepare(params, here.inputs, 7, here.events)
    return loop.train(ready.loaded.model, params, job_for(ready, params, 7, Place(here.scratch, here.events)))


def test_first_overflows_of_a_scaler_are_skipped_and_training_goes_on(
    tiny_llama: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaler = scaler_beyond_float32(backoff_factor=2.0**-127)  # the first step overflows, and the next has a scale of 1
    made = scaled_run(scaler, tiny_llama, dataset, tmp_path, monkeypatch, 8)
    assert ["grad_norm" in point for point in made.losses] == [False] + [True] * 7
    assert json.dumps(made.losses, allow_nan=False)
    steps = [event for event in events_of(tmp_path) if event["event"] == "train.step"]
    assert steps[0]["grad_norm"] is None and len(steps) == 8
    assert made.losses[-1]["loss"] < made.losses[0]["loss"]


def test_scaler_that_skips_step_after_step_is_told_as_divergence(
    tiny_llama: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaler = scaler_beyond_float32(backoff_factor=0.999)
    with pytest.raises(UserError) as stopped:
        scaled_run(scaler, tiny_llama, dataset, tmp_path, monkeypatch, 24)
    assert (stopped.value.code, stopped.value.facts["step"]) == ("train.diverged", 21)
