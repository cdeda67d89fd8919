"""Fingerprints of values, files and folders. Hashes stream; a file's hash is remembered by size, mtime, inode."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from inhouse.core.artifact import FileEntry

CHUNK = 1 << 20


def hash_json(value: Any) -> str:
    """sha256 (32 hex digits) of a JSON value in its canonical form: sorted keys, no spaces, UTF-8."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def hash_file(path: Path) -> str:
    """sha256 (64 hex digits) of a file's bytes, read in pieces."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


class FileHashes:
    """Remember hashes by (size, mtime_ns, inode) in one JSON file, so that nothing large is read twice."""

    def __init__(self, memory: Path) -> None:
        self.memory = memory
        try:
            self.known: dict[str, str] = json.loads(memory.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.known = {}  # losing this memory costs time, never correctness

    def of(self, path: Path) -> str:
        """sha256 of the file, from memory when it has not changed since."""
        stat = path.stat()
        key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ino}"
        if key not in self.known:
            self.known[key] = hash_file(path)
            self._save()
        return self.known[key]

    def of_tree(self, path: Path) -> str:
        """Fingerprint of a file, or of every file below a folder with its relative path."""
        if path.is_file():
            return self.of(path)
        entries = [(p.relative_to(path).as_posix(), self.of(p)) for p in sorted(path.rglob("*")) if p.is_file()]
        return hash_json(entries)

    def _save(self) -> None:
        self.memory.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.memory.with_suffix(f".{os.getpid()}")
        scratch.write_text(json.dumps(self.known), encoding="utf-8")
        scratch.replace(self.memory)


def list_files(folder: Path) -> tuple[FileEntry, ...]:
    """Every file below `folder`, by path, with size and sha256; symbolic links are not followed."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            name = path.relative_to(folder).as_posix()
            found.append(FileEntry(path=name, bytes=path.stat().st_size, sha256=hash_file(path)))
    return tuple(sorted(found, key=lambda f: f.path))


def identity(kind: str, files: Iterable[FileEntry]) -> str:
    """The id of an artifact: H(kind, sorted (path, sha256)) over the files that count."""
    return hash_json([kind, *sorted((f.path, f.sha256) for f in files if f.counts)])[:24]
