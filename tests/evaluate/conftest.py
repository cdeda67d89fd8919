"""Datasets and a model artifact for the evaluate room."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from known_answers import LABELS, make_rows, record

from inhouse.core.artifact import FileEntry
from inhouse.core.protocols import Input
from inhouse.dataset import write_rows

Make = Callable[..., Input]


@pytest.fixture
def dataset(tmp_path: Path) -> Make:
    """Make a dataset artifact of so many test rows."""

    def make(count: int = 12, labelled: bool = True, labels: object = None) -> Input:
        folder = tmp_path / f"dataset-{count}-{labelled}"
        folder.mkdir(exist_ok=True)
        write_rows(folder, "test", make_rows(count, labelled))
        listed = labels if labels is not None else (LABELS if labelled else [])
        (folder / "dataset.json").write_text(json.dumps({"labels": listed}), encoding="utf-8")
        return Input(record("d" * 24, kind="dataset"), folder)

    return make


@pytest.fixture
def model(tmp_path: Path) -> Input:
    """A model artifact's record; its file is never opened by KnownAnswers."""
    facts = {"model": {"format": "gguf", "main": "m.gguf", "name": "tiny", "parameters": 7}}
    files = (FileEntry(path="m.gguf", bytes=5_000_000, sha256="0" * 64), FileEntry(path="x", bytes=1, sha256="1" * 64))
    return Input(record(facts=facts, files=files), tmp_path)
