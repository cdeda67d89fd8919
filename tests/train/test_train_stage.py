"""Training the tiny model: what it learns, what it leaves, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from tiny_training import context, rows, train_params, write_dataset

from inhouse.core.artifact import Artifact, Licence
from inhouse.core.errors import Cancelled, UserError
from inhouse.core.protocols import Input, Made
from inhouse.dataset import write_rows
from inhouse.train.stage import external, run


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def lively(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with larger embeddings: tied and as small as drawn, they allow no sure answer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("lively")
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(20)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(lively: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Made, Path]:
    work = tmp_path_factory.mktemp("made")
    return run(train_params(num_train_epochs=8), context(lively, dataset, work)), work


def test_training_lowers_the_loss_and_answers_end(made: tuple[Made, Path]) -> None:
    facts = made[0].facts
    assert facts["losses"][-1]["loss"] < 0.5 * facts["losses"][0]["loss"]
    assert facts["parity"]["answers_ended"] >= 1
    assert facts["parity"]["adapter_reloaded"] <= 1e-5
    assert facts["parity"]["merged"] <= 1e-3
    assert facts["steps"] == 8 * 6


def test_adapter_loads_in_stock_peft_and_equals_the_merged_folder(made: tuple[Made, Path], lively: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = made[1] / "out"
    base = AutoModelForCausalLM.from_pretrained(lively)
    adapted = PeftModel.from_pretrained(base, str(out / "adapter")).eval()
    merged = AutoModelForCausalLM.from_pretrained(out / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(out / "merged")
    ids = tokenizer("oil prices rose", return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(adapted(ids).logits, merged(ids).logits, atol=1e-4, rtol=0)
    assert merged.dtype == torch.float32
    assert tokenizer.chat_template


def test_tuned_model_opened_as_later_stages_do_answers_and_ends(made: tuple[Made, Path]) -> None:
    from inhouse.engines.transformers import open_model

    record = Artifact(
        id="t", kind="model", stage="s", node="n", stage_version="1", recipe="r", params={}, created="",
        facts=made[0].facts,
    )  # fmt: skip
    engine = open_model(Input(record, made[1] / "out"), dtype="fp32", threads=1)
    answers = engine.generate([row.prompt for row in rows()], 8, lambda _: None)
    assert {answer.finish for answer in answers} == {"stop"}
    assert sum(answer.text == row.answer for answer, row in zip(answers, rows(), strict=True)) >= 6


def test_artifact_holds_no_path_and_no_training_arguments(made: tuple[Made, Path], lively: Path) -> None:
    out = made[1] / "out"
    names = set(hashes(out))
    assert {"README.md", "adapter/adapter_config.json", "adapter/adapter_model.safetensors"} <= names
    assert {"merged/config.json", "merged/generation_config.json", "merged/model.safetensors"} <= names
    assert {"merged/tokenizer.json", "merged/chat_template.jinja"} <= names
    assert not any("training_args" in name for name in names)
    for name in names:
        assert str(lively).encode() not in (out / name).read_bytes(), name
        assert str(made[1]).encode() not in (out / name).read_bytes(), name
    assert json.loads((out / "adapter/adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"


def test_cards_tell_the_hubs_tools_what_is_known_and_nothing_else(lively: Path, dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset, tmp_path / "dataset")
    said = {"languages": {"en": 900, "zh": 99, "und": 90, "fr": 1}}
    (tmp_path / "dataset" / "dataset.json").write_text(json.dumps(said), encoding="utf-8")
    asked = context(lively, tmp_path / "dataset", tmp_path)
    base, data = asked.inputs["base"], asked.inputs["dataset"]
    known = base.record.model_copy(
        update={
            "facts": {**base.record.facts, "source": {"uri": "hf:org/tiny@main"}},
            "licences": (Licence(subject="tiny", spdx="Apache-2.0", source="test"),),
        }
    )
    sources = {"sources": [{"name": 'my: "desk"', "from": "a.csv"}, {"name": "b", "from": "b.csv"}]}
    inputs = {"base": replace(base, record=known)}
    inputs["dataset"] = replace(data, record=data.record.model_copy(update={"params": sources}))
    made = run(train_params(max_steps=2), replace(asked, inputs=inputs))
    told = {
        "license": "apache-2.0", "base_model": "org/tiny", "base_model_relation": "finetune",
        "datasets": ['my: "desk"', "b"], "language": ["en", "zh"], "library_name": "transformers",
        "pipeline_tag": "text-generation", "tags": ["inhouse"],
    }  # fmt: skip
    out = asked.out
    for folder in (out, out / "merged"):
        assert ModelCard.load(folder / "README.md").data.to_dict() == told
    adapter = {"base_model_relation": "adapter", "library_name": "peft", "tags": ["inhouse", "lora"]}
    assert ModelCard.load(out / "adapter" / "README.md").data.to_dict() == told | adapter
    assert made.facts["model"]["bytes"] == sum(p.stat().st_size for p in (out / "merged").iterdir())


def test_card_of_a_model_of_which_little_is_known_says_little(made: tuple[Made, Path]) -> None:
    assert ModelCard.load(made[1] / "out" / "merged" / "README.md").data.to_dict() == {
        "base_model": "tiny", "base_model_relation": "finetune", "library_name": "transformers",
        "pipeline_tag": "text-generation", "tags": ["inhouse"],
    }  # fmt: skip


def test_facts_describe_the_tuned_model(made: tuple[Made, Path]) -> None:
    facts = made[0].facts
    assert facts["model"]["main"] == "merged"
    assert facts["model"]["adapter"] == "adapter"
    assert set(facts["model"]["tensor_types"]) == {"F32"}
    assert 0 < facts["trainable_share"] < 1


def test_events_carry_loss_rate_and_memory(made: tuple[Made, Path]) -> None:
    events = [json.loads(line) for line in (made[1] / "events.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["event"] == "train.step"]
    assert {"loss", "learning_rate", "grad_norm", "memory_bytes"} <= set(steps[0])
    assert any(event.get("unit") == "steps" and event["tokens_per_s"] > 0 for event in events)


def test_cancel_stops_training_with_cancelled(tiny_llama: Path, dataset: Path, tmp_path: Path) -> None:
    here = context(tiny_llama, dataset, tmp_path)
    (tmp_path / "cancel").touch()
    with pytest.raises(Cancelled):
        run(train_params(), here)


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"max_length": 8}, "train.all_dropped"),
        ({"learning_rate": 1e30, "max_grad_norm": 1e30, "warmup_ratio": 0.0}, "train.diverged"),
        ({"precision": "fp16"}, "train.fp16_cpu"),
        ({"method": {"target_modules": ["q_porj"]}}, "train.no_target"),
        ({"method": {"target_modules": []}}, "train.no_target"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    tiny_llama: Path, dataset: Path, tmp_path: Path, settings: dict[str, object], code: str
) -> None:
    with pytest.raises(UserError) as error:
        run(train_params(**settings), context(tiny_llama, dataset, tmp_path))
    assert error.value.code == code
    assert str(error.value)


def test_target_modules_that_match_nothing_name_what_there_is(tiny_llama: Path, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="q_proj"):
        run(train_params(method={"target_modules": ["Wqkv"]}), context(tiny_llama, dataset, tmp_path))


def test_dataset_without_training_rows_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        run(train_params(), context(tiny_llama, tmp_path, tmp_path))
    assert error.value.code == "train.no_rows"


def test_remote_base_is_refused(tmp_path: Path, dataset: Path) -> None:
    remote = {"format": "remote", "main": "http://127.0.0.1:9/v1", "name": "far"}
    with pytest.raises(UserError) as error:
        run(train_params(), context(tmp_path, dataset, tmp_path, remote))
    assert error.value.code == "torch.remote"


def test_one_row_in_bf16_with_part_of_the_modules_trains(tiny_llama: Path, tmp_path: Path) -> None:
    params = train_params(
        method={"target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.0}, precision="bf16", max_steps=3
    )
    made = run(params, context(tiny_llama, write_dataset(tmp_path / "one", 1), tmp_path))
    assert made.facts["steps"] == 3
    assert made.facts["precision"] == "bfloat16"
    assert set(made.facts["model"]["tensor_types"]) == {"F32"}


def test_measuring_on_rows_held_back_changes_nothing_that_is_learned(tiny_llama: Path, tmp_path: Path) -> None:
    """With dropout, so that every step draws at random."""
    data = write_dataset(tmp_path / "data")
    write_rows(data, "valid", rows(5))
    found = []
    for every in (None, 1, 2):
        work = tmp_path / str(every)
        run(train_params(max_steps=4, eval_steps=every, logging_steps=1), context(tiny_llama, data, work))
        events = [json.loads(line) for line in (work / "events.jsonl").read_text(encoding="utf-8").splitlines()]
        found.append([(one["loss"], one["grad_norm"]) for one in events if one["event"] == "train.step"])
    assert len(found[0]) == 4 and found[0] == found[1] == found[2]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_activations_computed_again_in_bf16_give_the_same_weights(
    method: str, tiny_llama: Path, dataset: Path, tmp_path: Path
) -> None:
    found = []
    for again in (False, True):
        work = tmp_path / str(again)
        params = train_params(method={"use": method}, precision="bf16", max_steps=2, gradient_checkpointing=again)
        run(params, context(tiny_llama, dataset, work))
        found.append({name: known for name, known in hashes(work / "out").items() if name.endswith(".safetensors")})
    assert found[0] == found[1] and found[0]


def test_saved_in_bf16_when_asked(tiny_llama: Path, dataset: Path, tmp_path: Path) -> None:
    params = train_params(precision="bf16", save_dtype="bf16", max_steps=2, gradient_accumulation_steps=2)
    made = run(params, context(tiny_llama, dataset, tmp_path))
    assert set(made.facts["model"]["tensor_types"]) == {"BF16"}


def test_training_asks_no_hub(tiny_llama: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    run(train_params(max_steps=4, save_steps=2), context(tiny_llama, dataset, tmp_path))


def test_training_reads_nothing_from_outside(tmp_path: Path) -> None:
    assert external(train_params(), tmp_path) == {}
