"""The select stage: resolving a base, its terms, and what ends up in the artifact."""

from __future__ import annotations

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from inhouse.core.errors import UserError
from inhouse.core.fingerprint import hash_file
from inhouse.core.protocols import Context
from inhouse.core.run import Events
from inhouse.select.known import catalogue, known_model
from inhouse.select.stage import ModelParams, choose, external, run
from inhouse.sources import scheme_of


def context_in(folder: Path, offline: bool = True) -> Context:
    """A context whose folders lie below `folder`."""
    for name in ("out", "scratch", "project"):
        (folder / name).mkdir(exist_ok=True)
    return Context(
        inputs={},
        out=folder / "out",
        scratch=folder / "scratch",
        sources=folder / "sources",
        project_dir=folder / "project",
        events=Events(folder / "events.jsonl"),
        seed=7,
        offline=offline,
    )


def notes(folder: Path) -> list[str]:
    """Codes of the notes that the stage made."""
    log = folder / "events.jsonl"
    events = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return [e["code"] for e in events if e["event"] == "note"]


@pytest.fixture
def local_model(tiny_llama, tmp_path) -> Path:
    """The tiny Llama as a user's folder with files that must stay behind."""
    import shutil

    folder = tmp_path / "project" / "tiny"
    shutil.copytree(tiny_llama, folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "LICENSE").write_text("Permission is hereby granted, free of charge, to any person")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    (folder / "modeling.py").write_text("raise SystemExit")
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5" / "model.safetensors").write_bytes(b"x")
    return folder


def test_local_folder_becomes_an_artifact_without_pickles_and_code(local_model, tmp_path):
    made = run(ModelParams(base="tiny"), context_in(tmp_path))
    names = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "LICENSE", "licence/LICENSE"} <= names
    assert not [n for n in names if n.endswith((".bin", ".py")) or "checkpoint" in n]
    assert made.facts["model"]["architecture"] == "llama"
    assert made.facts["source"] == {"uri": "tiny"}
    (licence,) = made.licences
    assert (licence.subject, licence.spdx, licence.source) == ("tiny", "MIT", "README.md, LICENSE")


def test_artifact_keeps_its_bytes_when_the_users_file_is_edited(local_model, tmp_path):
    run(ModelParams(base="tiny"), context_in(tmp_path))
    before = hash_file(tmp_path / "out" / "model.safetensors")
    with (local_model / "model.safetensors").open("r+b") as f:
        f.write(b"edited")
    assert hash_file(tmp_path / "out" / "model.safetensors") == before


def test_artifact_files_are_read_only(local_model, tmp_path):
    run(ModelParams(base="tiny"), context_in(tmp_path))
    assert (tmp_path / "out" / "model.safetensors").stat().st_mode & 0o222 == 0


def test_places_that_disagree_on_terms_are_noted(local_model, tmp_path):
    (local_model / "LICENSE").write_text("Apache License, Version 2.0")
    made = run(ModelParams(base="tiny"), context_in(tmp_path))
    assert [x.spdx for x in made.licences] == ["MIT", "Apache-2.0"]
    assert "select.licence_conflict" in notes(tmp_path)


def test_stated_licence_stands_and_notes_what_was_read(local_model, tmp_path):
    made = run(ModelParams(base="tiny", licence="apache-2.0"), context_in(tmp_path))
    (licence,) = made.licences
    assert (licence.spdx, licence.source) == ("Apache-2.0", "project file (model.licence)")
    assert licence.note == "read elsewhere: MIT (README.md); MIT (LICENSE)"


@pytest.mark.parametrize(("licence", "spdx"), [(None, "MIT"), ("LicenseRef-agreed", "LicenseRef-agreed")])
def test_stated_use_stands_in_the_records(licence, spdx, local_model, tmp_path):
    made = run(ModelParams(base="tiny", licence=licence, allowed_use="evaluation"), context_in(tmp_path))
    (record,) = made.licences
    assert (record.spdx, record.use) == (spdx, "evaluation")
    assert record.source.endswith("use: project file (model.allowed_use)")


