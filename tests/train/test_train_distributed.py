"""Training in two processes: the losses and the weights are those of one process, whichever way the work is cut."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_training import context, train_params, write_dataset

from inhouse.core.errors import UserError
from inhouse.core.protocols import Context
from inhouse.train.distributed import check, start_ranks, take
from inhouse.train.parallel.order import outcome_of, write_order
from inhouse.train.parallel.ranks import share_out
from inhouse.train.params import TrainParams

KINDS = ("ddp", "fsdp2", "tp", "pp")
ROWS = 25  # at 4 rows a batch the last one has a single row: one of two ranks then has none
RECIPE = {"settings": "same"}
OTHERS: dict[str, dict[str, Any]] = {  # what else two processes do, each beside the same in one
    "pp-whole": {"method": {"use": "full"}, "max_steps": 2},  # of a model whose embeddings are its output matrix too
    "ddp-classify": {"objective": {"use": "classify"}, "max_steps": 2},
    "fsdp2-classify": {"objective": {"use": "classify"}, "max_steps": 2},
    "tp-few": {"max_steps": 3, "logging_steps": 2},  # the last step is a point of the curve too
}


def settings(kind: str | None = None, **more: Any) -> TrainParams:
    """Without dropout: each rank draws its own. Clipped, decayed, and accumulated over an odd number of batches."""
    lora = {"use": "lora", "r": 4, "lora_alpha": 8, "lora_dropout": 0}
    plain = {"learning_rate": 0.003, "num_train_epochs": 2, "max_grad_norm": 0.5, "weight_decay": 0.1}
    often = {"gradient_accumulation_steps": 3, "save_steps": 2, "logging_steps": 1}
    parallel = {"kind": kind, "processes": 2} if kind else None
    return train_params(**{"method": lora, "parallel": parallel, **plain, **often, **more})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("dataset"), ROWS)


@pytest.fixture(scope="module")
def places(
    tiny_llama: Path, dataset: Path, warm_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Context]:
    """Every way of cutting the work, and each once more from the checkpoint that the first leaves after 4 steps.

    All are carried out by one start of two processes, which have no libraries left to load: that takes longer than all
    the training. They outlive this process (no parent is named), for they are children of another; their launcher is
    here, and ends them.
    """
    found, folders = {}, []
    for name in (*KINDS, *(f"{kind}-again" for kind in KINDS)):
        kind = name.removesuffix("-again")
        found[name] = context(tiny_llama, dataset, tmp_path_factory.mktemp(name))
        if name != kind:
            checkpoints = found[name].scratch / "checkpoints"
            checkpoints.mkdir()
            (checkpoints / "checkpoint-4").symlink_to(found[kind].scratch / "checkpoints" / "checkpoint-4")
        folders.append(write_order(settings(kind), found[name], RECIPE, None))
    for name, more in OTHERS.items():
        found[name] = context(tiny_llama, dataset, tmp_path_factory.mktemp(name))
        folders.append(write_order(settings(name.partition("-")[0], **more), found[name], RECIPE, None))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(warm_python))
        start_ranks(folders, 2)
    return found


@pytest.fixture(scope="module")
def alone(tiny_llama: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """What one process makes of it: the loop's result and the model."""
    return trained_alone(context(tiny_llama, dataset, tmp_path_factory.mktemp("alone")), settings())


def trained_alone(place: Context, params: TrainParams) -> tuple[Any, Any]:
    from inhouse.train.loop import train
    from inhouse.train.setup import Place, job_for, prepare

    ready = prepare(params, place.inputs, place.seed, place.events)
    job = job_for(ready, params, place.seed, Place(place.scratch, place.events))
    return train(ready.loaded.model, params, job), ready.loaded.model


def trained_model(place: Context, params: TrainParams) -> Any:
    """A model loaded as the stage does, with what the ranks have trained."""
    from inhouse.train.setup import prepare

    model = prepare(params, place.inputs, place.seed, place.events).loaded.model
    take(model, place.scratch / "parallel")
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_follow_the_losses_of_one_to_five_digits(
    kind: str, places: dict[str, Context], alone: tuple[Any, Any]
) -> None:
    together = outcome_of(places[kind].scratch / "parallel")
    for name in ("loss", "grad_norm", "learning_rate"):
        expected = [point[name] for point in alone[0].losses]
        assert [point[name] for point in together["losses"]] == pytest.approx(expected, rel=1e-5), name
    assert (together["steps"], together["tokens"]) == (alone[0].steps, alone[0].tokens)
    assert together["epochs"] == pytest.approx(alone[0].epochs)


