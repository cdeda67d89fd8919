"""Where the example projects lie: inside the installed package, or beside `src` in a checkout."""

from __future__ import annotations

from pathlib import Path

import inhouse


def example_project(name: str = "desk-routing") -> Path:
    """The project file of a bundled example."""
    package = Path(inhouse.__file__).parent
    installed = package / "examples" / name / "inhouse.yaml"
    return installed if installed.exists() else package.parents[1] / "examples" / name / "inhouse.yaml"
