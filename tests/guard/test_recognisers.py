"""Recognisers of others: an endpoint that really answers, and what is said when a package or model is missing."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from inhouse.core.errors import MissingExtra, UserError, from_dict
from inhouse.core.plugins import operators
from inhouse.data.operators.around import Around
from inhouse.guard.spans import Span


class Model(BaseHTTPRequestHandler):
    """Answers as a chat endpoint: names 'Zorblax' wherever it stands, and a value that does not stand there."""

    seen: list[dict[str, Any]] = []  # noqa: RUF012 (one server a test)
    answer: str | None = None

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append(body)
        said = body["messages"][1]["content"]
        named = [
            {"value": "Zorblax" if "Zorblax" in said else "nobody at all", "type": "name"},
            {"value": "nowhere", "type": "name"},
            {"value": "x", "type": "iq"},
        ]
        content = (
            self.answer if self.answer is not None else json.dumps({"found": [*named, {"value": " ", "type": "name"}]})
        )
        reply = json.dumps({"choices": [{"message": {"content": content}}]}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    Model.seen, Model.answer = [], None
    server = ThreadingHTTPServer(("127.0.0.1", 0), Model)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def recognise(use: str, texts: list[str], cache: Path, offline: bool = False, **params: Any) -> list[list[Span]]:
    operator = operators("recogniser")[use]
    around = Around(0, cache, cache, offline)
    return operator.function("recognise")(texts, operator.params(**params), around)  # type: ignore[no-any-return]


def at(url: str) -> dict[str, Any]:
    return {"base_url": url, "model": "m", "attempts": 1}


def test_endpoint_values_become_spans_wherever_they_stand(url: str, tmp_path: Path) -> None:
    found = recognise("endpoint", ["Zorblax met Zorblax", "nobody", " "], tmp_path, endpoint=at(url))
    assert [(s.start, s.end, s.type) for s in found[0]] == [(0, 7, "name"), (12, 19, "name")]
    assert found[1:] == [[], []]
    assert sorted(body["messages"][1]["content"] for body in Model.seen) == ["Zorblax met Zorblax", "nobody"]
    assert {body["model"] for body in Model.seen} == {"m"}


@pytest.mark.parametrize("before", range(180, 221))
def test_endpoint_value_is_found_wherever_a_window_ends(url: str, tmp_path: Path, before: int) -> None:
    text = "." * before + "Zorblax" + "." * 150
    found = recognise("endpoint", [text], tmp_path, endpoint=at(url), max_chars=200, overlap_chars=20)
    assert [(s.start, s.end) for s in found[0]] == [(before, before + 7)]


def test_endpoint_is_asked_once_for_a_text_and_a_repeated_shard_ends_in_the_same(url: str, tmp_path: Path) -> None:
    first = recognise("endpoint", ["Zorblax", "other"], tmp_path, endpoint=at(url))
    Model.answer = '{"found": [{"value": "other", "type": "name"}]}'  # a model that has changed its mind
    again = recognise("endpoint", ["other", "Zorblax"], tmp_path, endpoint=at(url))
    assert [again[1], again[0]] == first and len(Model.seen) == 2


def test_endpoint_stops_at_its_budget(url: str, tmp_path: Path) -> None:
    few = {**at(url), "budget": {"requests": 1}}
    with pytest.raises(UserError) as error:
        recognise("endpoint", ["a", "b"], tmp_path, endpoint=few)
    assert error.value.code == "label.budget" and len(Model.seen) == 1


@pytest.mark.parametrize("answer", ["no json", "[]", '{"found": [1]}', '{"found": [{"value": 3}]}'])
def test_endpoint_answer_that_cannot_be_used_is_said(url: str, tmp_path: Path, answer: str) -> None:
    Model.answer = answer
    with pytest.raises(UserError) as error:
        recognise("endpoint", ["text"], tmp_path, endpoint=at(url))
    assert error.value.code == "guard.recogniser_endpoint"


def test_endpoint_elsewhere_is_refused_offline_and_one_on_this_machine_is_asked(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        recognise("endpoint", ["text"], tmp_path, offline=True, endpoint=at("http://192.0.2.1/v1"))
    assert error.value.code == "label.offline"
    assert recognise("endpoint", ["Zorblax"], tmp_path, offline=True, endpoint=at(url)) != [[]]


def test_endpoint_address_of_the_environment_enters_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    cleaner = operators("cleaner")["pii"]
    params = cleaner.params(recognisers=[{"use": "endpoint", "endpoint": {"model": "m"}}])
    prints = []
    for place in ("http://a/v1", "http://b/v1"):
        monkeypatch.setenv("OPENAI_BASE_URL", place)
        prints.append(cleaner.function("external")(params, Path()))
    assert prints[0] != prints[1]


def test_endpoint_windows_that_would_not_move_on_are_refused() -> None:
    with pytest.raises(ValueError, match="half"):
        operators("recogniser")["endpoint"].params(endpoint=at("http://a/v1"), max_chars=200, overlap_chars=101)


def test_pii_step_adds_what_recognisers_find(url: str, tmp_path: Path) -> None:
    cleaner = operators("cleaner")["pii"]
    params = cleaner.params(recognisers=[{"use": "endpoint", "endpoint": at(url)}])
    pieces = pl.DataFrame(
        {"row": [1], "slot": [0], "text": ["Zorblax 的电话13812345678"]}, schema_overrides={"row": pl.UInt64}
    )
    around = Around(0, tmp_path, tmp_path, True)
    texts, notes = cleaner.function("change")(pieces, params, around)
    assert texts.to_list() == ["[NAME] 的电话[PHONE]"]
    assert notes["type"].to_list() == ["name", "phone"]
    assert cleaner.function("external")(params, tmp_path) == {"pii.recogniser.0.endpoint": url}


@pytest.mark.skipif(find_spec("presidio_analyzer") is not None, reason="presidio is installed")
def test_presidio_missing_names_its_extra() -> None:
    for function in ("recognise", "external"):
        operator = operators("recogniser")["presidio"]
        with pytest.raises(MissingExtra, match="guard"):
            nowhere = Around(0, Path(), Path(), True)
            arguments = (["x"], operator.params(), nowhere) if function == "recognise" else (operator.params(), Path())
            operator.function(function)(*arguments)


@pytest.mark.skipif(find_spec("presidio_analyzer") is None, reason="needs presidio-analyzer")
def test_presidio_patterns_find_what_they_are_for(tmp_path: Path) -> None:
    text = "to GB82 WEST 1234 5698 7654 32 or card 4111 1111 1111 1111"
    found = recognise("presidio", [text], tmp_path)[0]
    assert {(s.type, text[s.start : s.end]) for s in found} >= {
        ("bank_card", "GB82 WEST 1234 5698 7654 32"),
        ("bank_card", "4111 1111 1111 1111"),
    }
    with pytest.raises(UserError):
        recognise("presidio", [text], tmp_path, recognizers=["NoSuchRecognizer"])


@pytest.mark.skipif(find_spec("gliner") is not None, reason="gliner is installed")
def test_gliner_missing_names_its_package_for_no_extra_brings_it(tmp_path: Path) -> None:
    operator = operators("recogniser")["gliner"]
    with pytest.raises(MissingExtra, match=r"pip install gliner$") as error:
        operator.function("recognise")(["x"], operator.params(model="m"), Around(0, tmp_path, tmp_path, True))
    assert str(from_dict(error.value.to_dict())) == str(error.value)


def test_gliner_reads_windows_and_places_spans_in_the_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a stand-in for the package: only our part is tested here, not a model."""

    class Loaded:
        def predict_entities(self, text: str, labels: list[str], threshold: float) -> list[dict[str, Any]]:
            at = text.find("Zorblax")
            return [{"start": at, "end": at + 7, "label": "person", "score": 0.9}] if at >= 0 else []

    def load(folder: str, local_files_only: bool) -> Loaded:
        if not (Path(folder) / "model.bin").exists():
            raise OSError("no weights")
        return Loaded()

    stand_in = SimpleNamespace(GLiNER=SimpleNamespace(from_pretrained=load), __spec__=SimpleNamespace())
    monkeypatch.setitem(sys.modules, "gliner", stand_in)
    (tmp_path / "m").mkdir()
    gliner = operators("recogniser")["gliner"]
    params = gliner.params(model="m", window_chars=100)
    around = Around(0, tmp_path, tmp_path, True)
    with pytest.raises(UserError):
        gliner.function("external")(params, tmp_path)
    with pytest.raises(UserError):
        gliner.function("recognise")(["x"], params, around)
    (tmp_path / "m" / "model.bin").write_bytes(b"weights")
    text = "." * 150 + "Zorblax" + "." * 60
    found = gliner.function("recognise")([text, ""], params, around)
    assert {(s.start, s.end, s.type) for s in found[0]} == {(150, 157, "name")} and found[1] == []
    assert list(gliner.function("external")(params, tmp_path)) == ["gliner.model.bin"]
