"""Copy a release out of the workspace: its model, evidence and terms, and what other programs need to use it."""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from inhouse.core.artifact import MEASURED, Frozen
from inhouse.core.errors import GateFailed, UserError
from inhouse.core.store import RECORD, new_folder, read_json
from inhouse.release.modelfile import write_modelfile
from inhouse.release.registry import Registry, Release
from inhouse.release.whole import check_hash

Demo = Literal["gradio"]
MODELFILE = "Modelfile"


class Exported(Frozen):
    """What an export wrote."""

    release: str
    folder: Path
    files: tuple[str, ...] = Field(description="files below the folder")
    bytes: int
    demo: str | None = Field(None, description="the script of the demo page, below the folder")
    ollama: Literal["template", "own"] | None = Field(
        None,
        description="Modelfile: with the chat template; own: that cannot be told, Ollama chooses; none for folders",
    )


def export(registry: Registry, release: Release, deployment: str, folder: Path, demo: Demo | None) -> Exported:
    """Copy a release that passed its gates to a folder that does not exist yet or is empty.

    Raises release.export_failed, release.export_exists, release.export_remote, and what check_hash raises.
    """
    if not release.passed:
        raise GateFailed("release.export_failed", release=release.label)
    artifact = registry.store.path(release.artifact)
    served: Any = read_json(artifact / "release.json")
    if served["model"]["format"] == "remote":
        raise UserError("release.export_remote", release=release.label, url=served["model"]["main"])
    with new_folder(folder, UserError("release.export_exists", folder=folder)) as draft:
        model = check_hash(registry.store, release.artifact, again=True)
        _copy(registry.store.path(served["model"]["artifact"]), model, draft)
        for path in sorted((artifact / MEASURED).glob("evidence.*")):
            shutil.copyfile(path, draft / path.name)
        bundled = served["engine"] if isinstance(served["engine"], dict) else {}
        ollama = _modelfile(draft, model, release.label, bundled)
        script = None if demo is None else _demo(draft, demo, release.label, deployment)
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return Exported(
        release=release.label, folder=folder, demo=script, ollama=ollama, bytes=sum(p.stat().st_size for p in found),
        files=tuple(path.relative_to(folder).as_posix() for path in found),
    )  # fmt: skip


def _copy(artifact: Path, model: Path, target: Path) -> None:
    """The model itself, and what stands beside it about it: its card and its terms."""
    if model.is_file():
        shutil.copyfile(model, target / model.name)
    else:
        shutil.copytree(model, target, dirs_exist_ok=True, copy_function=shutil.copyfile, ignore=_records)
    for path in artifact.iterdir():
        told = path.name == "README.md" or path.name.lower().startswith(("licen", "notice"))
        if told and not (target / path.name).exists():
            copy = shutil.copytree if path.is_dir() else shutil.copyfile
            copy(path, target / path.name)


def _records(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if name in (RECORD, MEASURED.rstrip("/"))}


def _modelfile(folder: Path, model: Path, label: str, limits: dict[str, Any]) -> Literal["template", "own"] | None:
    if model.suffix != ".gguf":
        return None
    return "template" if write_modelfile(folder / MODELFILE, folder / model.name, label, limits) else "own"


def _demo(folder: Path, kind: Demo, label: str, deployment: str) -> str:
    name = f"demo_{kind}.py"
    script = files("inhouse.release").joinpath(f"{kind}_demo.py.txt").read_text("utf-8")
    (folder / name).write_text(script.format(label=label, deployment=deployment, file=name), encoding="utf-8")
    return name
