"""The download folder: each source once, published by one rename, safe when two processes want the same thing.

`cache/<scheme>/<entry>/` holds `content/` (what was asked for, read-only), `licence/` (the terms that came with
it) and `source.json` (where it came from, without times, so that two machines hold equal entries).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from inhouse.core.errors import UserError
from inhouse.core.fingerprint import hash_file
from inhouse.core.run import Events
from inhouse.core.store import disk_errors, read_json, sync_folder, sync_tree, write_durably

CONTENT = "content"
LICENCE = "licence"
SOURCE = "source.json"
LOCK_POLL_S = 1.0


@dataclass(frozen=True)
class Request:
    """One call of `fetch`."""

    uri: str
    cache: Path
    offline: bool
    sha256: str | None = None
    events: Events = field(default_factory=Events)


def entry_of(request: Request, scheme: str, readable: str) -> Path:
    """The folder that `request` is kept in: a readable beginning, then a hash of the whole URI."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", readable).strip(".-")[:80]
    return request.cache / scheme / f"{name}-{sha256(request.uri.encode()).hexdigest()[:12]}"


def keep(request: Request, entry: Path, named: str, download: Callable[[Path], dict[str, Any]]) -> Path:
    """The path `named` in the entry's content ('' for all of it), fetched by `download(staging)` when it is not there.

    `download` fills `staging/content` and `staging/licence` and returns the facts for source.json. The staging
    folder survives a crash, so that a download can go on where it stopped. Offline and absent: sources.offline.
    """
    if not (entry / SOURCE).exists():
        if request.offline:
            raise UserError("sources.offline", uri=request.uri, cache=request.cache)
        with disk_errors(request.cache):
            entry.parent.mkdir(parents=True, exist_ok=True)
            with _held(entry.with_name(f".{entry.name}.lock"), request.events):
                _make(request, entry, named, download)
    verify_pin(request, entry / CONTENT / named)
    return entry / CONTENT / named


def _make(request: Request, entry: Path, named: str, download: Callable[[Path], dict[str, Any]]) -> None:
    if (entry / SOURCE).exists():
        return  # another process made it while this one waited
    staging = entry.with_name(f".{entry.name}.part")
    for name in (CONTENT, LICENCE):
        (staging / name).mkdir(parents=True, exist_ok=True)
    try:
        facts = download(staging)
        verify_pin(request, staging / CONTENT / named)
    except UserError as error:
        if error.code != "sources.network":  # what came before the network broke is where the next try goes on
            shutil.rmtree(staging, ignore_errors=True)
        raise
    write_durably(staging / SOURCE, json.dumps({"uri": request.uri, **facts}, indent=1, sort_keys=True))
    protect(staging)
    sync_tree(staging)
    staging.rename(entry)
    sync_folder(entry.parent)


@contextmanager
def _held(path: Path, events: Events) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    while True:
        events.check()  # a user may cancel while another process downloads
        try:
            lock.acquire(timeout=LOCK_POLL_S)
            break
        except Timeout:
            continue
    try:
        yield
    finally:
        lock.release()


def protect(folder: Path) -> None:
    """Make every file read-only: artifacts hard-link to these bytes."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(0o444)


def verify_pin(request: Request, path: Path) -> None:
    """Raise sources.sha256 unless `path` has the pinned hash, sources.pinned_folder when it is no single file."""
    if request.sha256 is None:
        return
    if not path.is_file():
        raise UserError("sources.pinned_folder", uri=request.uri)
    found = hash_file(path)
    if found != request.sha256.lower():
        raise UserError("sources.sha256", uri=request.uri, expected=request.sha256, found=found)


def entry_holding(path: Path) -> Path | None:
    """The cache entry that a fetched path lies in; None for a local file."""
    for folder in path.parents:
        if folder.name == CONTENT and (folder.parent / SOURCE).is_file():
            return folder.parent
    if path.name == CONTENT and (path.parent / SOURCE).is_file():
        return path.parent
    return None


def source_facts(path: Path) -> dict[str, Any]:
    """What source.json says of a fetched path: uri, resolved revision, licence; empty for a local file."""
    entry = entry_holding(path)
    return {} if entry is None else read_json(entry / SOURCE)
