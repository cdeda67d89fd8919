from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from release_workspace import APACHE, Make, compressed, make_model, make_report, publish, run_stage

from inhouse.core.artifact import Licence
from inhouse.core.errors import UserError
from inhouse.core.fingerprint import hash_file
from inhouse.core.gate import Gate
from inhouse.core.store import Store
from inhouse.release.settings import ReleaseNode, ReleaseParams, ServeParams
from inhouse.release.stage import external

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "desk-routing" / "inhouse.yaml"
FIGURES = {"tuned.accuracy": {"value": 0.8, "n": 320}}
UNKNOWN = Licence(subject="some-data", spdx="LicenseRef-Unknown", source="project file")
RESEARCH = Licence(subject="reuters", spdx="LicenseRef-Reuters-21578", source="project file", use="research")


def released(store: Store, record: Any) -> dict[str, Any]:
    return json.loads((store.path(record.id) / "release.json").read_text(encoding="utf-8"))


def evidence(store: Store, record: Any) -> dict[str, Any]:
    return json.loads((store.path(record.id) / "measured" / "evidence.json").read_text(encoding="utf-8"))


def judged(store: Store, licence: Licence, use: str) -> dict[str, Any]:
    inputs = {"model": make_model(store, b"GGUF", (licence,)), "report": make_report(store, FIGURES)}
    record = run_stage(store, ReleaseNode(declared_use=use), inputs)
    return {v["figure"]: v for v in record.facts["verdicts"]}[f"licence.{licence.subject}"]


def test_off_needs_no_quotes_in_a_project_file() -> None:
    for name in ("calibrate", "speculation"):
        assert getattr(ServeParams.model_validate(yaml.safe_load(f"{name}: off")), name) == "off"
        with pytest.raises(ValidationError):
            ServeParams.model_validate(yaml.safe_load(f"{name}: on"))


def test_settings_of_the_example_project_are_accepted() -> None:
    project = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    params = ReleaseParams.model_validate(project["release"])
    assert params.deployment == "desk" and len(params.gates) == 5 and params.promote
    assert ServeParams.model_validate(project["serve"]).context_length == 2048
    assert external(ReleaseNode(release=params), Path()) == {}


def test_release_with_a_kept_gate_passes_and_names_model_file_and_settings(store: Store, make_release: Make) -> None:
    record = make_release(at_least=0.7)
    release = released(store, record)
    model = store.path(release["model"]["artifact"]) / release["model"]["main"]
    assert record.facts["passed"] is True and record.facts["failed"] == []
    assert release["passed"] is True
    assert release["model"]["sha256"] == hash_file(model)
    assert release["engine"]["context_length"] == 2048


def test_release_with_a_broken_gate_is_made_and_says_that_it_failed(store: Store, make_release: Make) -> None:
    record = make_release(at_least=0.9)
    assert record.facts["passed"] is False
    assert record.facts["failed"] == ["tuned.accuracy >= 0.9"]
    assert released(store, record)["passed"] is False


def test_release_made_twice_has_the_same_id(make_release: Make) -> None:
    assert make_release().id == make_release().id


def test_release_id_does_not_depend_on_what_was_only_timed(store: Store) -> None:
    model = make_model(store, b"GGUF")
    node = ReleaseNode(release=ReleaseParams(gates=(Gate(figure="exported.tokens_per_s", at_least=10),)))
    report = make_report(store, FIGURES, {"exported.tokens_per_s": {"value": 90.0}})
    first = run_stage(store, node, {"model": model, "report": report})
    (store.path(report.id) / "measured" / "report.json").write_text(
        json.dumps({"figures": {"exported.tokens_per_s": {"value": 70.5}}}), encoding="utf-8"
    )
    second = run_stage(store, node, {"model": model, "report": report})
    assert first.id == second.id and first.facts["passed"]
    assert second.facts["verdicts"][0]["measured"] == 70.5


def test_release_without_a_report_fails(store: Store) -> None:
    record = run_stage(store, ReleaseNode(), {"model": make_model(store, b"GGUF")})
    assert record.facts["failed"] == ["report.figures >= 1"]


def test_release_of_an_export_without_parity_figures_fails(store: Store) -> None:
    model = make_model(store, b"GGUF")
    inputs = {"model": model, "tuned": model, "report": make_report(store, FIGURES)}
    assert run_stage(store, ReleaseNode(), inputs).facts["failed"] == ["report.parity_figures >= 1"]
    with_parity = make_report(store, FIGURES | {"parity.greedy_agreement": {"value": 0.95}})
    record = run_stage(store, ReleaseNode(), inputs | {"report": with_parity})
    assert record.facts["passed"] and evidence(store, record)["parity"]["parity.greedy_agreement"]["value"] == 0.95


def test_release_with_a_broken_report_says_so(store: Store) -> None:
    report = publish(store, "report", {"report.json": b"{}"}, {})
    with pytest.raises(UserError) as error:
        run_stage(store, ReleaseNode(), {"model": make_model(store, b"GGUF"), "report": report})
    assert error.value.code == "release.bad_report"


def test_release_without_a_model_says_so(store: Store) -> None:
    with pytest.raises(UserError) as error:
        run_stage(store, ReleaseNode(), {})
    assert error.value.code == "release.no_model"