def test_model_without_terms_is_noted_as_unknown(local_model, tmp_path):
    (local_model / "LICENSE").unlink()
    (local_model / "README.md").unlink()
    made = run(ModelParams(base="tiny"), context_in(tmp_path))
    assert [(x.spdx, x.use) for x in made.licences] == [("LicenseRef-unknown", "unknown")]
    assert "select.no_licence" in notes(tmp_path)


def test_family_that_was_not_tried_is_noted(local_model, tmp_path):
    config = json.loads((local_model / "config.json").read_text())
    (local_model / "config.json").write_text(json.dumps({**config, "model_type": "odd"}))
    run(ModelParams(base="tiny"), context_in(tmp_path))
    assert "select.untried_family" in notes(tmp_path)


@pytest.mark.real
def test_catalogue_model_is_linked_with_its_terms(smollm2_gguf, tmp_path, monkeypatch):
    cache = smollm2_gguf.parents[3]
    context = context_in(tmp_path)
    context = Context(**{**vars(context), "sources": cache})
    monkeypatch.setattr(socket, "socket", None)
    made = run(ModelParams(base="smollm2-135m-instruct"), context)
    placed = tmp_path / "out" / smollm2_gguf.name
    assert hash_file(placed) == catalogue()["smollm2-135m-instruct"].sha256
    (licence,) = made.licences
    assert licence.spdx == "Apache-2.0"
    assert licence.source == "catalogue, wheel METADATA, LICENSE, GGUF general.license"
    assert made.facts["model"]["name"] == "smollm2-135m-instruct"
    assert notes(tmp_path) == []


def test_gguf_in_a_folder_is_placed_alone(write_gguf, tmp_path):
    context = context_in(tmp_path)
    folder = context.project_dir / "quantised"
    folder.mkdir()
    write_gguf(folder / "m.gguf")
    (folder / "other.txt").write_text("x")
    run(ModelParams(base="quantised"), context)
    assert [p.name for p in context.out.iterdir()] == ["m.gguf"]


def test_model_larger_than_the_disk_is_refused(local_model, tmp_path, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(UserError) as caught:
        run(ModelParams(base="tiny"), context_in(tmp_path))
    assert caught.value.code == "store.no_space"


def test_unknown_name_is_answered_with_the_nearest_and_all(tmp_path):
    with pytest.raises(UserError) as caught:
        external(ModelParams(base="smollm2-135m-instuct"), tmp_path)
    assert caught.value.code == "select.unknown"
    assert "'smollm2-135m-instruct'" in str(caught.value)
    assert "qwen3-0.6b" in str(caught.value)
    assert known_model("QWEN3-0.6B").uri == "hf:Qwen/Qwen3-0.6B"


def test_path_that_is_absent_is_not_taken_for_a_name(tmp_path):
    with pytest.raises(UserError) as caught:
        external(ModelParams(base="./nowhere"), tmp_path)
    assert caught.value.code == "sources.missing"


def test_external_of_a_pinned_base_is_its_hash(tmp_path):
    params = ModelParams(base="smollm2-135m-instruct")
    (value,) = external(params, tmp_path).values()
    assert value == catalogue()["smollm2-135m-instruct"].sha256
    assert external(ModelParams(base="hf:o/n"), tmp_path) == {"hf:o/n": "hf:o/n"}


def test_revision_of_a_hub_model_enters_its_uri(tmp_path):
    assert choose(ModelParams(base="hf:o/n#a.gguf", revision="v2"), tmp_path).uri == "hf:o/n@v2#a.gguf"
    assert choose(ModelParams(base="qwen3-0.6b", revision="v2"), tmp_path).uri == "hf:Qwen/Qwen3-0.6B@v2"


@pytest.mark.parametrize("base", ["./folder", "hf:o/n@v1", "smollm2-135m-instruct", "http://127.0.0.1/v1"])
def test_revision_of_anything_else_is_refused(base, tmp_path):
    with pytest.raises(UserError) as caught:
        choose(ModelParams(base=base, revision="v2"), tmp_path)
    assert caught.value.code == "select.revision"


def test_every_catalogue_entry_names_a_source_and_its_shape_is_consistent():
    from inhouse.sources import hub, pypi
    from inhouse.sources.licences import normal

    for model in catalogue().values():
        parse = {"pypi": pypi.parse, "hf": hub.parse}[scheme_of(model.uri)]
        assert parse(model.uri)
        assert normal(model.licence) == model.licence
        embeddings = model.vocabulary * model.hidden
        assert embeddings < model.parameters
        assert model.heads % model.kv_heads == 0
    assert list(catalogue()) == sorted(catalogue(), key=lambda n: catalogue()[n].parameters)


class ModelList(BaseHTTPRequestHandler):
    """GET /v1/models of an OpenAI-compatible server."""

    def do_GET(self):
        self.server.keys.append(self.headers.get("Authorization"))
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    """A server with one model, whose answer a test may change."""
    found = ThreadingHTTPServer(("127.0.0.1", 0), ModelList)
    found.status, found.body, found.keys = 200, b'{"data": [{"id": "org/served"}]}', []
    threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True).start()
    found.url = f"http://127.0.0.1:{found.server_port}/v1"
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    yield found
    found.shutdown()
    found.server_close()


