"""Every family: tiny and random, five steps, saved, reloaded and merged without a difference."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES, as_input, make_family
from tiny_training import context, train_params, write_dataset

from inhouse.engines.adapters import open_adapter
from inhouse.engines.transformers import load_model
from inhouse.train.methods.lora import Lora, attach
from inhouse.train.stage import run

WRITING = sorted(name for name, family in FAMILIES.items() if family.causal)
LEAST = 1e-5  # relative to the largest logit


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("dataset"), 8)


@pytest.fixture(scope="module", autouse=True)
def _quick_collection() -> Iterator[None]:
    """Training collects garbage twice; with all of torch on the heap that takes longer than the training here."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def apart(left: Any, right: Any) -> float:
    return float((left - right).abs().max() / left.abs().max())


def logits_of(model: Any, ids: Any) -> Any:
    import torch

    with torch.no_grad():
        return model.eval()(ids).logits


@pytest.mark.parametrize("name", WRITING)
def test_family_trained_saved_reloaded_and_merged_gives_equal_logits(
    name: str, tiny_llama: Path, dataset: Path, tmp_path: Path
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = make_family(name, tiny_llama, tmp_path / "base")
    made = run(train_params(max_steps=5, save_steps=50), context(folder, dataset, tmp_path))
    assert made.facts["parity"]["adapter_reloaded"] == 0  # by stock PEFT, to the last bit
    ids = torch.arange(3, 43)[None]
    base = AutoModelForCausalLM.from_pretrained(folder)
    untuned = logits_of(base, ids)
    adapted = logits_of(PeftModel.from_pretrained(base, str(tmp_path / "out" / "adapter")), ids)
    merged = logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "merged"), ids)
    assert apart(adapted, merged) <= LEAST
    assert apart(untuned, merged) > 1e-4


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_experts_of_a_mixture_are_adapted_when_asked(name: str, tiny_llama: Path, tmp_path: Path) -> None:
    import torch

    folder = as_input(make_family(name, tiny_llama, tmp_path / "base"))
    adapted = attach(load_model(folder, "fp32").requires_grad_(False), Lora(experts=True, lora_dropout=0.0))
    assert any("experts" in path for path, value in adapted.named_parameters() if value.requires_grad)
    ids = torch.arange(3, 43).view(4, 10)
    step_plainly(adapted, {"input_ids": ids, "labels": ids})
    memory = logits_of(adapted, ids)
    adapted.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    reloaded = open_adapter(load_model(folder, "fp32"), tmp_path / "adapter", "base")
    assert apart(memory, logits_of(reloaded, ids)) <= LEAST
    assert apart(memory, logits_of(reloaded.merge_and_unload(), ids)) <= LEAST


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_routers_of_experts_are_not_trained(name: str, tiny_llama: Path, tmp_path: Path) -> None:
    model = load_model(as_input(make_family(name, tiny_llama, tmp_path / "base")), "fp32")
    adapted = attach(model, Lora())
    trained = [path for path, value in adapted.named_parameters() if value.requires_grad]
    assert any("q_proj" in path for path in trained)
    assert not any("gate." in path for path in trained)


def test_transposed_weights_of_gpt2_are_named_as_such(tiny_llama: Path, tmp_path: Path) -> None:
    model = load_model(as_input(make_family("gpt2", tiny_llama, tmp_path / "base")), "fp32")
    assert attach(model, Lora(target_modules=("c_attn",))).peft_config["default"].fan_in_fan_out is True


def step_plainly(model: Any, batch: dict[str, Any]) -> None:
    """Five steps outside of the stage, for models that write no text: to be `run` with the objective classify."""
    import torch

    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    model.train()
    for _ in range(5):
        optimiser.zero_grad()
        model(**batch).loss.backward()
        optimiser.step()


@pytest.mark.parametrize("task", ["masked", "classify"])
def test_bert_trained_saved_reloaded_and_merged_gives_equal_logits(task: str, tiny_llama: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    folder = make_family("bert", tiny_llama, tmp_path / "base")
    ids = torch.arange(3, 43).view(4, 10)
    labels = ids
    if task == "classify":
        AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).save_pretrained(folder)
        labels = torch.tensor([0, 1, 2, 0])
    adapted = attach(load_model(as_input(folder), "fp32").requires_grad_(False), Lora(lora_dropout=0.0))
    step_plainly(adapted, {"input_ids": ids, "labels": labels})
    memory = logits_of(adapted, ids)
    adapted.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=False)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["task_type"] == ("SEQ_CLS" if task == "classify" else None)
    reloaded = open_adapter(load_model(as_input(folder), "fp32"), tmp_path / "adapter", "base")
    assert apart(memory, logits_of(reloaded, ids)) <= LEAST
    reloaded.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = load_model(as_input(tmp_path / "merged"), "fp32")
    assert memory.shape == ((4, 3) if task == "classify" else (4, 10, merged.config.vocab_size))
    assert apart(memory, logits_of(merged, ids)) <= LEAST
