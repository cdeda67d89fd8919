"""Start a project, and the schema of its file."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import Field

from inhouse.api.request import Request
from inhouse.core.artifact import Frozen
from inhouse.core.errors import UserError
from inhouse.core.messages import language
from inhouse.core.plugins import require
from inhouse.core.settings import child_environment
from inhouse.core.store import disk_errors
from inhouse.flow.project import load, schema


class InitRequest(Request):
    """Where to write a new project."""

    folder: Path = Field(Path(), description="folder of the new project")
    name: str | None = Field(None, description="name of the model that is made; the folder's name when left out")


class Created(Frozen):
    """The files that were written."""

    files: tuple[Path, ...]


class SchemaRequest(Request):
    """Where the schema goes."""

    output: Path | None = Field(None, description="file to write instead of standard output")
    openapi: bool = Field(False, description="the OpenAPI document of the endpoint instead")


class Schema(Frozen):
    """The JSON Schema of a project file, or the OpenAPI document of the endpoint."""

    document: dict[str, Any]
    output: Path | None = None


def init(request: InitRequest) -> Created:
    """Write a commented project file with a small example dataset that runs as it stands."""
    folder = request.folder
    name = request.name or _slug(folder.absolute().name)
    template = files("inhouse.api").joinpath("templates")
    wanted = {
        folder / "inhouse.yaml": template.joinpath(f"inhouse.{language()}.yaml")
        .read_text("utf-8")
        .replace("NAME", name),
        folder / "data" / "tickets.csv": template.joinpath("tickets.csv").read_text("utf-8"),
        folder / "inhouse.schema.json": json.dumps(schema(), indent=1, ensure_ascii=False) + "\n",
    }
    for path in wanted:
        if path.exists():
            raise UserError("init.exists", path=path)
    with disk_errors(folder):
        for path, content in wanted.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
    load(folder / "inhouse.yaml")
    return Created(files=tuple(wanted))


def _slug(name: str) -> str:
    kept = "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower()).strip("-")
    return kept[:63] or "project"


def project_schema(request: SchemaRequest) -> Schema:
    """The JSON Schema that editors use to complete and check a project file; or what the endpoint answers."""
    document = _openapi() if request.openapi else schema()
    if request.output is not None:
        with disk_errors(request.output):
            request.output.parent.mkdir(parents=True, exist_ok=True)
            request.output.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return Schema(document=document, output=request.output)


def _openapi() -> dict[str, Any]:
    """The endpoint's routes, told by the gateway's own program: what it needs is not loaded here."""
    require("serve", "cachetools", "limits", "prometheus_client")
    command = [sys.executable, "-m", "inhouse.serve.openapi"]
    told = subprocess.run(command, capture_output=True, check=True, env=child_environment(offline=True))
    document: dict[str, Any] = json.loads(told.stdout)
    return document
