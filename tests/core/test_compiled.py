"""Compiled loops are kept as long as the code around them is the same, wherever there is a place for them."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

from inhouse.core import compiled, plugins

pytest.importorskip("numba")

CALLED = """
from inhouse.core.compiled import kernel

@kernel("int64(int64)")
def step(number):
    return number + {step}
"""
CALLER = """
from inhouse.core.compiled import kernel
from loops.called import step

@kernel("int64(int64)")
def twice(number):
    return step(step(number))
"""


@pytest.fixture
def loops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of two modules of loops, of which one has the other's compiled in."""
    folder = tmp_path / "loops"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "called.py").write_text(CALLED.format(step=1))
    (folder / "caller.py").write_text(CALLER)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    yield folder
    forget()


def forget() -> None:
    compiled._place.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "loops"]:
        del sys.modules[name]


def loaded() -> ModuleType:
    """The loops as a new process would have them."""
    forget()
    importlib.invalidate_caches()
    module = importlib.import_module("loops.caller")
    module.twice(0)  # compiled, or taken from where it was kept, when first called
    return module


def test_loops_are_made_ready_once_by_threads_that_call_together(loops: Path) -> None:
    forget()
    importlib.invalidate_caches()
    module = importlib.import_module("loops.caller")
    barrier = threading.Barrier(8)

    def call(number: int) -> int:
        barrier.wait()
        return int(module.twice(number))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(call, range(8))) == [number + 2 for number in range(8)]


def test_loops_refuse_arguments_that_they_were_not_made_for(loops: Path) -> None:
    module = loaded()
    for _ in range(2):
        with pytest.raises(TypeError, match="No matching definition"):
            module.twice("two")
    assert module.twice(2) == 4


def from_cache(module: ModuleType) -> bool:
    return bool(module.twice.stats.cache_hits)


def caches(folder: Path) -> list[Path]:
    return sorted(folder.glob("kernels-*"))


def test_loop_is_compiled_again_when_one_that_it_calls_changed(loops: Path) -> None:
    first = loaded()
    assert first.twice(5) == 7 and not from_cache(first)
    again = loaded()
    assert again.twice(5) == 7 and from_cache(again)
    (loops / "called.py").write_text(CALLED.format(step=10))
    changed = loaded()
    assert changed.twice(5) == 25 and not from_cache(changed)
    assert len(caches(loops / "__pycache__")) == 2


def test_loops_in_a_folder_of_somebody_else_are_kept_in_the_users(loops: Path, tmp_path: Path) -> None:
    (loops / "__pycache__").touch()  # as good as a folder that one cannot write in, also for root
    assert loaded().twice(5) == 7
    assert len(caches(tmp_path / "home" / "inhouse")) == 1
    assert from_cache(loaded())


def test_loops_are_kept_where_numba_is_told(loops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from numba.core import config

    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path / "told"))
    assert loaded().twice(5) == 7
    assert len(caches(tmp_path / "told")) == 1 and not caches(loops / "__pycache__")
    assert str(tmp_path / "told") == config.CACHE_DIR


def test_loops_work_where_nothing_can_be_kept(loops: Path, tmp_path: Path) -> None:
    (loops / "__pycache__").touch()
    (tmp_path / "home").touch()
    assert loaded().twice(5) == 7
    assert not from_cache(loaded())


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
@pytest.mark.parametrize("damaged", [b"", bytes(100)])
def test_loops_whose_kept_code_is_damaged_are_compiled_and_kept_anew(loops: Path, kind: str, damaged: bytes) -> None:
    loaded()
    files = list((loops / "__pycache__").rglob(f"*.{kind}"))
    assert files
    for path in files:
        path.write_bytes(damaged)
    assert loaded().twice(5) == 7
    assert from_cache(loaded())


def test_fault_of_the_code_is_told_also_where_nothing_can_be_kept(loops: Path, tmp_path: Path) -> None:
    (loops / "called.py").write_text(CALLED.format(step="unknown"))
    with pytest.raises(Exception, match="unknown"):
        loaded()
    (tmp_path / "home").touch()
    shutil.rmtree(loops / "__pycache__")
    (loops / "__pycache__").touch()
    with pytest.raises(Exception, match="unknown"):
        loaded()


def test_loops_compiled_long_ago_from_other_code_are_removed(loops: Path) -> None:
    loaded()
    [old] = caches(loops / "__pycache__")
    os.utime(old, (0, time.time() - compiled.UNUSED_S - 60))
    (loops / "called.py").write_text(CALLED.format(step=2))
    assert loaded().twice(1) == 5
    assert old not in caches(loops / "__pycache__")


def test_our_loops_have_nothing_compiled_in_from_outside_their_folder() -> None:
    """The state of the folder is what compiled code is known by."""
    for package in ("inhouse.data.kernels", "inhouse.guard.kernels"):
        folder = Path(str(importlib.import_module(package).__file__)).parent
        for path in folder.glob("*.py"):
            stat = path.stat()
            imported = plugins._source(path, stat.st_mtime_ns, stat.st_size).imported
            ours = {name for name in imported if name.startswith("inhouse.")}
            assert all(name.startswith((package, "inhouse.core.compiled")) for name in ours), path
            assert "njit" not in path.read_text(encoding="utf-8"), f"{path}: use core.compiled.kernel"
