"""Compiled loops run by the threads that torch computes with."""

from __future__ import annotations

import ctypes
import os
import struct
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch


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
