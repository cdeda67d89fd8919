"""A tiny base, a LoRA adapter on it, the merged model, and a dataset: what the compress stage reads."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from inhouse.core.artifact import Artifact, Licence
from inhouse.core.protocols import Context, Input
from inhouse.core.rows import Message, Row
from inhouse.core.run import Events
from inhouse.dataset import write_rows

APACHE = Licence(subject="tiny", spdx="Apache-2.0", source="test")
TEXTS = [
    "oil prices rose 12.5 percent",
    "the bank cut its rate",
    "银行把基准利率下调了",
    "wheat exports fell",
    "net profit",
]


def model_input(folder: Path, main: str, form: str, name: str = "tiny desk", adapter: str | None = None) -> Input:
    facts = {"format": form, "main": main, "name": name, "architecture": "llama", "adapter": adapter}
    record = Artifact(
        id="0", kind="model", stage="s", node="n", stage_version="1", recipe="r", params={}, created="-",
        facts={"model": facts}, licences=(APACHE,),
    )  # fmt: skip
    return Input(record, folder)


@pytest.fixture(scope="session")
def trained(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Input, Input]:
    """(base, tuned): the tuned one has random LoRA weights that change its answers, beside the merged model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("tuned")
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    torch.manual_seed(1)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
    adapted.save_pretrained(folder / "adapter")
    adapted.merge_and_unload().save_pretrained(folder / "merged")
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(folder / "merged")
    return model_input(tiny_llama, ".", "safetensors"), model_input(folder, "merged", "safetensors", adapter="adapter")


@pytest.fixture(scope="session")
def converted(trained: tuple[Input, Input], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tuned model as the converter writes it (F16), made once: the converter takes seconds to import torch."""
    from inhouse.compress.convert import convert

    target = tmp_path_factory.mktemp("converted") / "f16.gguf"
    convert(trained[1].path / "merged", target, "tiny desk", Events())
    return target


@pytest.fixture
def context(trained: tuple[Input, Input], converted: Path, tmp_path: Path) -> Context:
    """What flow gives the stage, as after a kill in the middle: the conversion is done, the rest is not."""
    rows = [
        Row(
            id=hashlib.sha256(str(at).encode()).hexdigest()[:16],
            messages=[
                Message(role="user", content=f"{TEXTS[at % 5]} {at}"),
                Message(role="assistant", content="grain"),
            ],
            source="test",
            offset=at,
        )
        for at in range(10)
    ]
    for name in ("out", "scratch", "data"):
        (tmp_path / name).mkdir()
    shutil.copy(converted, tmp_path / "scratch" / "f16.gguf")
    write_rows(tmp_path / "data", "test", rows)
    dataset = Artifact(
        id="1", kind="dataset", stage="s", node="n", stage_version="1", recipe="r", params={}, created="-"
    )
    inputs = {"base": trained[0], "tuned": trained[1], "dataset": Input(dataset, tmp_path / "data")}
    events = Events(tmp_path / "events.jsonl")
    return Context(inputs, tmp_path / "out", tmp_path / "scratch", tmp_path, tmp_path, events, seed=7, offline=True)


@pytest.fixture
def as_input() -> Callable[..., Input]:
    """Makes an input of a folder, the model's path in it, and its format."""
    return model_input


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread: tiny models gain nothing from more, and spinning threads starve each other on a busy machine."""
    monkeypatch.setenv("INHOUSE_THREADS", "1")
