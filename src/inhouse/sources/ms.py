"""`ms:org/name[@revision][#file]`: a model of ModelScope, over its HTTP API (MODELSCOPE_ENDPOINT).

The two calls are those of modelscope's own client (modelscope/hub/api.py and file_download.py):
`GET /api/v1/models/{id}/repo/files?Revision=&Recursive=true` lists, `GET /api/v1/models/{id}/repo?Revision=&FilePath=`
sends one file. Public models need no account.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inhouse.core.errors import UserError
from inhouse.core.fingerprint import hash_file
from inhouse.core.settings import settings
from inhouse.sources.cache import CONTENT, Request, entry_of, keep
from inhouse.sources.hub import HubName, choose, parse, require_space

if TYPE_CHECKING:
    import httpx

TIMEOUT_S = 60.0
PIECE = 1 << 20


@dataclass(frozen=True)
class HubFile:
    """One file of a repository as ModelScope lists it."""

    path: str
    bytes: int
    sha256: str


def fetch(request: Request) -> Path:
    """The repository's folder, or the one file asked for, downloaded when the cache has it not."""
    name = parse(request.uri)
    entry = entry_of(request, "ms", name.repository.replace("/", "--"))
    if name.is_dataset:
        raise UserError("sources.ms_dataset", uri=request.uri)
    return keep(request, entry, name.file or "", lambda staging: _download(request, name, staging / CONTENT))


def _download(request: Request, name: HubName, folder: Path) -> dict[str, Any]:
    import httpx

    revision = name.revision or "master"
    base = f"{settings().ms_endpoint.rstrip('/')}/api/v1/models/{name.repository}"
    try:
        with httpx.Client(timeout=TIMEOUT_S, follow_redirects=True) as client:
            files = _list(client, base, revision, request.uri)
            chosen = [files[f] for f in choose(request.uri, name, {f: e.bytes for f, e in files.items()})]
            require_space(folder, sum(f.bytes for f in chosen))
            _download_all(client, (base, revision), chosen, folder, request)
    except httpx.HTTPStatusError as error:
        raise _explain(request.uri, error.response.status_code) from error
    except httpx.HTTPError as error:
        raise UserError("sources.network", uri=request.uri, reason=str(error) or type(error).__name__) from error
    return {"repository": name.repository, "revision": revision, "files": {f.path: f.sha256 for f in chosen}}


def _list(client: httpx.Client, base: str, revision: str, uri: str) -> dict[str, HubFile]:
    answer = client.get(f"{base}/repo/files", params={"Revision": revision, "Recursive": "true"})
    answer.raise_for_status()
    try:
        listed = answer.json()["Data"]["Files"]
        found = [HubFile(f["Path"], int(f["Size"]), f.get("Sha256") or "") for f in listed if f.get("Type") != "tree"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError("sources.hub", uri=uri, reason="the answer is not a list of files") from error
    return {f.path: f for f in found}


def _download_all(
    client: httpx.Client, where: tuple[str, str], chosen: list[HubFile], folder: Path, request: Request
) -> None:
    total = sum(f.bytes for f in chosen)
    done = 0

    def tick(count: int) -> None:
        nonlocal done
        done += count
        request.events.progress(done, total, "bytes")

    base, revision = where
    for file in chosen:
        url = client.build_request("GET", f"{base}/repo", params={"Revision": revision, "FilePath": file.path})
        _download_one(client, url, file, folder / file.path, tick)
        if file.sha256 and hash_file(folder / file.path) != file.sha256.lower():
            found = hash_file(folder / file.path)
            raise UserError("sources.sha256", uri=f"{request.uri}#{file.path}", expected=file.sha256, found=found)


def _download_one(
    client: httpx.Client, call: httpx.Request, file: HubFile, target: Path, tick: Callable[[int], None]
) -> None:
    """Append to what an interrupted download left, when the server honours a byte range."""
    target.parent.mkdir(parents=True, exist_ok=True)
    have = target.stat().st_size if target.exists() else 0
    if have == file.bytes and have:
        tick(have)
        return
    if 0 < have < file.bytes:
        call.headers["Range"] = f"bytes={have}-"
    answer = client.send(call, stream=True)
    try:
        answer.raise_for_status()
        goes_on = answer.status_code == 206
        tick(have if goes_on else 0)
        with target.open("ab" if goes_on else "wb") as sink:
            for piece in answer.iter_bytes(PIECE):
                sink.write(piece)
                tick(len(piece))
    finally:
        answer.close()


def _explain(uri: str, status: int) -> UserError:
    if status in (401, 403):
        return UserError("sources.not_public", uri=uri)
    if status == 404:
        return UserError("sources.not_found", uri=uri)
    return UserError("sources.hub", uri=uri, reason=f"HTTP {status}")
