"""Which source a URI names, and local files and folders."""

from __future__ import annotations

import hashlib

import pytest

from inhouse.core.errors import UserError
from inhouse.sources import fetch, fingerprint, scheme_of


@pytest.mark.parametrize(
    ("uri", "scheme"),
    [
        ("pypi:a==1#b", "pypi"),
        ("hf:org/name", "hf"),
        ("ms:org/name@v1", "ms"),
        ("http://127.0.0.1:8000/v1", "http"),
        ("HTTPS://host/v1", "https"),
        ("models/tiny", "local"),
        ("./a.gguf", "local"),
        ("C:\\models\\a.gguf", "local"),
        ("模型/甲.gguf", "local"),
    ],
)
def test_scheme_of_a_uri(uri, scheme):
    assert scheme_of(uri) == scheme


def test_unknown_scheme_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(UserError) as caught:
        fetch("s3:bucket/x", tmp_path, offline=False)
    assert caught.value.code == "sources.scheme"
    assert "pypi:" in str(caught.value)


def test_local_path_starts_at_the_project_folder(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    assert fetch("a.gguf", tmp_path / "cache", offline=True, project_dir=tmp_path) == (tmp_path / "a.gguf").resolve()


def test_local_path_that_is_absent_is_named(tmp_path):
    with pytest.raises(UserError) as caught:
        fetch("none.gguf", tmp_path / "cache", offline=True, project_dir=tmp_path)
    assert caught.value.code == "sources.missing"
    assert str(tmp_path / "none.gguf") in str(caught.value)


def test_local_file_with_another_hash_than_pinned_is_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    with pytest.raises(UserError) as caught:
        fetch("a", tmp_path / "cache", offline=True, project_dir=tmp_path, sha256="0" * 64)
    assert caught.value.code == "sources.sha256"
    right = hashlib.sha256(b"1").hexdigest()
    assert fetch("a", tmp_path / "cache", offline=True, project_dir=tmp_path, sha256=right).exists()


def test_web_address_is_not_fetched(tmp_path):
    with pytest.raises(UserError) as caught:
        fetch("https://example.org/model.gguf", tmp_path, offline=False)
    assert caught.value.code == "sources.url"


def test_fingerprint_of_a_local_file_is_its_hash(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert fingerprint("a", tmp_path) == hashlib.sha256(b"abc").hexdigest()


def test_fingerprint_of_a_folder_changes_with_content_and_names_only(tmp_path):
    folder = tmp_path / "m"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a").write_bytes(b"1")
    first = fingerprint("m", tmp_path)
    (folder / "sub" / "a").touch()
    assert fingerprint("m", tmp_path) == first
    (folder / "sub" / "a").write_bytes(b"2")
    changed = fingerprint("m", tmp_path)
    (folder / "sub" / "a").rename(folder / "sub" / "b")
    assert len({first, changed, fingerprint("m", tmp_path)}) == 3


def test_fingerprint_of_a_large_file_is_remembered_in_the_workspace(tmp_path, monkeypatch):
    monkeypatch.setenv("INHOUSE_WORKSPACE", str(tmp_path / "ws"))
    with (tmp_path / "big").open("wb") as f:
        f.truncate(64 * 2**20)
    expected = hashlib.sha256(bytes(64 * 2**20)).hexdigest()
    assert fingerprint("big", tmp_path) == expected
    assert expected in (tmp_path / "ws" / "hashes.json").read_text()
