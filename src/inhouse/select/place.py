"""Put a checked model into its artifact: hard links to the read-only download cache, copies of anything else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from inhouse.core.errors import UserError
from inhouse.core.model import ModelFacts
from inhouse.core.protocols import Context
from inhouse.sources.cache import entry_holding
from inhouse.sources.hub import is_code, is_wanted

PIECE = 8 * 2**20


def place(path: Path, facts: ModelFacts, context: Context) -> None:
    """Bring the model's files below `context.out`, read-only. Pickles, code and hidden files stay behind.

    The cache is read-only and never rewritten, so a link to it is as safe as a copy and costs no disk; a user's own
    file may be edited later, so it is copied.
    """
    files = _files(path, facts)
    linkable = entry_holding(path) is not None
    total = sum(p.stat().st_size for p in files.values())
    if not linkable:
        _require_space(context.out, total)
    done = 0

    def tick(count: int) -> None:
        nonlocal done
        done += count
        context.events.progress(done, total, "bytes")

    for name, source in files.items():
        target = context.out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not (linkable and _linked(source, target)):
            _copy(source, target, tick)
        target.chmod(0o444)


def _files(path: Path, facts: ModelFacts) -> dict[str, Path]:
    """Name in the artifact -> file."""
    if path.is_file():
        return {path.name: path}
    if facts.format == "gguf":
        return {facts.main: path / facts.main}
    found = {p.relative_to(path).as_posix(): p for p in sorted(path.rglob("*")) if p.is_file()}
    return {name: p for name, p in found.items() if is_wanted(name) or (facts.remote_code and is_code(name))}


def _linked(source: Path, target: Path) -> bool:
    try:
        os.link(source.resolve(), target)
    except OSError:
        return False  # another filesystem, or one without hard links
    return True


def _copy(source: Path, target: Path, tick: Callable[[int], None]) -> None:
    with source.open("rb") as reader, target.open("wb") as writer:
        while piece := reader.read(PIECE):
            writer.write(piece)
            tick(len(piece))


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError("store.no_space", path=folder, free_mb=free // 2**20)
