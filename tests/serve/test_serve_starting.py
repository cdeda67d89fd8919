"""Adapters over a base that is not the one they were trained on."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from inhouse.core.artifact import Artifact
from inhouse.core.errors import UserError
from inhouse.core.store import Store
from inhouse.serve.starting import check_bases


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "workspace")
    made.create()
    return made


def model(store: Store, name: str, stage: str, called: str, **inputs: str) -> str:
    """A model's record; one that was trained holds an adapter that names its base, as trainings write it."""
    base = inputs.get("base")
    facts = {"format": "safetensors", "main": "merged", "name": called, "adapter": "adapter" if base else None}
    record = Artifact(
        id=name, kind="model", stage=stage, node="n", stage_version="1", recipe="r", params={}, created="-",
        inputs=inputs, facts={"model": facts},
    )  # fmt: skip
    store.path(name).mkdir()
    (store.path(name) / "record.json").write_text(record.model_dump_json())
    if base:
        beneath = store.get(base)
        said = f"{called}-{base}" if beneath.stage == "train" else beneath.facts["model"]["name"]
        adapter(store.path(name) / "adapter", said)
    return name


def adapter(folder: Path, base: str | None) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    return folder


def test_adapter_trained_on_another_model_is_refused_by_its_record(store: Store) -> None:
    base, other = model(store, "aaa", "select", "desk"), model(store, "bbb", "select", "law")
    tuned = model(store, "ccc", "train", "desk", base=base)
    chained = model(store, "ddd", "train", "desk", base=tuned)
    exported = model(store, "eee", "compress", "desk", base=base)
    whole = model(store, "fff", "compress", "desk", base=base, tuned=tuned)
    for served, fits in ((base, tuned), (exported, tuned), (tuned, chained), (whole, chained)):
        check_bases(store, served, {"mine": fits})
    for served, strange in ((other, tuned), (tuned, tuned), (whole, tuned), (base, chained), (exported, chained)):
        with pytest.raises(UserError) as caught:
            check_bases(store, served, {"mine": strange})
        assert caught.value.code == "serve_pool.adapter_base"
        assert str(store.path(strange) / "adapter") in str(caught.value)  # the way out, where only names differ


def test_adapter_of_the_same_model_under_another_name_is_served(store: Store) -> None:
    base, renamed = model(store, "aaa", "select", "desk"), model(store, "bbb", "select", "DESK")
    check_bases(store, renamed, {"mine": model(store, "ccc", "train", "desk", base=base)})


def test_folder_that_names_another_base_is_told_in_the_log(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    served = model(store, "aaa", "select", "Desk-135M")
    with caplog.at_level(logging.WARNING, "inhouse.serve"):
        check_bases(store, served, {"same": str(adapter(tmp_path / "one", "org/desk-135m"))})
        check_bases(store, served, {"silent": str(adapter(tmp_path / "two", None))})
        assert not caplog.records
        check_bases(store, served, {"law": str(adapter(tmp_path / "three", "org/Law-7B"))})
    assert [record.getMessage() for record in caplog.records] == [
        "the adapter law names Law-7B as its base, and Desk-135M is served"
    ]
