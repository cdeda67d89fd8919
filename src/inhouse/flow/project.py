"""The project file: what we want, one section per step of the lifecycle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from inhouse.compress.stage import CompressParams
from inhouse.core.params import Params
from inhouse.core.project import load_project
from inhouse.data.label.settings import LabelParams
from inhouse.data.stage import DataParams
from inhouse.evaluate.stage import EvaluateParams
from inhouse.release.settings import ReleaseParams, ServeParams
from inhouse.select.stage import ModelParams
from inhouse.train.stage import TrainParams


class Project(Params):
    """One project file. Leave out a section and its step is not run."""

    version: Literal[1] = Field(1, description="version of this file's format")
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="name of the model that is made")
    use: Literal["evaluation", "internal", "commercial"] = Field(
        "evaluation", description="what the release is for: the licences of model and data are checked against it"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="one seed for every random choice")
    model: ModelParams | None = Field(
        None, description="the open model to start from; may be left out where only data is built"
    )
    data: DataParams | None = Field(None, description="examples to learn from and to measure on")
    label: LabelParams | None = Field(None, description="how rows without a label get one; `inhouse data label` only")
    train: TrainParams | None = Field(None, description="how to fine-tune")
    evaluate: EvaluateParams | None = Field(None, description="how to measure")
    compress: CompressParams | None = Field(None, description="how to shrink and export")
    release: ReleaseParams | None = Field(None, description="what must hold before anything is served")
    serve: ServeParams = Field(default_factory=ServeParams, description="how a release is served")


def load(path: Path, overrides: Sequence[str] = ()) -> Project:
    """Read a project file; a folder means its inhouse.yaml."""
    return load_project(path / "inhouse.yaml" if path.is_dir() else path, Project, overrides)


def schema() -> dict[str, Any]:
    """JSON Schema of a project file, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "inhouse project file",
        **Project.model_json_schema(),
    }
