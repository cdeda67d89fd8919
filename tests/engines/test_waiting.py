"""How threads wait in processes that are started: by what else runs, by what the user says, and to what effect."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from inhouse.engines import waiting as module
from inhouse.engines.waiting import SLEEPING, waiting
from inhouse.flow import jobs


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Two cores, and an environment that says nothing of waiting."""
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "usable_cores", lambda: 2)
    return monkeypatch


@pytest.mark.parametrize(("used", "found"), [(0.0, {"GOMP_SPINCOUNT": "700"}), (24.0, {"GOMP_SPINCOUNT": "700"})])
def test_threads_spin_on_a_quiet_machine(cores: pytest.MonkeyPatch, used: float, found: dict[str, str]) -> None:
    cores.setattr(psutil, "cpu_percent", lambda interval: used)
    assert waiting(700) == found


def test_threads_sleep_beside_other_work_and_where_there_is_one(cores: pytest.MonkeyPatch) -> None:
    cores.setattr(psutil, "cpu_percent", lambda interval: 60.0)
    assert waiting(700) == SLEEPING
    cores.setattr(psutil, "cpu_percent", lambda interval: 0.0)
    cores.setattr(module, "usable_cores", lambda: 1)
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
