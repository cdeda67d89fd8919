"""`hf:` and `ms:` sources against a real HTTP server on the loopback that speaks the hubs' protocols."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlparse

import pytest

from inhouse.core.errors import UserError
from inhouse.core.run import Events
from inhouse.sources import fetch
from inhouse.sources.hub import choose, is_wanted, parse

COMMIT = "1" * 40
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": bytes(range(256)) * 40,
    "tokenizer.json": b"{}",
    "README.md": b"---\nlicense: apache-2.0\n---\n",
    "LICENSE": b"Apache License\nVersion 2.0",
    "pytorch_model.bin": b"pickle",
    "modeling_evil.py": b"import os",
    "onnx/model.onnx": b"onnx",
    "weights/model-Q8_0.gguf": b"GGUF",
}


@dataclass
class Hub:
    """What the server holds and what it was asked for."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=lambda: dict(FILES))
    status: int = 200
    asked: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    wrong_hash: bool = False
    listing: bytes | None = None

    def hash_of(self, content: bytes) -> str:
        return "0" * 64 if self.wrong_hash else hashlib.sha256(content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers as the hubs do, from the state that the server carries."""

    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        url = urlparse(self.path)
        self.hub.asked.append(url.path)
        if self.hub.status != 200:
            self.send({}, b'{"error": "no"}', self.hub.status)
        elif url.path.startswith("/api/models/org/name") or url.path.startswith("/api/datasets/org/name"):
            self.send({"Content-Type": "application/json"}, self.hf_listing())
        elif "/org/name/resolve/" in url.path:
            self.file(unquote(url.path.split(f"/{COMMIT}/")[1]))
        elif url.path.endswith("/repo/files"):
            self.send({"Content-Type": "application/json"}, self.hub.listing or self.ms_listing())
        else:
            self.file(parse_qs(url.query)["FilePath"][0])

    def hf_listing(self):
        siblings = [{"rfilename": n, "size": len(c)} for n, c in self.hub.files.items()]
        return json.dumps({"id": "org/name", "modelId": "org/name", "sha": COMMIT, "siblings": siblings}).encode()

    def ms_listing(self):
        files = [
            {"Path": n, "Size": len(c), "Type": "blob", "Sha256": self.hub.hash_of(c)}
            for n, c in self.hub.files.items()
        ]
        return json.dumps({"Code": 200, "Data": {"Files": [*files, {"Path": "onnx", "Type": "tree"}]}}).encode()

    def file(self, name):
        content = self.hub.files[name]
        start = 0
        if wanted := self.headers.get("Range"):
            self.hub.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").split("-")[0])
        etag = hashlib.sha256(content).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.send(headers, content[start:], 206 if start else 200)

    def send(self, headers, body, status=200):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch) -> Iterator[Hub]:
    """A running hub that HF_ENDPOINT and MODELSCOPE_ENDPOINT point at."""
    state = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub = state
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    for name in ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT"):
        monkeypatch.setenv(name, state.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "INHOUSE_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    yield state
    server.shutdown()
    server.server_close()


SAFE = {"config.json", "model.safetensors", "tokenizer.json", "README.md", "LICENSE"}


@pytest.mark.parametrize("scheme", ["hf", "ms"])
def test_repository_is_fetched_without_pickles_and_code(scheme, hub, tmp_path):
    folder = fetch(f"{scheme}:org/name", tmp_path, offline=False)
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert found == {name: FILES[name] for name in SAFE}


@pytest.mark.parametrize("scheme", ["hf", "ms"])
def test_one_file_of_a_repository_is_fetched_with_its_terms(scheme, hub, tmp_path):
    path = fetch(f"{scheme}:org/name@v1#weights/model-Q8_0.gguf", tmp_path, offline=False)
    assert path.read_bytes() == b"GGUF"
    content = path.parent.parent
    assert {p.name for p in content.rglob("*") if p.is_file()} == {"model-Q8_0.gguf", "README.md", "LICENSE"}


@pytest.mark.parametrize("scheme", ["hf", "ms"])
def test_pin_of_one_file_of_a_repository_is_checked(scheme, hub, tmp_path):
    uri = f"{scheme}:org/name#weights/model-Q8_0.gguf"
    right = hashlib.sha256(b"GGUF").hexdigest()
    assert fetch(uri, tmp_path / "a", offline=False, sha256=right).read_bytes() == b"GGUF"
    with pytest.raises(UserError) as caught:
        fetch(uri, tmp_path / "b", offline=False, sha256="0" * 64)
    assert caught.value.code == "sources.sha256"


def test_pin_of_a_folder_is_refused(hub, tmp_path):
    with pytest.raises(UserError) as caught:
        fetch("ms:org/name", tmp_path, offline=False, sha256="0" * 64)
    assert caught.value.code == "sources.pinned_folder"


def test_file_of_a_dataset_is_fetched(hub, tmp_path):
    hub.files["data/train.jsonl"] = b"{}"
    path = fetch("hf:datasets/org/name#data/train.jsonl", tmp_path, offline=False)
    assert path.read_bytes() == b"{}"
    assert any("/api/datasets/org/name" in asked for asked in hub.asked)


@pytest.mark.parametrize(
    ("uri", "code"),
    [("hf:datasets/org/name", "sources.dataset_file"), ("ms:datasets/org/name#a", "sources.ms_dataset")],
)
def test_dataset_that_cannot_be_fetched_is_explained(uri, code, tmp_path):
    with pytest.raises(UserError) as caught:
        fetch(uri, tmp_path, offline=False)
    assert caught.value.code == code


@pytest.mark.parametrize("scheme", ["hf", "ms"])
def test_second_fetch_asks_the_hub_nothing(scheme, hub, tmp_path):
    first = fetch(f"{scheme}:org/name", tmp_path, offline=False)
    hub.asked.clear()
    assert fetch(f"{scheme}:org/name", tmp_path, offline=False) == first
    assert hub.asked == []


def test_hf_source_records_the_commit_it_resolved(hub, tmp_path):
    folder = fetch("hf:org/name@main", tmp_path, offline=False)
    assert json.loads((folder.parent / "source.json").read_text())["commit"] == COMMIT


@pytest.mark.parametrize("scheme", ["hf", "ms"])
@pytest.mark.parametrize(
    ("status", "code"),
    [
        (404, {"sources.not_found"}),
        (401, {"sources.not_permitted", "sources.not_public", "sources.not_found"}),
        (403, {"sources.not_permitted", "sources.not_public"}),
        (418, {"sources.hub"}),
    ],
)
def test_refusal_of_the_hub_is_explained(scheme, status, code, hub, tmp_path):
    hub.status = status
    with pytest.raises(UserError) as caught:
        fetch(f"{scheme}:org/name", tmp_path, offline=False)
    assert caught.value.code in code
    assert "org/name" in str(caught.value)


@pytest.mark.parametrize(("scheme", "name"), [("hf", "HF_ENDPOINT"), ("ms", "MODELSCOPE_ENDPOINT")])
def test_hub_that_is_down_is_a_network_error(scheme, name, hub, tmp_path, monkeypatch):
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    with pytest.raises(UserError) as caught:
        fetch(f"{scheme}:org/name", tmp_path, offline=False)
    assert caught.value.code == "sources.network"


def test_ms_file_with_another_hash_than_listed_is_refused(hub, tmp_path):
    hub.wrong_hash = True
    with pytest.raises(UserError) as caught:
        fetch("ms:org/name", tmp_path, offline=False)
    assert caught.value.code == "sources.sha256"
    assert not list(tmp_path.rglob("*.safetensors"))


def test_ms_answer_that_is_no_list_is_explained(hub, tmp_path):
    hub.listing = b"<html>"
    with pytest.raises(UserError) as caught:
        fetch("ms:org/name", tmp_path, offline=False)
    assert caught.value.code == "sources.hub"


def test_ms_download_goes_on_where_it_stopped(hub, tmp_path):
    entry = fetch("ms:org/name", tmp_path / "a", offline=False).parent
    part = tmp_path / "b" / "ms" / f".{entry.name}.part" / "content"
    part.mkdir(parents=True)
    (part / "model.safetensors").write_bytes(FILES["model.safetensors"][:1000])
    (part / "config.json").write_bytes(FILES["config.json"])
    folder = fetch("ms:org/name", tmp_path / "b", offline=False)
    assert hub.ranges == ["bytes=1000-"]
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_ms_download_reports_progress_up_to_all_bytes(hub, tmp_path):
    log = tmp_path / "events.jsonl"
    fetch("ms:org/name", tmp_path / "cache", offline=False, events=Events(log))
    last = json.loads(log.read_text().splitlines()[-1])
    assert last["done"] == last["total"] == sum(len(FILES[n]) for n in SAFE)


def test_download_larger_than_the_disk_is_refused_before_it_begins(hub, tmp_path):
    listed = [{"Path": "model.safetensors", "Size": 2**60, "Type": "blob"}]
    hub.listing = json.dumps({"Data": {"Files": listed}}).encode()
    with pytest.raises(UserError) as caught:
        fetch("ms:org/name", tmp_path, offline=False)
    assert caught.value.code == "store.no_space"


@pytest.mark.parametrize("uri", ["hf:name", "hf:a/b/c", "ms:../x", "hf:org/name#../x", "hf:org/name@", "hf:-o/n"])
def test_uri_that_names_no_repository_is_refused(uri):
    with pytest.raises(UserError) as caught:
        parse(uri)
    assert caught.value.code == "sources.hub_uri"


@pytest.mark.parametrize(
    ("files", "file", "code"),
    [
        (["config.json", "pytorch_model.bin"], None, "sources.no_safe_weights"),
        (["a.gguf", "b.gguf"], None, "sources.choose_file"),
        (["a.gguf"], "c.gguf", "sources.no_file"),
        (["a.gguf", "x.bin"], "x.bin", "sources.no_file"),
    ],
)
def test_repository_without_a_clear_choice_is_refused(files, file, code):
    name = parse("hf:org/name" + (f"#{file}" if file else ""))
    with pytest.raises(UserError) as caught:
        choose("hf:org/name", name, dict.fromkeys(files, 1))
    assert caught.value.code == code


def test_only_gguf_of_a_repository_is_chosen():
    assert choose("hf:o/n", parse("hf:o/n"), {"a.gguf": 1, "README.md": 1}) == ["README.md", "a.gguf"]


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("model-00001-of-00002.safetensors", True),
        ("checkpoint-5/model.safetensors", False),
        ("adapter_model.safetensors", False),
        ("tokenizer.model", True),
        ("original/params.json", False),
        (".gitattributes", False),
        ("USE_POLICY.md", True),
        ("run.py", False),
        ("LICENSE.exe", False),
    ],
)
def test_wanted_files_of_a_model(path, wanted):
    assert is_wanted(path) is wanted


def hub_cache(folder, files, commit=COMMIT):
    """What huggingface_hub leaves of a download: blobs, and a snapshot of links to them."""
    home = folder / "models--org--name"
    (home / "blobs").mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    for name, content in files.items():
        blob = home / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        link = home / "snapshots" / commit / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)


@pytest.mark.parametrize("revision", ["", "@main", f"@{COMMIT}"])
def test_offline_the_cache_of_huggingface_hub_is_read_and_left_as_it_is(revision, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    hub_cache(tmp_path / "hf" / "hub", FILES)
    folder = fetch(f"hf:org/name{revision}", tmp_path / "own", offline=True)
    assert {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == {name: FILES[name] for name in SAFE}
    assert json.loads((folder.parent / "source.json").read_text())["commit"] == COMMIT
    kept = list((tmp_path / "hf").glob("hub/*/blobs/*"))
    assert kept and all(blob.stat().st_mode & 0o200 for blob in kept)


def test_offline_a_cache_without_all_of_the_weights_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    index = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode()
    hub_cache(tmp_path / "hub", {"model.safetensors.index.json": index, "model-1.safetensors": b"1"})
    with pytest.raises(UserError) as caught:
        fetch("hf:org/name", tmp_path / "own", offline=True)
    assert caught.value.code == "sources.incomplete" and "model-2.safetensors" in str(caught.value)
    with pytest.raises(UserError) as caught:
        fetch("hf:org/name@v2", tmp_path / "own", offline=True)
    assert caught.value.code == "sources.offline"
