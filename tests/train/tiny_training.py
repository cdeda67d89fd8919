"""A small dataset and the context of a training run, for tests."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from inhouse.core.artifact import Artifact
from inhouse.core.protocols import Context, Input
from inhouse.core.rows import Message, Row
from inhouse.core.run import Events
from inhouse.dataset import write_rows
from inhouse.train.params import TrainParams

TEXTS = {"crude": "oil prices rose as opec cut output", "grain": "wheat and corn exports fell", "acq": "公司宣布收购"}


def rows(count: int = 24) -> list[Row]:
    """Rows of three desks, of differing length."""
    found = []
    for number in range(count):
        label = list(TEXTS)[number % 3]
        text = f"Route this to a desk. Which one? {TEXTS[label]} {'again ' * (number % 5)}{number}"
        turns = [Message(role="user", content=text), Message(role="assistant", content=label)]
        found.append(Row(id=f"{number:016x}", messages=turns, label=label, source="tiny", offset=number))
    return found


def train_params(**settings: Any) -> TrainParams:
    """Settings under which the tiny model learns within seconds."""
    plain = {"learning_rate": 0.02, "num_train_epochs": 3, "per_device_train_batch_size": 4, "save_steps": 3}
    method = {"use": "lora", "r": 8, "lora_alpha": 16, "lora_dropout": 0.1}
    return TrainParams.model_validate({"method": method, "precision": "fp32", "logging_steps": 2, **plain, **settings})


def context(model: Path, dataset: Path, work: Path, facts: dict[str, Any] | None = None) -> Context:
    """A context whose `out` starts empty and whose scratch is kept, as flow makes it."""
    shutil.rmtree(work / "out", ignore_errors=True)
    for name in ("out", "scratch"):
        (work / name).mkdir(parents=True, exist_ok=True)
    header = {"model": facts or {"format": "safetensors", "main": ".", "name": "tiny", "parameters": 30_000}}
    record = Artifact(
        id="m", kind="model", stage="s", node="n", stage_version="1", recipe="r", params={}, created="", facts=header
    )
    return Context(
        inputs={"base": Input(record, model), "dataset": Input(record, dataset)},
        out=work / "out",
        scratch=work / "scratch",
        sources=work / "sources",
        project_dir=work,
        events=Events(work / "events.jsonl"),
        seed=7,
        offline=True,
    )


def write_dataset(folder: Path, count: int = 24) -> Path:
    """A dataset artifact's training part."""
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder, "train", rows(count))
    return folder
