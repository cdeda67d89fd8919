"""Compress: export the tuned model to one small file, and prove that it is still the same model."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

from pydantic import Field

from inhouse.compress.methods.gguf import Gguf
from inhouse.compress.parity import ParityParams
from inhouse.core.artifact import Artifact, Kind
from inhouse.core.errors import UserError
from inhouse.core.model import ModelFacts
from inhouse.core.params import OneOf, Params
from inhouse.core.plugins import operator_of
from inhouse.core.protocols import Context, Input, Made
from inhouse.core.rows import Row
from inhouse.dataset import read_rows

VERSION = "1"
KIND: Kind = "model"


class CompressParams(Params):
    """The `compress` section: how the tuned model is exported, and how close the export must stay."""

    method: Annotated[Params, OneOf("compressor", default="gguf")] = Field(
        Gguf(), description="the export format and its precision"
    )
    parity: ParityParams = Field(ParityParams(), description="checks of the export against the tuned model")


def external(params: CompressParams, project_dir: Path) -> dict[str, str]:
    """Nothing outside the artifacts enters an export."""
    return {}


def run(params: CompressParams, context: Context) -> Made:
    """Export `tuned`, compare it with what it came from, and write the file, parity.json and a model card.

    With the `base` among the inputs the adapter is compared with the merged weights too.
    """
    from inhouse.compress import parity
    from inhouse.compress.card import write_card

    tuned = context.inputs["tuned"]
    facts = ModelFacts.model_validate(tuned.record.facts["model"])
    if facts.format != "safetensors":
        raise UserError("compress.not_safetensors", name=facts.name)
    if facts.labels:
        raise UserError("compress.classifier", name=facts.name)
    if facts.unmerged:
        raise UserError("compress.unmerged", name=facts.name)
    started = time.monotonic()
    operator = operator_of("compressor", params.method)
    exported = operator.function("export")(tuned, params.method, context)
    exported_s = time.monotonic() - started

    bounds = parity.bounds_of(params.parity, operator.function("loose")(params.method))
    rows = parity.choose_rows(_test_rows(context.inputs["dataset"]), params.parity.prompts)
    models = (context.inputs.get("base"), tuned, _as_input(exported.model, context))
    if models[0] is None:
        context.events.note("compress.no_base")
    compared = parity.measure(rows, models, params.parity, context.events)
    parity.judge(compared, params.parity, bounds)
    found = parity.report(compared, params.parity, bounds)
    text = json.dumps(found, ensure_ascii=False, indent=2, sort_keys=True) + "\n"
    (context.out / "parity.json").write_text(text, encoding="utf-8")
    write_card(context.out / "README.md", exported.model, tuned, found)
    if exported.fallbacks:
        context.events.note("compress.fallbacks", tensors=exported.fallbacks, types=_counts(exported.model))
    seconds = {"export": round(exported_s, 1), "parity": round(time.monotonic() - started - exported_s, 1)}
    return Made(
        facts={
            "model": exported.model.model_dump(),
            "fallbacks": exported.fallbacks,
            "parity": found["figures"],
            "steps_s": seconds,
        }
    )


def _test_rows(dataset: Input) -> list[Row]:
    rows = list(read_rows(dataset.path, "test"))
    if not rows:
        raise UserError("compress.no_test_rows")
    return rows


def _counts(model: ModelFacts) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in model.tensor_types.items())


def _as_input(model: ModelFacts, context: Context) -> Input:
    """The exported model as an engine takes it, before it is an artifact."""
    record = Artifact(
        id="", kind=KIND, stage="compress", node="", stage_version=VERSION, recipe="", params={}, created=""
    ).model_copy(update={"facts": {"model": model.model_dump()}})
    return Input(record, context.out)
