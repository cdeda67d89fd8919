"""Whether the model that a release serves still has the bytes it was released with."""

from __future__ import annotations

import json
from pathlib import Path

from inhouse.core.artifact import MEASURED
from inhouse.core.errors import UserError
from inhouse.core.fingerprint import FileHashes, hash_file, hash_json
from inhouse.core.store import RECORD, Store

MEMORY = "hashes.json"


def check_hash(store: Store, artifact: str, again: bool = False) -> Path:
    """The file or folder that the release artifact serves, when its sha256 is still that of the release.

    Hashes are remembered by size, time of change and inode: only a file that changed since is read. `again` reads
    every file, which finds what a failing disk changed too. Raises release.model_changed, release.files_gone.
    """
    release = json.loads((store.path(artifact) / "release.json").read_text(encoding="utf-8"))
    model = release["model"]
    root = store.path(model["artifact"])
    path: Path = root / model["main"]
    if model["format"] == "remote":
        return path
    if not path.exists():
        raise UserError("release.files_gone", release=artifact, path=path)
    hashes = None if again else FileHashes(store.root / MEMORY)
    found = _hash(path, hashes) if path.is_file() else _folder_hash(root, path, hashes)
    if found != model["sha256"]:
        raise UserError("release.model_changed", release=artifact, path=path, wanted=model["sha256"][:12])
    return path


def _hash(path: Path, hashes: FileHashes | None) -> str:
    return hash_file(path) if hashes is None else hashes.of(path)


def _folder_hash(root: Path, folder: Path, hashes: FileHashes | None) -> str:
    """As the release stage hashes a folder: names and hashes of all its files, those that were added since included."""
    files = (path for path in folder.rglob("*") if path.is_file() and path != root / RECORD)
    named = [(path.relative_to(root).as_posix(), path) for path in sorted(files)]
    return hash_json(sorted((name, _hash(path, hashes)) for name, path in named if not name.startswith(MEASURED)))
