"""What steps that failed or were stopped have left in a workspace, and how it is removed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from inhouse.api.data_check import abandoned, is_check
from inhouse.api.request import Request
from inhouse.core.artifact import Frozen
from inhouse.core.run import Events
from inhouse.flow.runner import run_lock


class Cleaned(Frozen):
    """What was removed."""

    folders: int
    bytes: int


def clean_data(request: Request) -> Cleaned:
    """Remove what builds and checks that failed or were stopped have left: rows as they were read, and steps done.

    The next build of such a project begins anew. Waits for a run of this workspace to end.
    """
    return _removed(request, abandoned)


def clean_training(request: Request) -> Cleaned:
    """Remove what trainings, exports and measurements that failed or were stopped have left: checkpoints, half files.

    The next run of such a project begins them anew. Waits for a run of this workspace to end.
    """
    return _removed(request, lambda folder: not abandoned(folder) and not is_check(folder))


def _removed(request: Request, chosen: Callable[[Path], bool]) -> Cleaned:
    store = request.store
    store.create()
    found, size = 0, 0
    with run_lock(store, Events()):
        store.recover()
        for folder in sorted(path for path in store.work.iterdir() if path.is_dir() and chosen(path)):
            size += sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            shutil.rmtree(folder)
            found += 1
    return Cleaned(folders=found, bytes=size)
