"""The catalogue: open models by a short name. One YAML file each in catalogue/; the file's name is the model's."""

from __future__ import annotations

from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field

from inhouse.core.errors import UserError
from inhouse.core.params import Params

FOLDER = Path(__file__).parent / "catalogue"


class KnownModel(Params):
    """A model of the catalogue: where it comes from, its terms, and what its published configuration says."""

    name: str
    uri: str = Field(description="pypi:, hf: or ms: source")
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$", description="pins a source that is a single file")
    licence: str = Field(description="SPDX id, or LicenseRef-… for terms that SPDX does not list")
    page: str = Field(description="the model's page, where its terms can be read")
    family: str
    task: Literal["chat", "completion", "embedding"] = "chat"
    languages: tuple[str, ...] = Field(description="ISO 639-1 codes of the main languages")
    parameters: int
    active_parameters: int | None = Field(None, description="per token, for a mixture of experts")
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    context_length: int
    weights: Literal["bf16", "f16", "q4_1", "q8_0"] = Field("bf16", description="type of the weights at the source")


@cache
def catalogue() -> dict[str, KnownModel]:
    """Every known model by name, smallest first."""
    found = [_read(path) for path in FOLDER.glob("*.yaml")]
    return {m.name: m for m in sorted(found, key=lambda m: (m.parameters, m.name))}


def _read(path: Path) -> KnownModel:
    facts = yaml.safe_load(path.read_text(encoding="utf-8"))
    return KnownModel.model_validate({"name": path.stem, **facts})


def known_model(name: str) -> KnownModel:
    """The catalogue's model of that name (upper or lower case); raise select.unknown with the nearest names."""
    models = catalogue()
    if found := models.get(name.lower()):
        return found
    near = get_close_matches(name.lower(), models, n=1)
    raise UserError("select.unknown", name=name, near=near[0] if near else next(iter(models)), names=", ".join(models))
