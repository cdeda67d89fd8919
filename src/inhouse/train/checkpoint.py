"""Checkpoints that survive a kill at any moment: one counts only once it is marked complete."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from inhouse.core.store import sync_tree, write_durably

MARK = "complete"
NAME = re.compile(r"checkpoint-(\d+)$")


def find_complete(folder: Path) -> Path | None:
    """The newest checkpoint whose save was finished; unfinished ones are removed."""
    for path, _ in _checkpoints(folder):
        if not (path / MARK).exists():
            shutil.rmtree(path)
    complete = _checkpoints(folder)
    return complete[-1][0] if complete else None


def settle(folder: Path, step: int, keep: int) -> None:
    """Mark the checkpoint of `step` complete once its bytes are on disk, then remove all but the `keep` newest."""
    newest = folder / f"checkpoint-{step}"
    sync_tree(newest)
    write_durably(newest / MARK, "")
    for path, _ in _checkpoints(folder)[:-keep]:
        (path / MARK).unlink(missing_ok=True)  # a removal that is cut off must not leave a half that counts
        shutil.rmtree(path)


def _checkpoints(folder: Path) -> list[tuple[Path, int]]:
    found = [(path, int(match[1])) for path in folder.glob("checkpoint-*") if (match := NAME.search(path.name))]
    return sorted(found, key=lambda item: item[1])
