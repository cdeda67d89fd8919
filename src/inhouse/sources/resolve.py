"""One door to every source: `fetch` brings a URI to this machine, `fingerprint` names its content in a recipe."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from inhouse.core.errors import UserError
from inhouse.core.run import Events
from inhouse.sources.cache import Request, verify_pin
from inhouse.sources.hf import fetch as fetch_hf
from inhouse.sources.local import find as find_local
from inhouse.sources.local import fingerprint as fingerprint_local
from inhouse.sources.ms import fetch as fetch_ms
from inhouse.sources.pypi import fetch as fetch_pypi

Scheme = Literal["pypi", "hf", "ms", "http", "https", "local"]
SCHEMES = ("pypi", "hf", "ms", "http", "https")
# Two letters at least: `C:\models` is a folder, not a scheme.
PREFIX = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):(?!\\)")


def scheme_of(uri: str) -> Scheme:
    """The scheme of `uri`; what has none is a local path. An unknown scheme raises sources.scheme."""
    match = PREFIX.match(uri)
    if match is None:
        return "local"
    name = match.group(1).lower()
    for known in SCHEMES:
        if name == known:
            return known  # type: ignore[return-value]
    raise UserError("sources.scheme", uri=uri, scheme=name, schemes=", ".join(f"{s}:" for s in SCHEMES))


def fetch(
    uri: str,
    cache: Path,
    *,
    offline: bool,
    project_dir: Path | None = None,
    sha256: str | None = None,
    events: Events | None = None,
) -> Path:
    """Bring what `uri` names to this machine and return its file or folder.

    Downloads are kept below `cache` and published by one rename; offline, only what is kept there is found and no
    socket is opened. `sha256` (64 hex digits) pins the content of a single file. What is returned is read-only.
    Raises sources.* errors.
    """
    scheme = scheme_of(uri)
    request = Request(uri=uri, cache=cache, offline=offline, sha256=sha256, events=events or Events())
    if scheme == "local":
        found = find_local(uri, project_dir or Path.cwd())
        verify_pin(request, found)
        return found
    if scheme in ("http", "https"):
        raise UserError("sources.url", uri=uri)
    download = {"pypi": fetch_pypi, "hf": fetch_hf, "ms": fetch_ms}[scheme]
    return download(request)


def fingerprint(uri: str, project_dir: Path) -> str:
    """What stands for the content of `uri` in a recipe: a local file's hash, else the URI itself.

    Nothing is downloaded: a plan must be made without a network. A hub revision that is not a commit is resolved
    once, when it is fetched, and the cache then keeps answering with that commit.
    """
    return fingerprint_local(uri, project_dir) if scheme_of(uri) == "local" else uri
