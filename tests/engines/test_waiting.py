"""How threads wait in processes that are started: by what else runs, by what the user says, and to what effect."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from inhouse.engines.waiting import SLEEPING, waiting
from inhouse.flow import jobs


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A process that may use two cores of four, and an environment that says nothing of waiting."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "INHOUSE_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 2})
    return monkeypatch


def use(cores: pytest.MonkeyPatch, *shares: float) -> None:
    """Let others use so much of each core."""
    cores.setattr(psutil, "cpu_percent", lambda interval, percpu: list(shares))


@pytest.mark.parametrize("shares", [(0, 0, 0, 0), (0, 24, 24, 0), (99, 0, 0, 99)])
def test_threads_spin_where_their_own_cores_are_quiet(cores: pytest.MonkeyPatch, shares: tuple[float, ...]) -> None:
    use(cores, *shares)
    assert waiting(700) == {"GOMP_SPINCOUNT": "700"}


def test_threads_sleep_beside_other_work_and_where_there_are_not_as_many_cores(cores: pytest.MonkeyPatch) -> None:
    use(cores, 0, 60, 60, 0)
    assert waiting(700) == SLEEPING
    use(cores, 0, 0, 0, 0)
    for threads in ("1", "3"):
        cores.setenv("INHOUSE_THREADS", threads)
        assert waiting(700) == SLEEPING
    cores.delenv("INHOUSE_THREADS")
    cores.setattr(os, "sched_getaffinity", lambda _: {1})
    assert waiting(700) == SLEEPING


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_what_the_user_says_of_jobs_stands(cores: pytest.MonkeyPatch, name: str) -> None:
    cores.setenv(name, "active")
    assert jobs.threads() == {}


def test_openmp_reads_what_it_is_told(tmp_path: Path) -> None:
    """libgomp shows what it has understood."""
    code = "import torch; torch.set_num_threads(2); torch.ones(4000, 4000).sum()"
    for told, shown in ((SLEEPING, "GOMP_SPINCOUNT = '0'"), ({"GOMP_SPINCOUNT": "700"}, "GOMP_SPINCOUNT = '700'")):
        env = {"OMP_DISPLAY_ENV": "VERBOSE", "PATH": "/usr/bin", "HOME": str(tmp_path)} | told
        found = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        assert shown in found.stderr
