"""Compile loops with numba, and keep what was compiled as long as the code around it is the same."""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from inhouse.core.settings import cache_home

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
_loading = threading.RLock()  # numba compiles in one thread at a time, but does not look again who was first
UNUSED_S = 30 * 24 * 3600  # after which what was compiled from other code is removed


def kernel(signature: Any = None, inline: Literal["never", "always"] = "never") -> Callable[[F], F]:
    """Compile a function of numbers and arrays for `signature`, without the interpreter's lock.

    Numba keeps compiled code as long as the function's own file is the same, with the constants and functions of other
    files compiled in. So each state of the folder that the function is in has a cache of its own.
    """

    def compiled(function: F) -> F:
        import numba

        folder = Path(function.__code__.co_filename).parent
        with _cache_of(folder) as kept:
            found: Any = numba.njit(cache=kept, nogil=True, inline=inline)(function)
        return found if signature is None else _when_used(found, signature, folder)  # type: ignore[no-any-return]

    return compiled


def kept_beside(file: str, make: Callable[[bool], T]) -> T:
    """What `make` compiles, called with whether numba can keep it for the code in the file's folder."""
    folder = Path(file).parent

    def made() -> T:
        with _cache_of(folder) as kept:
            return make(kept)

    return _or_anew(folder, made)


def _or_anew(folder: Path, compile: Callable[[], T]) -> T:
    """What `compile` gives, the second time without what was kept: damaged files would end every run like the first."""
    try:
        return compile()
    except Exception:  # out of a damaged file pickle may raise any; what is wrong with the code is raised again
        place = _place(folder, str(_settings_of_numba().CACHE_DIR))
        if place is None:
            raise
        for path in place.rglob("*.nb[ci]"):
            path.unlink(missing_ok=True)
        return compile()


def _when_used(found: Any, signature: Any, folder: Path) -> Any:
    """Compile, or load, for the signature alone, when first called or when what calls it is compiled.

    To numba a signature means to do so at once: most kernels are parts of others, and loading them all takes as long
    as cleaning 5 MB of text.
    """
    template = found.get_call_template

    def ready() -> None:
        with _loading:
            if not found.overloads:
                _or_anew(folder, lambda: found.compile(signature))
                found.disable_compile()

    def template_when_ready(arguments: Any, names: Any) -> Any:
        ready()
        return template(arguments, names)

    def call_when_ready(*arguments: Any) -> Any:
        ready()
        answer = found(*arguments)  # raises TypeError for arguments of other types
        return lambda *_: answer  # what numba then calls with the same arguments

    found.get_call_template, found._compile_for_args = template_when_ready, call_when_ready
    return found


def place_beside(file: str) -> Path | None:
    """Where one may keep what the code in a file's folder, as it is now, has computed; None when there is no place."""
    return _place(Path(file).parent, "")


@contextmanager
def _cache_of(folder: Path) -> Iterator[bool]:
    """Let numba keep what is compiled here in the folder for this code; false where there is no place for one."""
    config = _settings_of_numba()
    before = config.CACHE_DIR
    found = _place(folder, before)
    config.CACHE_DIR = before if found is None else str(found)
    try:
        yield found is not None
    finally:
        config.CACHE_DIR = before


def _settings_of_numba() -> Any:
    """A module that sets its names as it reads the environment."""
    from numba.core import config

    return config


@cache
def _place(folder: Path, wanted: str) -> Path | None:
    """Where compiled code of a folder is kept: as NUMBA_CACHE_DIR says, else beside it, else in the user's cache."""
    name = f"kernels-{_state(folder)}"
    homes = (Path(wanted),) if wanted else (folder / "__pycache__", cache_home() / "inhouse")
    for home in homes:
        try:
            _make(home / name)
        except OSError:
            continue  # not ours to write in
        return home / name
    return None


def _make(place: Path) -> None:
    """Make the folder if it is not there, and see whether one can write in it. Raises OSError."""
    if not place.exists():
        place.mkdir(parents=True, mode=0o700, exist_ok=True)
        for old in place.parent.glob("kernels-*"):
            if old.stat().st_mtime < time.time() - UNUSED_S:
                shutil.rmtree(old, ignore_errors=True)
    tempfile.TemporaryFile(dir=place).close()


def _state(folder: Path) -> str:
    """A digest of the modules in a folder."""
    digest = hashlib.sha256(sys.version.encode())
    for path in sorted(folder.glob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]
