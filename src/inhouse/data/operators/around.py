"""What an operator may know besides rows and its own settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Around:
    """The seed of the project, the folder that relative paths start from, and a cache that survives runs."""

    seed: int
    project_dir: Path
    cache: Path
    offline: bool
