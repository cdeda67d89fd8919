"""Bring the measurements of base, tuned and exported model together in one report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, TypeAdapter, ValidationError

from inhouse.core.artifact import Kind
from inhouse.core.errors import UserError
from inhouse.core.gate import Figure, figures_of
from inhouse.core.params import Params
from inhouse.core.plugins import require
from inhouse.core.protocols import Context, Input, Made
from inhouse.evaluate.details import by_label, confusion, loss_curve, training_figures, wrong_answers
from inhouse.evaluate.page import render_page
from inhouse.evaluate.predictions import PREDICTIONS, SCORES, SPEED, Predictions, read_predictions
from inhouse.evaluate.scores import differences, measures
from inhouse.evaluate.settings import EvaluateParams
from inhouse.evaluate.stats import Measure
from inhouse.evaluate.table import ROLES, TableRow, render_table

VERSION = "1"
KIND: Kind = "report"
REPORT = "report.json"
FULL_REPORT = "measured/report.json"
PAGE = "measured/report.html"
PARITY = "parity.json"
FORGETTING = "figures.json"
PAIRS = (("tuned", "base"), ("exported", "tuned"), ("exported", "base"))

__all__ = ["KIND", "PAGE", "VERSION", "ReportParams", "TableRow", "external", "load_figures", "render_table", "run"]


class ReportParams(Params):
    """What the report shows."""

    name: str = Field("", max_length=200, description="heading of the page: the project's name")
    wrong_answers: int = Field(12, ge=0, le=200, description="wrong answers shown as a sample")


@dataclass(frozen=True)
class Measured:
    """One model's predictions artifact, read."""

    scores: dict[str, Any]
    predictions: Predictions
    found: dict[str, Measure]
    settings: EvaluateParams
    timed: dict[str, Figure]

    @property
    def mode(self) -> str:
        """The answers that details are shown for: free ones, where they were asked for."""
        return str(self.scores["modes"][0])


def external(params: ReportParams, project_dir: Path) -> dict[str, str]:
    """Nothing outside its inputs."""
    return {}


def run(params: ReportParams, context: Context) -> Made:
    """Write report.json, and measured/ with report.json (timings added) and report.html.

    Inputs, any of which may be absent: `base`, `tuned`, `exported` (predictions; at least one), `parity` (the
    artifact of compress), `training` (the tuned model, for its loss curve and checks) and `forgetting` (what the
    tuned model lost on a general set).
    """
    require("eval", "numpy", "sklearn", "jinja2")
    models = {role: read_measured(context.inputs[role]) for role in ROLES if role in context.inputs}
    if not models:
        raise UserError("evaluate.no_models")
    figures = _figures(models, context)
    shown = next(models[role] for role in ("tuned", "exported", "base") if role in models)
    report = {
        "version": 1,
        "name": params.name,
        "rows": shown.scores["rows"],
        "rows_hash": shown.scores["rows_hash"],
        "labels": list(shown.predictions.labels),
        "models": {role: _about(measured) for role, measured in models.items()},
        "same_tokens": _same_tokens(models, context),
        "figures": _dump(figures),
        "confusion": {role: confusion(m.predictions, m.mode) for role, m in models.items()},
        "by_label": {role: by_label(m.predictions, m.mode) for role, m in models.items()},
        "wrong": wrong_answers(shown.predictions, shown.mode, params.wrong_answers),
    }
    _write_json(context.out / REPORT, report)
    for role, measured in models.items():
        figures |= {f"{role}.{name}": value for name, value in measured.timed.items()}
    training = context.inputs.get("training")
    full = {**report, "figures": _dump(figures), "loss": loss_curve(training.record.facts if training else {})}
    _write_json(context.out / FULL_REPORT, full)
    (context.out / PAGE).write_text(render_page(full), encoding="utf-8")
    return Made(facts={"rows": report["rows"], "figures": {name: value.value for name, value in figures.items()}})


def load_figures(folder: Path) -> dict[str, Figure]:
    """Every figure of a report artifact, timed ones included."""
    path = folder / FULL_REPORT if (folder / FULL_REPORT).exists() else folder / REPORT
    try:
        return figures_of(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError("evaluate.bad_report", path=path, problem=_first_line(error)) from None


def read_measured(source: Input) -> Measured:
    """The predictions, scores and timings of a predictions artifact."""
    rows = read_predictions(source.path / PREDICTIONS)
    scores = json.loads((source.path / SCORES).read_text(encoding="utf-8"))
    predictions = Predictions(rows, tuple(scores["labels"]))
    settings = EvaluateParams.model_validate(scores["settings"])
    timed = source.path / SPEED
    return Measured(
        scores=scores,
        predictions=predictions,
        found=measures(predictions, settings.metrics),
        settings=settings,
        timed=figures_of(json.loads(timed.read_text(encoding="utf-8"))) if timed.exists() else {},
    )


def read_figures(source: Input, name: str) -> dict[str, Figure]:
    """The figures of an artifact's JSON file; empty when it has none, as where a compressor measures no parity."""
    path = source.path / name
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["figures"]
        return TypeAdapter(dict[str, Figure]).validate_python(found)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError("evaluate.bad_report", path=path, problem=_first_line(error)) from None


def _figures(models: Mapping[str, Measured], context: Context) -> dict[str, Figure]:
    """Each model's figures, the paired differences, sizes and parity: all that does not depend on the clock."""
    made: dict[str, Figure] = {}
    for role, measured in models.items():
        made |= {f"{role}.{name}": value for name, value in figures_of(measured.scores).items()}
        if measured.scores["model"]["bytes"]:
            made[f"{role}.bytes"] = Figure(value=measured.scores["model"]["bytes"], unit="B")
    for one, other in PAIRS:
        if one in models and other in models:
            made |= _compare(one, models[one], other, models[other])
            context.events.check()
    for role, name in (("parity", PARITY), ("forgetting", FORGETTING)):
        if role in context.inputs:
            made |= read_figures(context.inputs[role], name)
    if "training" in context.inputs:
        made |= training_figures(context.inputs["training"].record.facts)
    return made


def _compare(one: str, candidate: Measured, other: str, reference: Measured) -> dict[str, Figure]:
    if candidate.scores["rows_hash"] != reference.scores["rows_hash"]:
        raise UserError("evaluate.different_rows", one=one, other=other)
    found = differences(candidate.found, reference.found, candidate.settings.bootstrap)
    return {f"{one}_vs_{other}.{name}": value for name, value in found.items()}


def _same_tokens(models: Mapping[str, Measured], context: Context) -> dict[str, bool]:
    """Whether two models read the same tokens for the same questions, where both engines tell."""
    found = {}
    for one, other in PAIRS:
        hashes = [models[role].scores["tokens_hash"] for role in (one, other) if role in models]
        if len(hashes) == 2 and None not in hashes:
            found[f"{one}_vs_{other}"] = hashes[0] == hashes[1]
            if hashes[0] != hashes[1]:
                context.events.note("evaluate.different_tokens", one=one, other=other)
    return found


def _about(measured: Measured) -> dict[str, Any]:
    keys = ("engine", "modes", "tokens_hash")
    return {**measured.scores["model"], **{key: measured.scores[key] for key in keys}, "mode": measured.mode}


def _dump(figures: Mapping[str, Figure]) -> dict[str, Any]:
    return {name: value.model_dump() for name, value in sorted(figures.items())}


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return str(error.errors()[0]["msg"])
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n", encoding="utf-8")
