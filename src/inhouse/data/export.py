"""Copy a dataset out of the workspace, with a pointer for DVC and an input for MLflow."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from inhouse.core.artifact import Frozen
from inhouse.core.errors import UserError
from inhouse.core.plugins import require
from inhouse.core.rows import PARTS, Part
from inhouse.core.store import disk_errors, new_folder
from inhouse.data.card import PICTURES
from inhouse.data.versions import Version
from inhouse.dataset import EXTRA, FACTS, part_files, read_rows

Format = Literal["parquet", "jsonl"]
BESIDE = (FACTS, "README.md")  # what a copy brings besides its rows
CHUNK = 1 << 20
COLUMN_TYPES: dict[str, dict[str, Any]] = {"offset": {"type": "long"}, "desirable": {"type": "boolean"}}
NULLABLE = ("label", "parent", *EXTRA)


class Exported(Frozen):
    """What an export wrote. `mlflow` says what became of the MLflow input."""

    folder: Path
    rows: dict[str, int] = Field(description="rows of each part")
    files: tuple[str, ...] = Field(description="files below the folder")
    dvc: Path | None = None
    mlflow: Path | None = None
    logged: str | None = Field(None, description="id of the MLflow run that the input was logged to")
    not_logged: Literal["not_installed", "no_tracking_uri", "offline"] | None = None


def export(version: Version, folder: Path, form: Format) -> Exported:
    """Copy a dataset's rows, card and facts to a folder that does not exist yet or is empty. Raises data.export_exists.

    parquet: the tables as they are. jsonl: one file a part, one row a line, with `messages` as OpenAI's API takes them,
    or `text` for plain documents.
    """
    facts = version.facts
    with new_folder(folder, UserError("data.export_exists", folder=folder)) as draft:
        _copy_beside(version.folder, draft)
        for part in PARTS:
            if form == "jsonl":
                _write_lines(version.folder, part, draft)
                continue
            for path in part_files(version.folder, part):
                shutil.copyfile(path, draft / path.name)
    return Exported(folder=folder, rows=dict(facts["rows"]), files=tuple(name for name, _ in listing(folder)))


def _copy_beside(source: Path, target: Path) -> None:
    for name in BESIDE:
        shutil.copyfile(source / name, target / name)
    if (source / PICTURES).is_dir():
        shutil.copytree(source / PICTURES, target / PICTURES)


def _write_lines(source: Path, part: Part, target: Path) -> None:
    if not part_files(source, part):
        return
    with (target / f"{part}.jsonl").open("w", encoding="utf-8", newline="\n") as f:
        for row in read_rows(source, part):
            fields = row.model_dump(exclude={"messages"}, exclude_none=True)
            plain = len(row.messages) == 1  # a document: an answer without a question
            said = (
                {"text": row.answer}
                if plain
                else {"messages": [turn.model_dump(exclude_none=True) for turn in row.messages]}
            )
            f.write(json.dumps({"id": fields.pop("id"), **said, **fields}, ensure_ascii=False) + "\n")


def listing(folder: Path) -> list[tuple[str, Path]]:
    """Every file below a folder by its name there, in the order that DVC lists them."""
    return sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())


def write_dvc(folder: Path) -> Path:
    """Write FOLDER.dvc as `dvc add FOLDER` of DVC 3 does; the files themselves enter its cache by `dvc commit`.

    Format: https://dvc.org/doc/user-guide/project-structure/dvc-files; a folder's hash is the md5 of the JSON list of
    its files' hashes.
    """
    found = listing(folder)
    entries = [{"md5": _md5(path), "relpath": name} for name, path in found]
    digest = hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest()
    out = {
        "md5": f"{digest}.dir",
        "size": sum(path.stat().st_size for _, path in found),
        "nfiles": len(found),
        "hash": "md5",
        "path": folder.absolute().name,
    }
    pointer = _beside(folder, "dvc")
    with disk_errors(pointer):
        pointer.write_text(yaml.safe_dump({"outs": [out]}, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return pointer


def _beside(folder: Path, ending: str) -> Path:
    """A file that is named after a folder and stands next to it."""
    named = folder if folder.name not in ("", "..") else folder.resolve()
    return named.with_name(f"{named.name}.{ending}")


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as f:
        while chunk := f.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def mlflow_input(version: Version, folder: Path) -> dict[str, Any]:
    """The copy as mlflow.entities.DatasetInput.to_dictionary() gives it; its digest is the dataset's id."""
    rows = version.facts["rows"]
    columns = _columns(version.folder)
    total = sum(rows.values())
    profile = {"num_rows": total, "num_elements": total * len(columns), **{f"num_rows_{k}": v for k, v in rows.items()}}
    dataset = {
        "name": folder.absolute().name,
        "digest": version.record.id,
        "source_type": "local",
        "source": json.dumps({"uri": str(folder.absolute())}, ensure_ascii=False),
        "schema": json.dumps({"mlflow_colspec": columns}),
        "profile": json.dumps(profile),
    }
    tags = {"mlflow.data.context": "training", "inhouse.version": version.name, "inhouse.recipe": version.record.recipe}
    return {"dataset": dataset, "tags": tags}


def _columns(folder: Path) -> list[dict[str, Any]]:
    """The tables' columns in MLflow's words (mlflow.types.Schema)."""
    require("data", "polars")
    import polars as pl

    path = next(path for part in PARTS for path in part_files(folder, part))
    found = []
    for name, kind in pl.read_parquet_schema(path).items():
        described = COLUMN_TYPES.get(name, {"type": "string"})
        if isinstance(kind, pl.List) and isinstance(kind.inner, pl.Struct):
            fields = {f.name: {"type": "string", "required": f.name == "role"} for f in kind.inner.fields}
            described = {"type": "array", "items": {"type": "object", "properties": dict(sorted(fields.items()))}}
        found.append({**described, "name": name, "required": name not in NULLABLE})
    return found


def write_mlflow(content: Mapping[str, Any], folder: Path) -> Path:
    """Write FOLDER.mlflow.json, beside the copy so that the copy's hash does not depend on it."""
    path = _beside(folder, "mlflow.json")
    with disk_errors(path):
        path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    return path


def log_mlflow(content: Mapping[str, Any], offline: bool) -> tuple[str | None, str | None]:
    """Log the input to the MLflow run that is open, or to a new one; (id of the run, or why it was not logged)."""
    if importlib.util.find_spec("mlflow") is None:
        return None, "not_installed"
    mlflow: Any = importlib.import_module("mlflow")
    if not mlflow.is_tracking_uri_set():
        return None, "no_tracking_uri"
    if offline and str(mlflow.get_tracking_uri()).startswith(("http:", "https:", "databricks")):
        return None, "offline"
    entities: Any = importlib.import_module("mlflow.entities")
    tags = [entities.InputTag(key, value) for key, value in content["tags"].items()]
    made = entities.DatasetInput(dataset=entities.Dataset(**content["dataset"]), tags=tags)
    return _logged(mlflow, made), None


def _logged(mlflow: Any, made: Any) -> str:
    # the client, not mlflow.log_input: that takes an object with the data in memory and forgets schema and profile
    client = mlflow.MlflowClient()
    if (run := mlflow.active_run()) is not None:
        client.log_inputs(run.info.run_id, [made])
        return str(run.info.run_id)
    with mlflow.start_run(run_name=f"dataset {made.dataset.digest[:8]}") as run:
        client.log_inputs(run.info.run_id, [made])
    return str(run.info.run_id)
