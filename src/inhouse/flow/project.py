"""The project file: what we want, one section per step of the lifecycle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from inhouse.compress.stage import CompressParams
from inhouse.core.model import ModelParams
from inhouse.core.params import Params
from inhouse.core.project import load_project
from inhouse.data.label.settings import LabelParams
from inhouse.data.stage import DataParams
from inhouse.evaluate.stage import EvaluateParams
from inhouse.release.settings import ReleaseParams, ServeParams
from inhouse.train.stage import TrainParams

DatasetName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]


def _form(value: Any) -> str:
    return "chain" if isinstance(value, list | tuple) else "one"


# Told apart by their form and not by trial, so that an error names what is wrong with the form that was written.
Training = Annotated[
    Annotated[TrainParams, Tag("one")] | Annotated[tuple[TrainParams, ...], Field(min_length=1), Tag("chain")],
    Discriminator(_form),
]


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
    extra_data: dict[DatasetName, DataParams] = Field(
        default_factory=dict,
        description="further datasets by name, each written as `data` is: text to pre-train on, a set not to forget",
    )
    label: LabelParams | None = Field(None, description="how rows without a label get one; `inhouse data label` only")
    train: Training | None = Field(
        None, description="how to fine-tune; a list is a chain: each training starts from what the one before made"
    )
    evaluate: EvaluateParams | None = Field(None, description="how to measure")
    compress: CompressParams | None = Field(None, description="how to shrink and export")
    release: ReleaseParams | None = Field(None, description="what must hold before anything is served")
    serve: ServeParams = Field(default_factory=ServeParams, description="how a release is served")

    @property
    def trainings(self) -> tuple[TrainParams, ...]:
        """The trainings in order, whether one is written or a chain."""
        if self.train is None:
            return ()
        return (self.train,) if isinstance(self.train, TrainParams) else self.train


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
