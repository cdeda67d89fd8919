"""Whole runs of the program on a tiny project."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from projects import Project, write_tiny_project


@pytest.fixture
def tiny_project(tmp_path: Path, tiny_llama: Path) -> Callable[[str], Project]:
    """Make a tiny project in a folder of this name."""
    return lambda name: write_tiny_project(tmp_path / name, tiny_llama)


@pytest.fixture(scope="session")
def made_project(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Project:
    """A tiny project that was run once, for commands that look at what was made."""
    project = write_tiny_project(tmp_path_factory.mktemp("made") / "tiny", tiny_llama)
    done = project.run("run")
    assert done.returncode == 0, done.stdout + done.stderr
    return project


@pytest.fixture
def half_made_project(made_project: Project, tiny_project: Callable[[str], Project]) -> Project:
    """A project whose steps up to the report were made already, with no release and an empty registry."""
    project = tiny_project("half-made")
    made = {step["name"]: step["id"] for step in made_project.json("run")["steps"]}
    for name, artifact in made.items():
        if name != "release":
            place = Path(".inhouse", "objects", artifact)
            shutil.copytree(made_project.folder / place, project.folder / place)
    return project