def test_remote_model_is_looked_up_and_recorded(server, tmp_path):
    made = run(ModelParams(base=server.url), context_in(tmp_path, offline=False))
    model = made.facts["model"]
    assert (model["format"], model["main"], model["name"]) == ("remote", server.url, "org/served")
    assert json.loads((tmp_path / "out" / "remote.json").read_text()) == {"url": server.url, "model": "org/served"}
    assert made.licences[0].use == "unknown"


def test_key_goes_only_to_the_server_it_was_set_for(server, tmp_path, monkeypatch):
    run(ModelParams(base=server.url), context_in(tmp_path, offline=False))
    monkeypatch.setenv("OPENAI_BASE_URL", server.url + "/")
    run(ModelParams(base=server.url), context_in(tmp_path, offline=False))
    assert server.keys == [None, "Bearer secret"]


@pytest.mark.parametrize(
    ("status", "body", "name", "code"),
    [
        (500, b"", None, "select.remote_answer"),
        (200, b"<html>", None, "select.remote_answer"),
        (200, b'{"data": 1}', None, "select.remote_answer"),
        (200, b'{"data": [{"id": "a"}, {"id": "b"}]}', None, "select.remote_choose"),
        (200, b'{"data": []}', None, "select.remote_choose"),
        (200, b'{"data": [{"id": "a"}]}', "c", "select.remote_choose"),
    ],
)
def test_remote_answer_that_settles_nothing_is_explained(status, body, name, code, server, tmp_path):
    server.status, server.body = status, body
    with pytest.raises(UserError) as caught:
        run(ModelParams(base=server.url, name=name), context_in(tmp_path, offline=False))
    assert caught.value.code == code


def test_remote_model_of_several_is_chosen_by_name(server, tmp_path):
    server.body = b'{"data": [{"id": "a"}, {"id": "b"}]}'
    made = run(ModelParams(base=server.url, name="b"), context_in(tmp_path, offline=False))
    assert made.facts["model"]["name"] == "b"


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/v1", "http://127.0.0.1:99999/v1", "http://[/v1"])
def test_remote_server_that_is_down_is_explained(url, tmp_path):
    with pytest.raises(UserError) as caught:
        run(ModelParams(base=url), context_in(tmp_path, offline=False))
    assert caught.value.code == "select.remote_down"


def test_remote_model_offline_opens_no_socket(tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "socket", None)
    with pytest.raises(UserError) as caught:
        run(ModelParams(base="https://host/v1"), context_in(tmp_path))
    assert caught.value.code == "select.remote_offline"
