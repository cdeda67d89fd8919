"""Training that is killed comes back bit for bit; checkpoints that cannot be trusted are not used."""

from __future__ import annotations

import json
import resource
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tiny_training import context, train_params, write_dataset

from inhouse.core.errors import UserError
from inhouse.core.run import Events
from inhouse.core.store import disk_errors
from inhouse.train.checkpoint import (
    drop_since,
    find_complete,
    newest_of,
    recipe_of,
    saving,
    settle,
    step_of,
    stopped_early,
)

MEASURED = {
    "eval_steps": 2, "eval_share": 0.25, "early_stopping_patience": 1, "gradient_accumulation_steps": 2,
    "num_train_epochs": 12, "save_steps": 2, "learning_rate": 0.05, "per_device_train_batch_size": 3,
}  # fmt: skip
SAME = ("out", "losses", "evaluations", "best_step", "steps", "tokens", "left")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture
def places(warm_python: Path, tiny_llama: Path, dataset: Path, tmp_path: Path) -> tuple[Path, ...]:
    """The interpreter of tests/train/killing.py, and its first arguments."""
    return warm_python, Path(__file__).with_name("killing.py"), tiny_llama, dataset, tmp_path / "w"


def runs(places: tuple[Path, ...], threads: int, settings: dict[str, Any], *moments: str) -> list[dict]:
    """What tests/train/killing.py found: a run left alone first, then one per moment."""
    plan = json.dumps({"threads": threads, "settings": settings, "moments": ["none", *moments]})
    done = subprocess.run([*map(str, places), plan], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def differing(found: list[dict]) -> list[tuple[str, str]]:
    return [(run["moment"], key) for run in found[1:] for key in SAME if run[key] != found[0][key]]


def test_run_killed_anywhere_with_evaluation_and_early_stopping_ends_in_the_same_bytes(
    places: tuple[Path, ...],
) -> None:
    # In a step; in the first save, before any checkpoint counts; in a later save; while the result is written.
    found = runs(places, 1, MEASURED, "step:5", "file:4", "file:30", "out:2")
    whole = found[0]
    assert whole["best_step"] == 4 and whole["steps"] == 6 and "train.stopped_early" in whole["notes"]
    assert whole["left"] == ["checkpoint-4", "checkpoint-6"]
    assert all(run["killed"] for run in found[1:])
    assert found[1]["resumed_from"] == 4 and found[2]["resumed_from"] == 0
    assert found[3]["resumed_from"] > 0 and found[4]["resumed_from"] == 6
    assert differing(found) == []


def test_run_killed_on_two_threads_ends_in_the_same_bytes(places: tuple[Path, ...]) -> None:
    # After a step and at the first and last file of a save: the checkpoint before counts, at an epoch's end or inside.
    found = runs(places, 2, {"max_steps": 12}, "step:8", "save:9:optimizer.pt", "save:6:trainer_state.json")
    assert all(run["killed"] for run in found[1:])
    assert [run["resumed_from"] for run in found] == [0, 6, 6, 3]
    assert {run["ran_on"]["threads"] for run in found} == {2}
    assert found[0]["left"] == ["checkpoint-12", "checkpoint-9"]
    assert differing(found) == []


class Log(Events):
    """Keeps the notes."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[tuple[str, dict[str, Any]]] = []

    def note(self, code: str, **facts: Any) -> None:
        self.notes.append((code, facts))


RECIPE = {"settings": "1", "base": "a", "code": "x"}


def write(folder: Path, step: int, best: int | None = None, **state: Any) -> Path:
    """A checkpoint as the trainer leaves it, not yet marked."""
    path = folder / f"checkpoint-{step}"
    (path / "nested").mkdir(parents=True)
    (path / "nested" / "adapter_model.safetensors").write_bytes(bytes(range(200)))
    found = {"global_step": step, "best_global_step": best, "max_steps": 100, **state}
    (path / "trainer_state.json").write_text(json.dumps(found))
    return path


def saved(folder: Path, *steps: int, keep: int = 9) -> list[str]:
    for step in steps:
        write(folder, step)
        settle(folder, RECIPE, step, (keep, None))
    return names(folder)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_newest_marked_checkpoint_is_found_and_an_unfinished_one_removed(tmp_path: Path) -> None:
    saved(tmp_path, 5, 10)
    write(tmp_path, 15)
    log = Log()
    assert find_complete(tmp_path, RECIPE, log) == tmp_path / "checkpoint-10"
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-5"]
    assert log.notes == []


def test_no_checkpoints_begin_anew(tmp_path: Path) -> None:
    assert find_complete(tmp_path, RECIPE, Log()) is None
    assert find_complete(tmp_path / "none", RECIPE, Log()) is None
    assert newest_of(tmp_path) is None and step_of(None) == 0 and not stopped_early(None)


@pytest.mark.parametrize("harm", ["cut", "flip", "gone", "more", "mark", "old-mark"])
def test_damaged_checkpoint_is_told_of_removed_and_the_one_before_used(tmp_path: Path, harm: str) -> None:
    saved(tmp_path, 5, 10)
    file, mark = (tmp_path / "checkpoint-10" / name for name in ("nested/adapter_model.safetensors", "complete"))
    data = file.read_bytes()
    if harm == "cut":
        file.write_bytes(data[:-1])
    elif harm == "flip":
        file.write_bytes(data[:50] + b"\x00" + data[51:])
    elif harm == "gone":
        file.unlink()
    elif harm == "more":
        (file.parent / "optimizer.pt").touch()
    else:
        mark.write_text('{"recipe": ' if harm == "mark" else "")
    log = Log()
    assert find_complete(tmp_path, RECIPE, log) == tmp_path / "checkpoint-5"
    assert [code for code, _ in log.notes] == ["train.checkpoint_damaged"]
    assert names(tmp_path) == ["checkpoint-5"]


@pytest.mark.parametrize("other", [{"settings": "2"}, {"base": "b"}, {"code": "y"}, {"teacher": "t"}])
def test_checkpoint_of_another_recipe_is_set_aside_whole_and_named(tmp_path: Path, other: dict[str, str]) -> None:
    folder = tmp_path / "checkpoints"
    saved(folder, 5)
    log = Log()
    assert find_complete(folder, {**RECIPE, **other}, log) is None
    ((code, facts),) = log.notes
    assert code == "train.checkpoint_other" and facts["differs"] == next(iter(other))
    aside = Path(facts["path"])
    assert (aside / "nested" / "adapter_model.safetensors").read_bytes() == bytes(range(200))
    assert names(folder) == [] and aside.parent == tmp_path / "set-aside"


def test_checkpoints_set_aside_are_removed_at_the_next_start_and_told_of(tmp_path: Path) -> None:
    folder, mended = tmp_path / "checkpoints", {**RECIPE, "settings": "2"}
    saved(folder, 5)
    find_complete(folder, mended, Log())
    assert names(tmp_path) == ["checkpoints", "set-aside"]
    log = Log()
    assert find_complete(folder, mended, log) is None
    assert names(tmp_path) == ["checkpoints"]
    assert [code for code, _ in log.notes] == ["train.aside_removed"]


def test_checkpoint_of_other_library_versions_is_used_and_told_of(tmp_path: Path) -> None:
    saved(tmp_path, 5)
    mark = tmp_path / "checkpoint-5" / "complete"
    content = json.loads(mark.read_text())
    content["packages"]["torch"] = "1.0"
    mark.write_text(json.dumps(content))
    log = Log()
    assert find_complete(tmp_path, RECIPE, log) == tmp_path / "checkpoint-5"
    assert log.notes[0][0] == "train.checkpoint_versions" and "torch 1.0 -> " in log.notes[0][1]["changed"]


def test_checkpoint_whose_best_one_is_damaged_is_not_resumed_from(tmp_path: Path) -> None:
    saved(tmp_path, 5, 10)
    write(tmp_path, 15, best=10)
    settle(tmp_path, RECIPE, 15, (9, 10))
    (tmp_path / "checkpoint-10" / "trainer_state.json").write_text("{}")
    assert find_complete(tmp_path, RECIPE, Log()) == tmp_path / "checkpoint-5"


def test_checkpoints_beyond_the_limit_are_removed_but_never_the_best(tmp_path: Path) -> None:
    assert saved(tmp_path, 5, 10, 15, keep=2) == ["checkpoint-10", "checkpoint-15"]
    for step in (20, 25):
        write(tmp_path, step, best=10)
        settle(tmp_path, RECIPE, step, (2, 10))
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-25"]
    write(tmp_path, 30)
    settle(tmp_path, RECIPE, 30, (1, 10))
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-30"]


def test_checkpoint_left_over_by_a_cut_off_removal_is_removed_when_training_goes_on(tmp_path: Path) -> None:
    from transformers import TrainerControl, TrainerState

    from inhouse.train.stall import Pulse
    from inhouse.train.watch import Watched, WatchParams, watcher

    saved(tmp_path, 5, 10, 15)
    watch = watcher(WatchParams(save_total_limit=2), Watched(Log(), tmp_path, RECIPE, []), Pulse(9))
    watch.on_train_begin(None, TrainerState(global_step=15), TrainerControl())
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-15"]


def test_checkpoints_since_a_step_are_dropped(tmp_path: Path) -> None:
    saved(tmp_path, 5, 10, 15)
    drop_since(tmp_path, 10)
    assert newest_of(tmp_path) == tmp_path / "checkpoint-5"


def test_run_that_early_stopping_ended_is_known_from_its_checkpoint(tmp_path: Path) -> None:
    stop = {"TrainerControl": {"args": {"should_training_stop": True}}}
    assert stopped_early(write(tmp_path, 5, stateful_callbacks=stop))
    assert not stopped_early(write(tmp_path, 100, stateful_callbacks=stop))
    assert not stopped_early(write(tmp_path, 6))


def test_recipe_changes_with_settings_inputs_seed_and_code_and_not_with_how(tmp_path: Path) -> None:
    import inhouse.train.loop
    import inhouse.train.stage

    here, stage = context(tmp_path, tmp_path, tmp_path), inhouse.train.stage
    plain = recipe_of(train_params(), here, stage)

    def changed(params: Any = None, code: ModuleType = stage) -> set[str]:
        other = recipe_of(params or train_params(), here, code)
        return {key for key in other if other[key] != plain[key]}

    assert changed() == set()
    assert changed(train_params(learning_rate=0.5)) == {"settings"}
    assert changed(train_params(save_steps=2, stall_seconds=9, report_to=["tensorboard"])) == set()
    assert changed(code=inhouse.train.loop) == {"code"}
    assert {"base", "dataset", "seed"} <= plain.keys()


def test_disk_that_fills_up_while_saving_is_told_as_such_and_what_was_there_is_used_again(
    tiny_llama: Path, dataset: Path, tmp_path: Path
) -> None:
    from inhouse.train.stage import run

    here, usual = context(tiny_llama, dataset, tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, usual[1]))  # bytes a file may have; no checkpoint fits
    try:
        with pytest.raises(UserError) as error, disk_errors(here.out):
            run(train_params(max_steps=3), here)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert error.value.code == "store.no_space"
    made = run(train_params(max_steps=3), context(tiny_llama, dataset, tmp_path))
    assert (made.facts["steps"], made.facts["resumed_from"]) == (3, 0)


@pytest.mark.parametrize("text", ["PytorchStreamWriter failed writing file data/0: file write failed", "shapes differ"])
def test_only_what_tells_of_a_full_disk_becomes_an_error_of_the_disk(text: str, tmp_path: Path) -> None:
    expected = OSError if "write" in text else RuntimeError
    with pytest.raises(expected), saving(tmp_path):
        raise RuntimeError(text)


def test_copied_checkpoint_of_another_learning_rate_is_not_resumed_from(
    tiny_llama: Path, dataset: Path, tmp_path: Path
) -> None:
    from inhouse.train.stage import run

    run(train_params(max_steps=3), context(tiny_llama, dataset, tmp_path))
    made = run(train_params(max_steps=3, learning_rate=0.01), context(tiny_llama, dataset, tmp_path))
    assert made.facts["resumed_from"] == 0
    notes = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    (note,) = [event for event in notes if event.get("code") == "train.checkpoint_other"]
    assert note["facts"]["differs"] == "settings"
    assert (Path(note["facts"]["path"]) / "adapter_model.safetensors").exists()
