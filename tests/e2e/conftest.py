"""Whole runs of the program on a tiny project."""

from __future__ import annotations

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
