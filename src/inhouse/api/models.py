"""Open models: what there is, what it is, and fetching it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from inhouse.api.request import Request
from inhouse.core.artifact import Artifact, Frozen, Licence
from inhouse.core.model import ModelFacts
from inhouse.core.run import Events
from inhouse.flow.plan import Node
from inhouse.flow.runner import Run
from inhouse.flow.runner import run as run_nodes
from inhouse.select import stage
from inhouse.select.attention import Attention, attention_of
from inhouse.select.hardware import look
from inhouse.select.models import ModelRow
from inhouse.select.models import list_models as known_models


class ModelRequest(Request):
    """One model."""

    base: str = Field(description="catalogue name, folder, .gguf, pypi:…, hf:org/name, ms:org/name or URL")
    revision: str | None = Field(None, description="commit or tag of a hub model")


class Models(Frozen):
    """The catalogue, judged against this machine."""

    models: tuple[ModelRow, ...]


class Model(Frozen):
    """A model that lies in the workspace."""

    id: str
    path: Path
    facts: ModelFacts
    attention: Attention | None = Field(description="heads, cache, window and positions; None: the header tells none")
    licences: tuple[Licence, ...]
    source: dict[str, Any]


def list_models(request: Request) -> Models:
    """Every model of the catalogue, smallest first, and whether it fits here."""
    return Models(models=known_models(look(request.store.root)))


def pull_model(request: ModelRequest, events: Events) -> Model:
    """Fetch a model, check its header and terms, and keep it as an artifact; weights are not loaded."""
    params = stage.ModelParams(base=request.base, revision=request.revision)
    node = Node("base", stage, params)
    made = run_nodes((node,), Run(request.store, Path.cwd(), events, request.offline))
    return _model(request, made["base"])


def _model(request: Request, record: Artifact) -> Model:
    facts, path = ModelFacts.model_validate(record.facts["model"]), request.store.path(record.id)
    return Model(
        id=record.id,
        path=path,
        facts=facts,
        attention=attention_of(facts, path),
        licences=record.licences,
        source=record.facts.get("source", {}),
    )
