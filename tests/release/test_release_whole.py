"""A release's model is served only while it has the bytes it was released with."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from release_workspace import make_model, publish

from inhouse.core.artifact import Artifact
from inhouse.core.errors import UserError
from inhouse.core.model import ModelFacts
from inhouse.core.store import Store
from inhouse.release.stage import main_hash
from inhouse.release.whole import check_hash


def release_of(store: Store, model: Artifact) -> str:
    facts = ModelFacts.model_validate(model.facts["model"])
    told = {"artifact": model.id, "main": facts.main, "sha256": main_hash(model, facts), "format": facts.format}
    return publish(store, "release", {"release.json": json.dumps({"model": told}).encode()}, {"passed": True}).id


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "workspace")
    made.create()
    return made


def folder_model(store: Store, main: str) -> Artifact:
    prefix = "" if main == "." else f"{main}/"
    files = {f"{prefix}config.json": b"{}", f"{prefix}model.safetensors": b"weights", "measured/t.json": b"1"}
    facts = {"model": {"format": "safetensors", "main": main, "name": "m"}}
    return publish(store, "model", files, facts)


def refused(store: Store, release: str, again: bool = False) -> str:
    with pytest.raises(UserError) as caught:
        check_hash(store, release, again)
    return caught.value.code


@pytest.mark.parametrize("main", [".", "merged"])
def test_folder_that_changed_grew_or_lost_a_file_is_not_served(store: Store, main: str) -> None:
    model = folder_model(store, main)
    release = release_of(store, model)
    folder = check_hash(store, release)
    (folder / "evil.py").write_text("import os")
    assert refused(store, release) == "release.model_changed"
    (folder / "evil.py").unlink()
    assert check_hash(store, release) == folder
    (folder / "model.safetensors").write_bytes(b"WEIGHTS")
    assert refused(store, release) == "release.model_changed"
    (folder / "model.safetensors").unlink()
    assert refused(store, release) == "release.model_changed"


def test_unchanged_file_is_read_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    release = release_of(store, make_model(store, b"GGUF" * 1000))
    path = check_hash(store, release)
    monkeypatch.setattr("inhouse.core.fingerprint.hash_file", lambda _: pytest.fail("it was read again"))
    assert check_hash(store, release) == path


def test_changed_file_is_refused_and_one_damaged_in_place_when_read_again(store: Store) -> None:
    model = make_model(store, b"GGUF" * 1000)
    release = release_of(store, model)
    path = check_hash(store, release)
    before = path.stat()
    path.write_bytes(b"GGUX" * 1000)
    assert refused(store, release) == "release.model_changed"
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a disk changes bits: nothing else shows it
    check_hash(store, release)
    assert refused(store, release, again=True) == "release.model_changed"
    path.unlink()
    assert refused(store, release) == "release.files_gone"


def test_remote_model_has_no_files_to_check(store: Store) -> None:
    facts = {"model": {"format": "remote", "main": "http://host/v1", "name": "m"}}
    release = release_of(store, publish(store, "model", {"model.json": b"{}"}, facts))
    assert check_hash(store, release) is not None
