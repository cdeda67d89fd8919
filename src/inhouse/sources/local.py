"""A file or folder of this machine, relative to the project file."""

from __future__ import annotations

from pathlib import Path

from inhouse.core.errors import UserError
from inhouse.core.fingerprint import FileHashes, hash_file, hash_json
from inhouse.core.settings import settings

# From here on a hash is remembered by size, mtime and inode: reading 64 MB takes about 0.1 s.
REMEMBER_FROM_BYTES = 64 * 2**20


def find(uri: str, project_dir: Path) -> Path:
    """The absolute path of `uri`; raise sources.missing when nothing is there."""
    path = Path(uri).expanduser()
    path = path if path.is_absolute() else project_dir / path
    if not path.exists():
        raise UserError("sources.missing", uri=uri, path=path)
    return path.resolve()


def fingerprint(uri: str, project_dir: Path) -> str:
    """sha256 of the file, or one hash over every file below the folder and its relative path."""
    path = find(uri, project_dir)
    if path.is_file():
        return _hash(path)
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return hash_json([(p.relative_to(path).as_posix(), _hash(p)) for p in files])


def _hash(path: Path) -> str:
    if path.stat().st_size < REMEMBER_FROM_BYTES:
        return hash_file(path)
    return FileHashes(settings().workspace / "hashes.json").of(path)