@pytest.mark.parametrize("name", OTHERS)
def test_two_processes_of_another_kind_follow_one(
    name: str, places: dict[str, Context], tiny_llama: Path, dataset: Path, tmp_path: Path
) -> None:
    alone, _ = trained_alone(context(tiny_llama, dataset, tmp_path), settings(**OTHERS[name]))
    together = outcome_of(places[name].scratch / "parallel")
    for figure in ("loss", "grad_norm", "learning_rate"):
        expected = [point[figure] for point in alone.losses]
        assert [point[figure] for point in together["losses"]] == pytest.approx(expected, rel=1e-5), figure


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_tell_their_steps_and_the_memory_of_each(kind: str, places: dict[str, Context]) -> None:
    lines = (places[kind].scratch.parent / "events.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    shown = [event for event in events if event["event"] == "stage.progress" and event["unit"] == "steps"]
    assert (shown[-1]["done"], shown[-1]["total"]) == (6, 6) and shown[-1]["tokens_per_s"] > 0
    steps = [event for event in events if event["event"] == "train.step"]
    assert [event["step"] for event in steps] == list(range(1, 7))  # of one rank, not of both
    wanted = {"loss", "learning_rate", "grad_norm", "tokens_per_s", "memory_bytes", "eta_s"}
    assert all(wanted <= event.keys() for event in steps)
    assert sum(event["event"] == "train.ended" for event in events) == 1
    ranks = outcome_of(places[kind].scratch / "parallel")["ranks"]
    assert [one["rank"] for one in ranks] == [0, 1] and all(one["memory_bytes"] > 10**8 for one in ranks)
    assert "train.ranks_memory" in [event.get("code") for event in events]


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_end_with_the_weights_of_one(
    kind: str, places: dict[str, Context], alone: tuple[Any, Any]
) -> None:
    import torch

    found = trained_model(places[kind], settings(kind)).state_dict()
    for name, expected in alone[1].state_dict().items():
        torch.testing.assert_close(found[name], expected, rtol=0, atol=2e-5, msg=name)
    assert sum("lora_" in name for name in found) == 2 * 2 * 7  # A and B of 7 matrices in 2 layers


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_processes_end_with_the_same_bytes(kind: str, places: dict[str, Context]) -> None:
    first, again = (places[name].scratch / "parallel" for name in (kind, f"{kind}-again"))
    assert outcome_of(again)["resumed_from"] == 4
    assert outcome_of(again)["losses"] == outcome_of(first)["losses"]
    assert (again / "trained.safetensors").read_bytes() == (first / "trained.safetensors").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_one_process_alone_tells_the_events(kind: str, places: dict[str, Context]) -> None:
    path = places[kind].events.path
    assert path is not None
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines() if '"train.step"' in line]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_worker_that_breaks_is_told_with_the_place_of_its_output(tmp_path: Path) -> None:
    (tmp_path / "order.json").write_text("{")
    with pytest.raises(UserError) as told:
        start_ranks([tmp_path], 1)
    assert told.value.code == "train.worker_failed"
    logs = [path.read_text() for path in Path(told.value.facts["log"]).rglob("stderr.log")]
    assert any("JSONDecodeError" in log for log in logs)


@pytest.mark.parametrize(
    ("kind", "more", "what"),
    [
        ("tp", {"eval_steps": 2}, "train.eval_steps"),
        ("pp", {"report_to": ["tensorboard"]}, "train.report_to"),
        ("tp", {"method": {"use": "qlora"}}, "train.method: qlora"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(kind: str, more: dict[str, Any], what: str) -> None:
    with pytest.raises(UserError) as told:
        check(settings(kind, **more))
    assert (told.value.code, told.value.facts["what"]) == ("train.parallel_method", what)


@pytest.mark.parametrize(
    ("more", "what"),
    [({"penalties": ["l2_sp"]}, "train.penalties"), ({"privacy": {"epsilon": 8}}, "train.privacy")],
)
def test_what_works_in_one_process_only_is_not_sent_to_another_kind_of_several(more: dict[str, Any], what: str) -> None:
    with pytest.raises(UserError) as told:
        check(settings("ddp", **more))
    assert told.value.code == "train.parallel_alone" and "ddp" not in str(told.value) and what in str(told.value)


def test_loss_that_rises_and_stays_ends_a_cut_model_as_any_other(tmp_path: Path) -> None:
    from inhouse.train.parallel.cut import Course

    params = settings("tp", divergence_patience=2)
    points = [{"step": step, "loss": loss, "learning_rate": 0.1} for step, loss in enumerate((3.0, 2.9, 40.0), 1)]
    for step in (1, 2, 3):
        (tmp_path / f"checkpoint-{step}").mkdir()
    Course(losses=points).judge(params, tmp_path)
    points.append({"step": 4, "loss": 50.0, "learning_rate": 0.1})
    with pytest.raises(UserError) as told:
        Course(losses=points).judge(params, tmp_path)
    assert (told.value.code, told.value.facts["step"]) == ("train.loss_rose", 3)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]  # the loss of step 3 is that of checkpoint 2


def test_every_row_of_a_step_is_dealt_once_and_no_share_is_larger_than_a_batch() -> None:
    plan = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12], [13, 14, 15, 16]]
    for ranks in (2, 3, 4, 7):
        for accumulation in (1, 2, 3):
            shares = share_out(plan, accumulation, ranks)
            a_step = shares.turns * ranks
            steps = [shares.items[at : at + a_step] for at in range(0, len(shares.items), a_step)]
            expected = [
                [row for batch in plan[at : at + accumulation] for row in batch]
                for at in range(0, len(plan), accumulation)
            ]
            assert [sorted(row for item in step for row in item) for step in steps] == expected
            assert all(len(step) == a_step for step in steps)
            assert max(len(item) for step in steps for item in step) <= 4


def test_batches_that_come_out_even_are_dealt_whole() -> None:
    shares = share_out([[0, 1], [2], [3, 4], [5]], 2, 2)
    assert (shares.items, shares.turns) == ([[0, 1], [2], [3, 4], [5]], 1)


def test_samples_that_make_one_example_stay_together() -> None:
    shares = share_out([[0, 1, 2, 3, 4, 5], [6, 7], []], 3, 2, unit=2)
    assert shares.items == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_memory_of_each_process_is_a_table_of_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    from inhouse.cli.train_views import trained as shown

    ranks = [{"rank": 0, "memory_bytes": 2 * 10**9}, {"rank": 1, "memory_bytes": 3 * 10**9}]
    shown({"memory": {"ranks": ranks}}, Console(width=80))
    lines = [line for line in capsys.readouterr().out.splitlines() if "GB" in line]
    assert [line.split()[0] for line in lines] == ["0", "1"] and "3.00 GB" in lines[-1]