def test_release_of_a_model_without_its_main_file_says_so(store: Store) -> None:
    facts = {"model": {"format": "gguf", "main": "gone.gguf", "name": "x"}}
    model = publish(store, "model", {"other.txt": b"x"}, facts)
    with pytest.raises(UserError) as error:
        run_stage(store, ReleaseNode(), {"model": model})
    assert error.value.code == "release.model_incomplete"


@pytest.mark.parametrize("main", [".", "merged"])
def test_release_of_a_folder_hashes_every_file_of_it(store: Store, main: str) -> None:
    facts = {"model": {"format": "safetensors", "main": main, "name": "x"}}
    hashes = set()
    for content in (b"one", b"two"):
        model = publish(store, "model", {"merged/config.json": b"{}", "merged/model.safetensors": content}, facts)
        hashes.add(released(store, run_stage(store, ReleaseNode(), {"model": model}))["model"]["sha256"])
    assert len(hashes) == 2


def test_release_of_a_remote_model_needs_no_file(store: Store) -> None:
    facts = {"model": {"format": "remote", "main": "http://127.0.0.1:1/v1", "name": "x"}}
    model = publish(store, "model", {"note.txt": b"x"}, facts)
    assert released(store, run_stage(store, ReleaseNode(), {"model": model}))["model"]["format"] == "remote"


@pytest.mark.parametrize(
    ("licence", "use", "passed"),
    [
        (APACHE, "commercial", True),
        (RESEARCH, "evaluation", True),
        (RESEARCH, "internal", False),
        (RESEARCH, "commercial", False),
        (UNKNOWN, "evaluation", True),
        (UNKNOWN, "internal", True),
        (UNKNOWN, "commercial", False),
    ],
)
def test_licence_is_judged_against_the_declared_use(store: Store, licence: Licence, use: str, passed: bool) -> None:
    assert judged(store, licence, use)["passed"] is passed


def test_unknown_licence_is_told_to_the_user(store: Store) -> None:
    judged(store, UNKNOWN, "evaluation")
    notes = [json.loads(line) for line in (store.root / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [n["facts"]["subject"] for n in notes if n.get("code") == "release.licence_unknown"] == ["some-data"]


def test_evidence_holds_everything_behind_the_verdict(store: Store, make_release: Make) -> None:
    record = make_release(at_least=0.9)
    found = evidence(store, record)
    assert found["verdicts"][0] == {
        "figure": "tuned.accuracy",
        "rule": ">= 0.9",
        "measured": 0.8,
        "passed": False,
        "reason": "too_low",
    }
    assert found["figures"]["tuned.accuracy"]["low"] == 0.75
    assert found["artifacts"]["model"]["files"][0]["path"] == "model.gguf"
    assert found["seed"] == 7 and found["commits"] == ["c0ffee"] and found["packages"] == {"inhouse": "0.1.0"}
    assert found["asked"]["stages"]["report"]["params"] == {"asked": "report"}
    page = (store.path(record.id) / "measured" / "evidence.md").read_text(encoding="utf-8")
    for expected in ("FAILED · 未通过", "| tuned.accuracy | &gt;= 0.9", "0.75", "Apache-2.0", "c0ffee", "inhouse run"):
        assert expected.replace("&gt;", ">") in page


def test_evidence_tells_how_the_served_model_was_compressed(store: Store) -> None:
    plain = make_model(store, b"GGUF")
    report = make_report(store, FIGURES)
    bare = run_stage(store, ReleaseNode(), {"model": plain, "report": report})
    assert evidence(store, bare)["compression"] == {}
    model = compressed(store, plain, {"use": "gguf", "type": "q8_0"})
    record = run_stage(store, ReleaseNode(project="other"), {"model": model, "report": report})
    assert evidence(store, record)["compression"] == {"use": "gguf", "type": "q8_0", "fallbacks": 2}
    page = (store.path(record.id) / "measured" / "evidence.md").read_text(encoding="utf-8")
    assert "| q8_0 |" in page and "inhouse run PROJECT_FILE" in page and "`release.serve`" in page


def test_evidence_page_does_not_carry_markup_of_its_inputs(store: Store) -> None:
    evil = Licence(subject="<script>x</script> | a", spdx="MIT", source="LICENSE", use="any")
    record = run_stage(store, ReleaseNode(), {"model": make_model(store, b"GGUF", (evil,))})
    page = (store.path(record.id) / "measured" / "evidence.md").read_text(encoding="utf-8")
    assert "<script>" not in page and "&lt;script>x&lt;/script> \\| a" in page


def test_evidence_stays_valid_json_when_a_figure_is_not_a_number(store: Store) -> None:
    inputs = {"model": make_model(store, b"GGUF"), "report": make_report(store, {"a.b": {"value": float("nan")}})}
    node = ReleaseNode(release=ReleaseParams(gates=(Gate(figure="a.b", at_least=0),)))
    record = run_stage(store, node, inputs)
    text = (store.path(record.id) / "measured" / "evidence.json").read_text(encoding="utf-8")
    assert "NaN" not in text and record.facts["failed"] == ["a.b >= 0"]
