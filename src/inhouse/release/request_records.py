"""The request log of a workspace, as gateways leave it: JSON lines in `logs/requests-<day>-<number>.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = "logs"
FILES = "requests-*.jsonl"


def read_records(root: Path) -> Iterator[dict[str, Any]]:
    """Every record of the workspace at `root`, newest first; a line that a crash cut is left out."""
    for file in sorted((root / FOLDER).glob(FILES), reverse=True):
        for line in reversed(file.read_text(encoding="utf-8", errors="replace").splitlines()):
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found, dict):
                yield found
