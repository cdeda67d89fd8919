"""Compiled loops run by the threads that torch computes with."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch

from inhouse.core.settings import own_cores, spinning


@cache
def able() -> bool:
    """Whether loops can be compiled here, and torch's team of threads is one that can be asked."""
    if find_spec("numba") is None or _openmp() is None:
        return False
    try:
        import numba  # noqa: F401
    except ImportError:  # not made for this version of NumPy
        return False
    return True


def fits(*tensors: torch.Tensor) -> bool:
    """Whether loops are made for these tensors: bf16 on a CPU, the last dimension without gaps."""
    alike = all(one.dtype == torch.bfloat16 and one.device.type == "cpu" and one.stride(-1) == 1 for one in tensors)
    return alike and able()


def run(name: str, rows: int, *numbers: int) -> None:
    """Let the team run one of `kernels.loops` over rows; what the numbers mean stands with the loop."""
    loop, threads = _compiled(name), min(torch.get_num_threads(), rows)
    team = _openmp()
    if threads <= 1 or team is None:
        loop((ctypes.c_int64 * (len(numbers) + 3))(0, 0, rows, *numbers))
        return
    data = (ctypes.c_int64 * (len(numbers) + 3))(*team[1], rows, *numbers)
    team[0](loop, data, threads, 0)


@contextmanager
def apart() -> Iterator[None]:
    """Let each thread of the team but the first stay on a core of its own, where they spin and have a core each.

    A thread that has slept may be woken on the core of the one that waits for it. The first thread is left alone:
    processes that it starts inherit where it may run.
    """
    cores, threads = own_cores(), torch.get_num_threads()
    placed = spinning() and 1 < threads == len(cores) and _openmp() is not None
    if placed:
        _place([{core} for core in cores])
    try:
        yield
    finally:
        if placed:
            _place([set(cores)] * threads)


def _place(where: Sequence[set[int]]) -> None:
    team = _openmp()
    assert team is not None
    number = ctypes.CFUNCTYPE(ctypes.c_int)(team[1][0])

    def move(_: int | None) -> None:
        with suppress(OSError):  # where it is not allowed they stay where they are
            if own := number():
                os.sched_setaffinity(0, where[own])

    team[0](ctypes.CFUNCTYPE(None, ctypes.c_void_p)(move), None, len(where), 0)


def bits(value: float) -> int:
    """A float32 as the number that `run` takes."""
    found: int = struct.unpack("<I", struct.pack("<f", value))[0]
    return found


@cache
def _openmp() -> tuple[Any, tuple[int, int]] | None:
    """GOMP_parallel of GNU OpenMP where torch has loaded it, and the addresses of who and how many; else None."""
    try:
        library = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        found = library.GOMP_parallel
        asked = (library.omp_get_thread_num, library.omp_get_num_threads)
    except (OSError, AttributeError):  # not Linux, or torch built with another library
        return None
    found.argtypes, found.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint), None
    who, many = (ctypes.cast(one, ctypes.c_void_p).value or 0 for one in asked)
    return found, (who, many)


@cache
def _compiled(name: str) -> Any:
    """A loop as a C function, compiled once for the code as it is."""
    from inhouse.core.compiled import kept_beside
    from inhouse.train.kernels import loops

    return kept_beside(loops.__file__, lambda kept: loops.compiled(name, kept)).ctypes
