"""GLiNER: a small model that finds entities by the names of their kinds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from inhouse.core.errors import UserError
from inhouse.core.params import Params
from inhouse.core.plugins import require
from inhouse.guard.recognisers import Around
from inhouse.guard.spans import PiiType, Span

RESULT_DEPENDS_ON = ("gliner",)


class Gliner(Params):
    """A GLiNER model from a local folder; texts are read in overlapping windows of lines."""

    use: Literal["gliner"] = "gliner"
    model: Path = Field(description="folder of a downloaded model")
    labels: dict[str, PiiType] = Field(
        {"person": "name", "address": "address", "phone number": "phone", "email": "email"},
        min_length=1,
        description="kinds to ask the model for, and the type that each counts as",
    )
    threshold: float = Field(0.5, ge=0, le=1, description="least probability")
    window_chars: int = Field(1200, ge=100, description="characters that the model sees at a time")


def recognise(texts: Sequence[str], params: Gliner, around: Around) -> list[list[Span]]:
    """The spans that the model finds, with its probabilities."""
    model = _model(str(around.project_dir / params.model))
    return [[span for start in _windows(text, params) for span in _spans(model, text, start, params)] for text in texts]


def external(params: Gliner, project_dir: Path) -> dict[str, str]:
    """The weights' and settings' content."""
    import hashlib

    folder = project_dir / params.model
    files = sorted(p for p in folder.glob("*") if p.is_file())
    if not files:
        raise UserError("guard.recogniser_model", use="gliner", path=folder, problem="no files")
    digests = {}
    for path in files:
        with path.open("rb") as f:
            digests[f"gliner.{path.name}"] = hashlib.file_digest(f, "sha256").hexdigest()
    return digests


@cache
def _model(folder: str) -> Any:
    require("", "gliner")  # no extra brings it: it is large, and only for this
    try:
        return import_module("gliner").GLiNER.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise UserError("guard.recogniser_model", use="gliner", path=folder, problem=error) from error


def _windows(text: str, params: Gliner) -> range:
    """Where windows begin: they overlap by a quarter, so that no entity is cut in both."""
    step = params.window_chars * 3 // 4
    return range(0, max(1, len(text) - params.window_chars // 4), step)


def _spans(model: Any, text: str, start: int, params: Gliner) -> list[Span]:
    window = text[start : start + params.window_chars]
    found = model.predict_entities(window, list(params.labels), threshold=params.threshold)
    return [
        Span(start + one["start"], start + one["end"], params.labels[one["label"]], float(one["score"]))
        for one in found
    ]
