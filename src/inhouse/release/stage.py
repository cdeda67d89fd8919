"""Bundle what may be served: the model, its engine settings, the verdict of every gate, and the evidence."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from inhouse.core.artifact import Artifact, Kind, Licence
from inhouse.core.errors import UserError
from inhouse.core.fingerprint import hash_json
from inhouse.core.model import ModelFacts
from inhouse.core.protocols import Context, Made
from inhouse.release.evidence import gather, write_evidence
from inhouse.release.settings import ReleaseNode
from inhouse.release.verdicts import judge_release, read_figures

VERSION = "1"
KIND: Kind = "release"
RELEASE = "release.json"


def external(params: ReleaseNode, project_dir: Path) -> dict[str, str]:
    """A release reads nothing from outside the workspace."""
    return {}


def run(params: ReleaseNode, context: Context) -> Made:
    """Judge every gate and write release.json and the evidence. Failed gates are a verdict, not an error."""
    if "model" not in context.inputs:
        raise UserError("release.no_model")
    model = context.inputs["model"].record
    facts = ModelFacts.model_validate(model.facts["model"])
    report = context.inputs.get("report")
    figures = read_figures(report.path if report else None)
    licences = inherited(i.record for i in context.inputs.values())
    exported = "exported" in context.inputs or (facts.format == "gguf" and "tuned" in context.inputs)
    verdicts = judge_release(params.release.gates, figures, licences, params.declared_use, exported)
    for licence in licences:
        if licence.use == "unknown":
            context.events.note("release.licence_unknown", subject=licence.subject)
    passed = all(v.passed for v in verdicts)
    release = {
        "project": params.project,
        "use": params.declared_use,
        "passed": passed,
        "model": {
            "artifact": model.id,
            "main": facts.main,
            "sha256": main_hash(model, facts),
            "format": facts.format,
            "name": facts.name,
        },
        "engine": params.serve.engine_settings(),
        # Only what was decided, not what was measured: a timing may differ between two runs of the same recipe.
        "gates": [{"figure": v.figure, "rule": v.rule, "passed": v.passed} for v in verdicts],
        "inputs": {role: i.record.id for role, i in sorted(context.inputs.items())},
        "licences": [licence.model_dump() for licence in licences],
    }
    _write(context.out / RELEASE, release)
    write_evidence(context.out / "measured", gather(release, params, context, figures, verdicts))
    failed = [f"{v.figure} {v.rule}" for v in verdicts if not v.passed]
    return Made(facts={"passed": passed, "failed": failed, "verdicts": [v.model_dump() for v in verdicts]})


def inherited(records: Iterable[Artifact]) -> tuple[Licence, ...]:
    """Every licence of every input once, sorted by what it covers."""
    found = {(x.subject, x.spdx, x.use): x for record in records for x in record.licences}
    return tuple(found[key] for key in sorted(found))


def main_hash(model: Artifact, facts: ModelFacts) -> str:
    """sha256 of the file that is served; for a folder, the hash of its files' names and hashes."""
    if facts.format == "remote":
        return hash_json([facts.main, facts.name])
    for file in model.files:
        if file.path == facts.main:
            return file.sha256
    prefix = "" if facts.main == "." else f"{facts.main}/"
    below = sorted((f.path, f.sha256) for f in model.files if f.counts and f.path.startswith(prefix))
    if not below:
        raise UserError("release.model_incomplete", model=model.id, main=facts.main)
    return hash_json(below)


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
