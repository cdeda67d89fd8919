"""What the readers of model files share."""

from __future__ import annotations

from pathlib import Path

from inhouse.core.errors import UserError


def unreadable(path: Path, error: Exception) -> UserError:
    """The error for model files that a library could not read: its first line, without local paths."""
    problem = (str(error).strip() or type(error).__name__).splitlines()[0].replace(str(path), path.name)
    return UserError("torch.unreadable", path=path.name, problem=problem[:300])
