"""Project folders for the data room's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from project_folder import Folder

from inhouse.core import store
from inhouse.core.messages import use_language
from inhouse.data import tasks


@pytest.fixture(autouse=True)
def english() -> None:
    use_language("en")


@pytest.fixture(autouse=True, scope="session")
def no_power_cuts() -> Iterator[None]:
    """Nothing here can tell whether a file was flushed, and hundreds of small builds would wait for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (tasks, store):
            patch.setattr(module, "sync_folder", lambda path: None)
        yield


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def new_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Folder]:
    return lambda: Folder(tmp_path_factory.mktemp("project"))
