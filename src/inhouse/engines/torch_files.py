"""What the readers of model files share."""

from __future__ import annotations

from pathlib import Path

from inhouse.core.errors import UserError


def unreadable(path: Path, error: Exception, name: str = "") -> UserError:
    """The error for model files that a library could not read: its first line, without local paths.

    `name`: what people call the model, where the path is a folder.
    """
    told = name or path.name
    problem = (str(error).strip() or type(error).__name__).splitlines()[0].replace(str(path), told)
    return UserError("torch.unreadable", path=told, problem=problem[:300])
