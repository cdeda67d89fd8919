"""Measure one model on the test rows: free answers, likelihoods, speed."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inhouse.core.artifact import Artifact, Kind
from inhouse.core.errors import UserError
from inhouse.core.gate import Figure
from inhouse.core.model import ModelFacts
from inhouse.core.plugins import operator_of, require
from inhouse.core.protocols import Context, Engine, Input, Made, prompt_of
from inhouse.core.rows import Message, Row
from inhouse.core.run import Events
from inhouse.evaluate.answers import Asking, ask_all
from inhouse.evaluate.predictions import PREDICTIONS, SCORES, SPEED, Prediction, Predictions, write_predictions
from inhouse.evaluate.questions import asked_rows, labels_of, rows_hash, tokens_hash
from inhouse.evaluate.scores import figures, measures
from inhouse.evaluate.settings import EngineName, EvaluateNode, EvaluateParams
from inhouse.evaluate.speed import measure_speed

VERSION = "3"
KIND: Kind = "predictions"

__all__ = ["KIND", "VERSION", "EvaluateNode", "EvaluateParams", "external", "run"]


def external(params: EvaluateNode, project_dir: Path) -> dict[str, str]:
    """Nothing outside its inputs."""
    return {}


def run(params: EvaluateNode, context: Context) -> Made:
    """Ask the model every test row and write predictions.jsonl, scores.json and measured/speed.json.

    Inputs: `model` and `dataset`. Free answers are greedy; labels are also compared by likelihood where the dataset
    has labels and the engine can score. Everything outside measured/ is the same on every run.
    """
    require("eval", "numpy", "sklearn")
    settings, model, dataset = params.settings, context.inputs["model"], context.inputs["dataset"]
    rows = asked_rows(dataset.path, settings.limit)
    labels = labels_of(dataset.path, rows)
    started = time.monotonic()
    engine = open_engine(params.engine, model, context.offline)
    try:
        asking = plan_questions(engine, rows, labels, params, context.events)
        ticker = Ticker(context.events, len(rows) * asking.passes)
        asked = [_named(row) for row in rows] if _labels(model) else rows
        answered = tuple(ask_all(engine, asked, asking, context.scratch, ticker.tick))
        tokens = tokens_hash(rows, engine) if params.engine != "remote" else None
        timed = _speed(engine, rows, params, context.events)
        memory = engine.memory_bytes()
    finally:
        engine.close()
    predictions = Predictions(answered, labels)
    found = _figures(predictions, settings, context.events)
    if cut := sum(_too_long(row, settings.max_tokens) for row in answered):
        context.events.note("evaluate.cut", cut=cut, rows=len(answered), max_tokens=settings.max_tokens)
    scores = {
        "model": _model(model.record),
        "engine": params.engine,
        "settings": settings.model_dump(mode="json", include={"max_tokens", "limit", "metrics", "bootstrap"}),
        "modes": asking.modes,
        "rows": len(rows),
        "rows_hash": rows_hash(rows),
        "tokens_hash": tokens,
        "labels": list(labels),
        "figures": {name: value.model_dump() for name, value in sorted(found.items())},
    }
    if memory:
        timed["peak_memory_bytes"] = Figure(value=memory, n=1, unit="B")
    timed["wall_s"] = Figure(value=round(time.monotonic() - started, 1), n=1, unit="s")
    write_predictions(context.out / PREDICTIONS, answered)
    _write_json(context.out / SCORES, scores)
    _write_json(context.out / SPEED, {"figures": {name: value.model_dump() for name, value in timed.items()}})
    values = {name: value.value for name, value in (found | timed).items()}
    return Made(facts={"rows": len(rows), "engine": params.engine, "figures": values})


def open_engine(name: EngineName, model: Input, offline: bool) -> Engine:
    """Load the model into the engine of this name."""
    if name == "transformers" and _labels(model):
        from inhouse.engines.classifier import open_classifier

        return open_classifier(model)
    if name == "transformers":
        from inhouse.engines.transformers import open_model as open_transformers

        return open_transformers(model)
    if name == "llamacpp":
        from inhouse.engines.llamacpp import open_model as open_llamacpp

        return open_llamacpp(model)
    from inhouse.engines.remote import open_model as open_remote

    return open_remote(model, offline=offline)


def _labels(model: Input) -> tuple[str, ...]:
    """What a classifier answers; empty for a model that writes."""
    return ModelFacts.model_validate(model.record.facts["model"]).labels


def _named(row: Row) -> Row:
    """The row with its label as the wanted answer: a classifier says nothing else, whatever words the row has."""
    answer = Message(role="assistant", content=row.label)
    return row if row.label is None else row.model_copy(update={"messages": [*row.prompt, answer]})


def plan_questions(
    engine: Engine, rows: list[Row], labels: tuple[str, ...], params: EvaluateNode, events: Events
) -> Asking:
    """What to ask: what the settings want, the dataset allows and the engine can."""
    settings = params.settings
    generate = "generate" in settings.modes
    constrained = "constrained" in settings.modes and bool(labels)
    surprise = any(operator_of("metric", metric).name == "perplexity" for metric in settings.metrics)
    score = params.engine in settings.likelihoods and (constrained or surprise)
    if score and not _can_score(engine, rows[0]):
        events.note("evaluate.no_likelihoods", engine=engine.name)
        score = False
    if not generate and not (constrained and score):
        raise UserError("evaluate.nothing_to_ask", modes=", ".join(settings.modes), engine=params.engine)
    return Asking(labels, settings.max_tokens, generate, constrained and score, score)


def _can_score(engine: Engine, row: Row) -> bool:
    """Whether the engine tells likelihoods; one that cannot says so by an error code `….unsupported`."""
    try:
        engine.score([prompt_of(row)], [[row.answer]], lambda done: None)
    except UserError as error:
        if error.code.endswith(".unsupported"):
            return False
        raise
    return True


@dataclass
class Ticker:
    """Count what is done and report it; also where a cancelled job stops."""

    events: Events
    total: int
    done: int = 0

    def tick(self, count: int) -> None:
        """Count `count` more."""
        self.done = min(self.total, self.done + count)
        self.events.progress(self.done, self.total, "answers")


def _too_long(row: Prediction, most: int) -> bool:
    """Whether an answer was cut where the wanted one goes on: by its tokens where they are known, else by its text."""
    if row.finish != "length":
        return False
    if row.gold_tokens is not None:
        return row.gold_tokens - 1 > most  # the end of turn is one of them
    return len(row.text or "") < len(row.gold)


def _figures(predictions: Predictions, settings: EvaluateParams, events: Events) -> dict[str, Figure]:
    found = measures(predictions, settings.metrics)
    if "metrics" in settings.model_fields_set:
        for metric in settings.metrics:
            if not measures(predictions, [metric]):
                events.note("evaluate.metric_absent", metric=operator_of("metric", metric).name)
    return figures(found, settings.bootstrap)


def _speed(engine: Engine, rows: list[Row], params: EvaluateNode, events: Events) -> dict[str, Figure]:
    prompts = [prompt_of(row) for row in rows]
    return measure_speed(engine, prompts, params.settings, params.engine != "remote", events.check)


def _model(record: Artifact) -> dict[str, Any]:
    """What the report says of the model: name, format, size of its files."""
    facts = ModelFacts.model_validate(record.facts["model"])
    folder = "" if facts.main == "." else f"{facts.main}/"
    size = sum(f.bytes for f in record.files if f.path == facts.main or f.path.startswith(folder))
    return {
        "artifact": record.id,
        "name": facts.name,
        "format": facts.format,
        "parameters": facts.parameters,
        "bytes": size or None,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False) + "\n", encoding="utf-8")
