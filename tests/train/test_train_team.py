from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator

import pytest
import torch

from inhouse.core.settings import own_cores
from inhouse.train import team


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """As many threads as there are cores: the first two of this process's."""
    if len(own_cores()) < 2 or team._openmp() is None:
        pytest.skip("needs two cores and torch's own OpenMP")
    cores, before = own_cores()[:2], torch.get_num_threads()
    monkeypatch.setattr(team, "own_cores", lambda: cores)
    for name in ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY"):
        monkeypatch.delenv(name, raising=False)
    torch.set_num_threads(2)
    yield cores
    torch.set_num_threads(before)


def _places() -> dict[int, set[int]]:
    """Where each thread of the team may run."""
    found: dict[int, set[int]] = {}
    openmp = team._openmp()
    assert openmp is not None
    number = ctypes.CFUNCTYPE(ctypes.c_int)(openmp[1][0])

    def look(_: int | None) -> None:
        found[number()] = os.sched_getaffinity(0)

    openmp[0](ctypes.CFUNCTYPE(None, ctypes.c_void_p)(look), None, 2, 0)
    return found


def test_threads_that_spin_have_cores_of_their_own_and_the_first_one_stays_free(
    two_threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "10000")
    before = os.sched_getaffinity(0)
    with team.apart():
        assert _places() == {0: before, 1: {two_threads[1]}}
    assert _places() == {0: before, 1: set(two_threads)}


@pytest.mark.parametrize(
    "said", [{"GOMP_SPINCOUNT": "0"}, {"GOMP_SPINCOUNT": "10000", "OMP_PROC_BIND": "close"}, {"GOMP_SPINCOUNT": ""}]
)
def test_threads_that_sleep_or_were_placed_by_somebody_stay_where_they_are(
    said: dict[str, str], two_threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in said.items():
        if value:
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name, raising=False)
    team._place([set(two_threads)] * 2)
    with team.apart():
        assert _places()[1] == set(two_threads)


def test_team_smaller_than_the_machine_is_not_placed(two_threads: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "10000")
    monkeypatch.setattr(team, "own_cores", lambda: [*two_threads, 99])
    team._place([set(two_threads)] * 2)
    with team.apart():
        assert _places()[1] == set(two_threads)
