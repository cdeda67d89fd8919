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

from inhouse.core.errors import MissingExtra, UserError
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
        named = [
            {"value": "Zorblax", "type": "name"},
            {"value": "nowhere", "type": "name"},
            {"value": "x", "type": "iq"},
        ]
        content = self.answer if self.answer is not None else json.dumps({"found": [*named, {"value": " "}]})
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


def recognise(use: str, texts: list[str], **params: Any) -> list[list[Span]]:
    operator = operators("recogniser")[use]
    return operator.function("recognise")(texts, operator.params(**params), Path())  # type: ignore[no-any-return]


def test_endpoint_values_become_spans_wherever_they_stand(url: str) -> None:
    found = recognise("endpoint", ["Zorblax met Zorblax", "nobody"], url=url, model="m")
    assert [(s.start, s.end, s.type) for s in found[0]] == [(0, 7, "name"), (12, 19, "name")]
    assert found[1] == []
    assert Model.seen[0]["model"] == "m" and Model.seen[0]["messages"][1]["content"] == "Zorblax met Zorblax"


def test_endpoint_long_text_is_sent_in_pieces(url: str) -> None:
    found = recognise("endpoint", ["." * 200 + "Zorblax"], url=url, model="m", max_chars=200)
    assert [(s.start, s.end) for s in found[0]] == [(200, 207)]


@pytest.mark.parametrize("answer", ["no json", "[]", '{"found": [1]}', '{"found": [{"value": 3}]}'])
def test_endpoint_answer_that_cannot_be_used_is_said(url: str, answer: str) -> None:
    Model.answer = answer
    with pytest.raises(UserError) as error:
        recognise("endpoint", ["text"], url=url, model="m")
    assert error.value.code == "guard.recogniser_endpoint"


def test_endpoint_elsewhere_is_refused_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INHOUSE_OFFLINE", "1")
    with pytest.raises(UserError) as error:
        recognise("endpoint", ["text"], url="http://192.0.2.1/v1", model="m")
    assert error.value.code == "guard.recogniser_offline"


def test_pii_step_adds_what_recognisers_find(url: str, tmp_path: Path) -> None:
    cleaner = operators("cleaner")["pii"]
    params = cleaner.params(recognisers=[{"use": "endpoint", "url": url, "model": "m"}])
    pieces = pl.DataFrame(
        {"row": [1], "slot": [0], "text": ["Zorblax 的电话13812345678"]}, schema_overrides={"row": pl.UInt64}
    )
    around = Around(0, tmp_path, tmp_path, True)
    texts, notes = cleaner.function("change")(pieces, params, around)
    assert texts.to_list() == ["[NAME] 的电话[PHONE]"]
    assert notes["type"].to_list() == ["name", "phone"]
    assert cleaner.function("external")(params, tmp_path) == {}


@pytest.mark.skipif(find_spec("presidio_analyzer") is not None, reason="presidio is installed")
def test_presidio_missing_names_its_extra() -> None:
    for function in ("recognise", "external"):
        operator = operators("recogniser")["presidio"]
        with pytest.raises(MissingExtra, match="guard"):
            arguments = (["x"], operator.params(), Path()) if function == "recognise" else (operator.params(), Path())
            operator.function(function)(*arguments)


@pytest.mark.skipif(find_spec("presidio_analyzer") is None, reason="needs presidio-analyzer")
def test_presidio_patterns_find_what_they_are_for() -> None:
    text = "to GB82 WEST 1234 5698 7654 32 or card 4111 1111 1111 1111"
    found = recognise("presidio", [text])[0]
    assert {(s.type, text[s.start : s.end]) for s in found} >= {
        ("bank_card", "GB82 WEST 1234 5698 7654 32"),
        ("bank_card", "4111 1111 1111 1111"),
    }
    with pytest.raises(UserError):
        recognise("presidio", [text], recognizers=["NoSuchRecognizer"])


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
    with pytest.raises(UserError):
        gliner.function("external")(params, tmp_path)
    with pytest.raises(UserError):
        gliner.function("recognise")(["x"], params, tmp_path)
    (tmp_path / "m" / "model.bin").write_bytes(b"weights")
    text = "." * 150 + "Zorblax" + "." * 60
    found = gliner.function("recognise")([text, ""], params, tmp_path)
    assert {(s.start, s.end, s.type) for s in found[0]} == {(150, 157, "name")} and found[1] == []
    assert list(gliner.function("external")(params, tmp_path)) == ["gliner.model.bin"]
